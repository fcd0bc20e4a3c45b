"""The adaptive classification loss: cross-entropy with a matrix of class correlations (Eq. 6)."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .._arguments import integer
from ..types import PhiSpec
from .confusion import check_batch, check_readable_targets, check_targets
from .correlations import (
    DIAGONAL_LOW,
    action_specs,
    checked_actions,
    checked_confusions,
    class_pairs,
    confusion_specs,
    first_pairs,
    pair_places,
)
from .statistics import diagonal_statistics, pair_statistics

Form = Literal["softplus", "sigmoid", "linear"]
Reduction = Literal["mean", "sum", "none"]

DENSE_CLASSES = 4096  # a larger Phi without off-diagonals is stored as its diagonal
_TINY_WEIGHT = 1e-20


class AdaptiveClassificationLoss(nn.Module):
    """Loss of ``u = y^T Phi log p``, where Phi holds adaptive correlations between the classes (Eq. 6).

    ``log p`` is the log-softmax of the logits and y the one-hot target. Phi starts as the identity.

    ============ ====================== =====================================================
    form         loss per sample        at Phi = I
    ============ ====================== =====================================================
    "softplus"   ``-log sigmoid(u)``    ``log(1 + p) - log p``: the gradient of cross-entropy
                                        divided by ``1 + p``
    "sigmoid"    ``-sigmoid(u)``        ``-p / (1 + p)``: the paper's Eq. 6 taken literally;
                                        bounded, so badly wrong samples get no gradient
    "linear"     ``-u``                 cross-entropy; unbounded below once an off-diagonal
                                        entry is negative
    ============ ====================== =====================================================

    Parameters
    ----------
    num_classes
        C, at least 2.
    form
        "softplus" (default), "sigmoid" or "linear".
    off_diagonal
        Whether correlations between different classes may leave 0. Off by default: free off-diagonals
        harmed training in every trial.
    weight
        ``[C]`` non-negative weights: the loss of a sample is multiplied by its target's weight.
    ignore_index
        Samples with this target contribute nothing.
    label_smoothing
        In [0, 1): y becomes ``(1 - s) y + s / C``. Together with ``weight`` the smoothed label enters u as
        ``w_c y_c / w_target``, so that the linear form stays ``torch.nn.CrossEntropyLoss``.
    reduction
        "mean" (over the weights of the samples that count; 0 when there are none), "sum" or "none".
    off_diagonal_step
        Step of the off-diagonals in units of the controller's beta. None is ``1 / (C - 1)``, so that a row of
        Phi moves as much off its diagonal as on it; the paper's is 1.
    top_confusions
        With ``off_diagonal``: act on this number of the most confused pairs only. See the notes.
    diagonal_low
        Least value of the diagonal. Two classes are weighed ``1 / diagonal_low`` to 1 at the most. Take 0.5
        where labels may be wrong: where a share q of the labels is flipped to any of the other classes,
        weights beyond ``(1 - q)(C - 1) / q`` to 1 turn the decision around, and a diagonal that wandered
        over [0.05, 1] cost 3 points of error at q = 0.4, C = 10.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    TypeError
        If ``num_classes`` is no integer or ``off_diagonal`` no bool.

    Notes
    -----
    ``phi`` is a ``[C, C]`` buffer, symmetric. With ``off_diagonal=False`` only its diagonal is used, and
    above 4,096 classes only the diagonal ``[C]`` is stored, since ``[C, C]`` would not fit in memory.

    ``phi_spec`` has one entry per *action*: the C diagonal entries in [``diagonal_low``, 1]; with
    ``off_diagonal=True`` the ``C (C + 1) / 2`` unordered pairs in the order of
    ``torch.triu_indices(C, C)``, off-diagonals in [-1, 1]. ``phi_vector`` holds their values in the same
    order: a controller reads ``phi`` flattened when it has ``len(phi_spec)`` elements, and ``phi_vector``
    otherwise.

    With ``top_confusions=m`` there are m actions. Each call of :meth:`statistics` assigns them to the m pairs
    of different classes that the model confuses most (the smallest mean confusion of Eq. 7), the most
    confused first; ``phi_vector`` and :meth:`set_phi` with a vector mean these pairs, and the rest of Phi
    stays. The state of action k is so that of the k-th most confused pair, whichever that is.

    Half precision logits are computed in float32; NaN logits give a NaN loss.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> targets = torch.tensor([0, 2])
    >>> loss_fn = AdaptiveClassificationLoss(3, form="linear")
    >>> bool(torch.isclose(loss_fn(logits, targets), torch.nn.functional.cross_entropy(logits, targets)))
    True
    >>> loss_fn.set_phi(torch.tensor([1.0, 1.0, 0.5]))
    >>> bool(loss_fn(logits, targets) < torch.nn.functional.cross_entropy(logits, targets))
    True
    """

    phi: torch.Tensor
    weight: torch.Tensor | None
    pairs: torch.Tensor | None
    statistics_width = 2
    standardized_statistics = True  # z-scores across parameters

    def __init__(
        self,
        num_classes: int,
        form: Form = "softplus",
        off_diagonal: bool = False,
        *,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        off_diagonal_step: float | None = None,
        top_confusions: int | None = None,
        diagonal_low: float = DIAGONAL_LOW,
    ) -> None:
        super().__init__()
        num_classes = integer("num_classes", num_classes)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if form not in ("softplus", "sigmoid", "linear"):
            raise ValueError(f"form must be 'softplus', 'sigmoid' or 'linear', got {form!r}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not isinstance(off_diagonal, bool):
            raise TypeError(f"off_diagonal must be True or False, got {off_diagonal!r}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.float32).detach().clone()
            if weight.shape != (num_classes,) or not (weight.isfinite() & (weight >= 0)).all():
                raise ValueError(f"weight must be [{num_classes}] finite numbers >= 0, got {weight}")
        if off_diagonal_step is None:
            off_diagonal_step = 1.0 / (num_classes - 1)
        if not 0.0 < off_diagonal_step < float("inf"):
            raise ValueError(f"off_diagonal_step must be positive and finite, got {off_diagonal_step}")
        if not 0.0 < diagonal_low < 1.0:
            raise ValueError(f"diagonal_low must lie in (0, 1), got {diagonal_low}")
        available = num_classes * (num_classes - 1) // 2
        if top_confusions is not None and not (off_diagonal and 1 <= top_confusions <= available):
            raise ValueError(
                f"top_confusions needs off_diagonal=True and 1 to {available} pairs, got {top_confusions} "
                f"with off_diagonal={off_diagonal}"
            )
        self.num_classes = num_classes
        self.off_diagonal_step = float(off_diagonal_step)
        self.diagonal_low = float(diagonal_low)
        self.top_confusions = top_confusions
        self.form = form
        self.off_diagonal = off_diagonal
        self.ignore_index = ignore_index
        self.label_smoothing = float(label_smoothing)
        self.reduction = reduction
        dense = off_diagonal or num_classes <= DENSE_CLASSES
        self.register_buffer("phi", torch.eye(num_classes) if dense else torch.ones(num_classes))
        self.register_buffer("weight", weight)
        first = None if top_confusions is None else first_pairs(num_classes, top_confusions)
        self.register_buffer("pairs", first)  # [2, m] rows and columns of the actions

    @classmethod
    def paper(cls, num_classes: int) -> AdaptiveClassificationLoss:
        """Eq. 6 as printed: sigmoid form, all class pairs free."""
        return cls(num_classes, "sigmoid", off_diagonal=True, off_diagonal_step=1.0)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of a batch.

        Parameters
        ----------
        logits
            ``[B, C]``, any floating dtype.
        targets
            ``[B]`` integers in ``[0, C)``, or ``ignore_index``.

        Returns
        -------
        torch.Tensor
            A scalar, or ``[B]`` with ``reduction="none"``; float32 for half precision logits.

        Raises
        ------
        ValueError
            If a shape is wrong or (eager, on the CPU) a target is out of range.
        TypeError
            If something is no tensor, logits are not floating point or targets not integers.
        """
        check_batch("logits", logits, targets, self.num_classes)
        targets = targets.long()
        valid = targets != self.ignore_index
        labels = torch.where(valid, targets, 0)
        check_readable_targets(labels, self.num_classes)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()

        sample_weight = None if self.weight is None else self.weight.to(logits.dtype)[labels]
        u = self._dense_u(logits, labels) if self.off_diagonal else self._diagonal_u(logits, labels)
        losses = self.of_u(u)
        if sample_weight is not None:
            losses = self._divisor(sample_weight) * losses
        losses = torch.where(valid, losses, 0)
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        total = valid.sum() if sample_weight is None else torch.where(valid, sample_weight, 0).sum()
        return losses.sum() / torch.where(total > 0, total, 1)

    def of_u(self, u: torch.Tensor) -> torch.Tensor:
        """Loss per sample for ``u = y^T Phi log p``, by the form."""
        if self.form == "softplus":
            return -F.logsigmoid(u)
        return -torch.sigmoid(u) if self.form == "sigmoid" else -u

    def _diagonal_u(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[B]`` u for a diagonal Phi: a weighted cross-entropy with phi as the weights."""
        phi = self._diagonal().to(logits.dtype, copy=True)  # set_phi may come before backward
        if not (self.label_smoothing and self.weight is not None):
            return -self._cross_entropy(logits, labels, phi)
        weight = self.weight.to(logits.dtype)
        return -self._cross_entropy(logits, labels, phi * weight) / self._divisor(weight[labels])

    def _cross_entropy(
        self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """``[B]`` cross-entropies."""
        smoothing = self.label_smoothing
        return F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=smoothing)

    def _dense_u(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[B]`` u for a full Phi: each sample's row of Phi times its log-probabilities."""
        phi = self.phi.to(logits.dtype)
        rows = phi[labels]
        if self.label_smoothing:
            weight = torch.ones_like(phi[0]) if self.weight is None else self.weight.to(logits.dtype)
            share = self.label_smoothing / self.num_classes
            spread = (weight[:, None] * phi).sum(0) / self._divisor(weight[labels])[:, None]
            rows = (1 - self.label_smoothing) * rows + share * spread
        return torch.where(rows == 0, 0, rows * logits.log_softmax(1)).sum(1)

    def _divisor(self, weight: torch.Tensor) -> torch.Tensor:
        """Keep the target's weight above 0 where label smoothing divides by it."""
        return weight.clamp_min(_TINY_WEIGHT) if self.label_smoothing else weight

    def _diagonal(self) -> torch.Tensor:
        """``[C]`` view of the diagonal of Phi."""
        return self.phi if self.phi.ndim == 1 else self.phi.diagonal()

    @cached_property
    def phi_spec(self) -> tuple[PhiSpec, ...]:
        """Range and step rule of every action; see the class's notes for their order."""
        if self.top_confusions is not None:
            return confusion_specs(self.top_confusions, self.off_diagonal_step)
        return action_specs(self.num_classes, self.off_diagonal, self.off_diagonal_step, self.diagonal_low)

    @property
    def phi_vector(self) -> torch.Tensor:
        """``[n_params]`` copy of the current values, in the order of ``phi_spec``."""
        if not self.off_diagonal:
            return self._diagonal().clone()
        if self.pairs is not None:
            return self.phi[self.pairs[0], self.pairs[1]]
        return self.phi.take(pair_places(self.num_classes, self.phi.device)[0])

    @torch.no_grad()
    def set_phi(self, phi: torch.Tensor) -> None:
        """Replace the correlations in place.

        Parameters
        ----------
        phi
            The symmetric ``[C, C]`` matrix, or the ``[n_params]`` vector in the order of ``phi_spec``.
            Diagonal in [``diagonal_low``, 1]; off-diagonal in [-1, 1], and 0 when ``off_diagonal`` is off.

        Raises
        ------
        ValueError
            If the shape is wrong, a value NaN or out of range (a rounding error is forgiven and
            clipped), or the matrix not symmetric. Nothing has changed then.
        TypeError
            If it is complex.
        """
        phi = torch.as_tensor(phi).detach()
        if phi.is_complex():
            raise TypeError(f"phi must be real, got {phi.dtype}")
        phi = phi.to(self.phi.device, self.phi.dtype)
        if self.pairs is not None and phi.ndim == 1:
            vector, (rows, columns) = checked_confusions(phi, len(self.pairs[0])), self.pairs
            self.phi[rows, columns] = vector
            self.phi[columns, rows] = vector
            return
        vector = checked_actions(phi, self.num_classes, self.off_diagonal, self.diagonal_low)
        if not self.off_diagonal:
            self._diagonal().copy_(vector)
            return
        upper, lower, _ = pair_places(self.num_classes, phi.device)
        flat = self.phi.view(-1)
        flat[upper] = vector
        flat[lower] = vector

    @torch.no_grad()
    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Describe what the model confuses, one row per action (Eq. 7).

        For the pair {i, j} the row is ``[(C_ij + C_ji) / 2, |C_ij - C_ji| / 2]``, whatever the order of the
        two classes; for a diagonal entry ``[C_ii, 0]``. Each column is z-scored, diagonal and
        off-diagonal apart, so that the scale and the number of classes do not matter.

        Parameters
        ----------
        outputs
            ``[N, C]`` logits of a validation set.
        targets
            ``[N]`` integers in ``[0, C)``, or ``ignore_index``.

        Returns
        -------
        torch.Tensor
            ``[n_params, 2]`` float32, finite. Rows of pairs with a class without samples are 0.

        Raises
        ------
        ValueError
            If a shape is wrong, a target is out of range, or a row has no log-softmax (NaN or ``+inf``).
        TypeError
            If the dtypes are wrong.
        """
        check_batch("outputs", outputs, targets, self.num_classes)
        outputs, targets = outputs.detach(), targets.long()
        valid = targets != self.ignore_index
        if not valid.all():
            outputs, targets = outputs[valid], targets[valid]
        check_targets(targets, self.num_classes)
        if bad := int((~outputs.amax(1).isfinite()).sum()):
            raise ValueError(f"outputs have no log-softmax (NaN or infinite) in {bad} of {len(outputs)} rows")
        if not self.off_diagonal:
            return diagonal_statistics(outputs, targets)
        if self.top_confusions is None:
            return pair_statistics(outputs, targets)[0]
        statistics, order = pair_statistics(outputs, targets, self.top_confusions)
        self.pairs = torch.stack(class_pairs(self.num_classes, self.phi.device))[:, order.to(self.phi.device)]
        return statistics

    def extra_repr(self) -> str:
        """Arguments that shape the loss."""
        return f"num_classes={self.num_classes}, form={self.form!r}, off_diagonal={self.off_diagonal}"
