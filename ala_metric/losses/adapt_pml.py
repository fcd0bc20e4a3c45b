"""Any loss of pytorch-metric-learning as an adaptive one: its numeric attributes become phi."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .._pml import BaseMetricLossFunction, DoNothingReducer
from ..types import PhiSpec
from . import _attributes, _distance, catalogue
from ._base import LossDict, check_phi

Range = PhiSpec | tuple[float, float] | tuple[float, float, str]

_PER_CLASS, _CLASSES, _BATCHES = 4, 32, 16  # validation batches for the loss value: at most 16 of 32 x 4 rows


class AdaptPML(BaseMetricLossFunction):
    r"""Any pytorch-metric-learning loss with some of its numeric attributes as parameters to adapt.

    Calls are passed on unchanged, so miners, ``indices_tuple``, references, reducers, regularizers and the
    trained weights of the loss (proxies) work as they do without it.

    Parameters
    ----------
    loss
        A loss, or a wrapper such as ``CrossBatchMemory``, ``SelfSupervisedLoss`` or ``MultipleLosses``. It is
        kept as ``.loss`` and changed in place.
    ranges
        Attribute -> ``(low, high)``, ``(low, high, rule)`` or a :class:`ala_metric.PhiSpec`. Without a rule,
        steps multiply the attribute where ``low > 0`` and ``high >= 10 low``, and add to it else. Attributes
        of parts are named by their path: ``"distance.power"``, ``"reducer.low"``, ``"loss.temperature"``,
        and ``"weights.0"`` of ``MultipleLosses``. ``None``: the ranges of :func:`available` for this class.
    loss_statistic
        Whether the loss value on validation data is shown to the controller. ``None``: only if the loss has
        no trained weights, since proxies know the training classes only.

    Raises
    ------
    ValueError
        For an unknown attribute, one that the loss reads only when it is built, a start value outside its
        range, a range that is none, and ``ranges=None`` with a loss that :func:`available` does not know.
    TypeError
        For an attribute that is no number or that the optimizer trains, a loss that is no module, and ranges
        that are no mapping of names.

    Notes
    -----
    The start is the loss as it is: an attribute keeps its exact value until its parameter is moved; then it
    becomes a float (a tensor is filled). Values are in the unit of the attribute, which need not be that of
    the constructor's argument: ArcFace takes its margin in degrees and keeps radians.

    Statistics, the same three for every parameter, over the validation pairs :math:`P` of the same class and
    :math:`N` of different classes:

    .. math:: s = \Big[\frac{1}{|P|} \sum_{(i, j) \in P} d_{ij},\;
        \frac{1}{|N|} \sum_{(i, j) \in N} d_{ij},\; \text{mean loss}\Big]

    with Euclidean distances :math:`d` (between normalised rows where the loss normalises). The mean loss is
    that of up to 16 fixed class-balanced batches of at most 32 classes x 4 rows, on a copy of the loss.

    ``phi`` may also be written to or replaced, as by ``torch.func.functional_call``: the next eager call
    follows. On an accelerator a write through ``.data`` goes unseen. Under ``torch.compile`` every change of
    an attribute compiles anew, and only :meth:`set_phi` is followed.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> from pytorch_metric_learning.losses import NTXentLoss
    >>> loss_fn = losses.AdaptPML(NTXentLoss(temperature=0.5), {"temperature": (0.05, 5.0)})
    >>> loss_fn.set_phi(torch.tensor([0.25]))
    >>> loss_fn.loss.temperature
    0.25
    >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(1.0986)
    """

    phi: Tensor
    statistics_width = 3
    parameter_identity = True

    def __init__(
        self,
        loss: nn.Module,
        ranges: Mapping[str, Range] | None = None,
        *,
        loss_statistic: bool | None = None,
    ) -> None:
        if not isinstance(loss, nn.Module):
            name = getattr(loss, "__name__", type(loss).__name__)
            raise TypeError(f"loss must be a loss of pytorch-metric-learning, got {name}")
        super().__init__(distance=_inner(loss).distance if hasattr(_inner(loss), "distance") else None)
        self.phi_spec = _specs(loss, ranges)
        start = [_attributes.read(loss, spec.name) for spec in self.phi_spec]
        self.register_buffer("phi", check_phi(torch.tensor(start, dtype=torch.float32), self.phi_spec))
        self.loss: Any = loss
        trained = any(parameter.requires_grad for parameter in loss.parameters())
        self.loss_statistic = not trained if loss_statistic is None else loss_statistic
        self._note()

    def set_phi(self, phi: Tensor) -> None:
        """Replace the parameters in place, and with them the attributes of the loss.

        Parameters
        ----------
        phi
            Shape [len(phi_spec)], any float dtype and device.

        Raises
        ------
        ValueError
            On another shape, NaN, or a value outside its range; nothing is changed then.
        """
        with torch.no_grad():
            self.phi.copy_(check_phi(phi, self.phi_spec))
        self._write()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Value of the wrapped loss; arguments are those of the wrapped loss."""
        self._follow()
        return self.loss(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> LossDict:
        """Loss terms of the wrapped loss in pytorch-metric-learning's dictionary form."""
        self._follow()
        return self.loss.compute_loss(*args, **kwargs)

    @torch.no_grad()
    def statistics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean positive distance, mean negative distance and loss value, for every parameter the same.

        Parameters
        ----------
        outputs
            Embeddings, shape [N, D].
        targets
            Classes, shape [N], any integer dtype.

        Returns
        -------
        Tensor
            Shape [len(phi_spec), 3]: two distances and a loss; 0 where there are no such pairs, or no loss
            statistic is wanted.
        """
        self._follow()
        means = _distance.mean_distances(_distance.rows(self.distance, outputs), targets)
        value = self._validation_loss(outputs, targets) if self.loss_statistic else 0.0
        return torch.cat([means, means.new_tensor([value])]).expand(len(self.phi_spec), 3).clone()

    def _validation_loss(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean over fixed batches, on a copy: a loss may keep a queue or a histogram of what it has seen."""
        loss: Any = copy.deepcopy(_inner(self.loss))
        if isinstance(getattr(loss, "reducer", None), DoNothingReducer):
            loss.set_reducer(None)
        values = [
            float(loss(outputs[rows], targets[rows])) for rows in islice(_balanced_batches(targets), _BATCHES)
        ]
        return sum(values) / max(1, len(values))

    def _write(self) -> None:
        """Set the attributes that differ from phi by more than its rounding."""
        for spec, value in zip(self.phi_spec, self.phi.tolist()):
            if self.phi.new_tensor(_attributes.read(self.loss, spec.name)).item() != value:
                _attributes.write(self.loss, spec.name, value)
        self._note()

    def _follow(self) -> None:
        """Set the attributes if phi was changed from outside: broadcast, averaged, loaded, replaced."""
        if torch.compiler.is_compiling():
            return
        if torch._C._functorch.is_batchedtensor(self.phi):
            raise NotImplementedError(
                "vmap over phi is not supported: the attributes of the loss are numbers"
            )
        phi, values, version = self._written
        if self.phi.is_cpu:
            same = self.phi.tolist() == values
        else:  # reading values would wait for the device
            same = self.phi.data_ptr() == phi.data_ptr() and _version(self.phi) == version
        if not same:
            self._write()

    def _note(self) -> None:
        """Remember the phi that the attributes stand for; holding on to it keeps its address its own."""
        values = self.phi.tolist() if self.phi.is_cpu else None
        self._written = self.phi.detach(), values, _version(self.phi)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._write()


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _inner(loss: nn.Module) -> nn.Module:
    """The loss inside CrossBatchMemory, SelfSupervisedLoss, DistributedLossWrapper and the like."""
    held = getattr(loss, "loss", None)
    if isinstance(loss, BaseMetricLossFunction) or not isinstance(held, nn.Module):
        return loss
    return _inner(held)


def _specs(loss: nn.Module, ranges: Mapping[str, Range] | None) -> tuple[PhiSpec, ...]:
    if ranges is None:
        known = catalogue.available()
        if type(loss).__name__ not in known:
            raise ValueError(
                f"ranges must be given for {type(loss).__name__}; known without: {', '.join(sorted(known))}"
            )
        return tuple(known[type(loss).__name__].values())
    if not isinstance(ranges, Mapping) or not all(isinstance(name, str) for name in ranges):
        raise TypeError(f"ranges must map names of attributes to (low, high), got {ranges!r}")
    if not ranges:
        raise ValueError("ranges must name at least one attribute, got {}")
    return tuple(_spec(name, given) for name, given in ranges.items())


def _spec(name: str, given: Range) -> PhiSpec:
    if isinstance(given, PhiSpec):
        return dataclasses.replace(given, name=name)
    pair = given[:2] if isinstance(given, (tuple, list)) and len(given) in (2, 3) else (None,)
    if not all(isinstance(bound, Real) and not isinstance(bound, bool) for bound in pair):
        raise ValueError(
            f"range of {name!r} must be numbers (low, high), (low, high, rule) or a PhiSpec, got {given!r}"
        )
    return catalogue.spec(name, *given)


def _balanced_batches(targets: Tensor) -> Iterator[Tensor]:
    """Rows of fixed batches: as many of each class, every row at most once, classes in turn."""
    order = torch.argsort(targets, stable=True)
    _, counts = torch.unique_consecutive(targets[order], return_counts=True)
    per_class = _PER_CLASS if int((counts >= _PER_CLASS).sum()) >= 2 else 2
    first = torch.cumsum(counts, 0) - counts
    for turn in range(int(counts.max()) // per_class if len(counts) else 0):
        starts = first[counts >= (turn + 1) * per_class] + turn * per_class
        for part in starts.chunk(-(-len(starts) // _CLASSES)):
            yield order[(part[:, None] + torch.arange(per_class, device=part.device)).flatten()]
