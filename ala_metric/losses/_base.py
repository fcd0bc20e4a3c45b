"""What the two adaptive pair losses share: parameters, range checks, and reading PML's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._pml import BaseMetricLossFunction, MeanReducer, MultipleReducers
from ..ops._check import check_embeddings, check_indices, check_labels, check_references
from ..types import Impl, PhiSpec, Precision, Reduction
from . import _distance

LossDict = dict[str, dict[str, Any]]


def check_phi(phi: Tensor, phi_spec: Sequence[PhiSpec]) -> Tensor:
    """``phi`` as a tensor; ValueError on another shape, NaN, or a value outside its range."""
    phi = torch.as_tensor(phi)
    if phi.shape != (len(phi_spec),):
        raise ValueError(f"phi must have shape [{len(phi_spec)}], got {tuple(phi.shape)}")
    for spec, value in zip(phi_spec, phi.tolist()):
        if not spec.allows(value, 0.0):
            raise ValueError(f"{spec.name} must lie in [{spec.low}, {spec.high}], got {value}")
    return phi


def _as_phi(phi: Any) -> Tensor:
    try:
        return torch.as_tensor(phi, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"phi must be a tensor or a sequence of numbers, got {phi!r}") from None


class AdaptivePairLoss(BaseMetricLossFunction):
    """A pytorch-metric-learning loss with a parameter buffer ``phi`` that a controller may move."""

    phi: Tensor
    reducer: Any  # of pytorch-metric-learning
    phi_spec: tuple[PhiSpec, ...]
    statistics_width = 1
    precision: Precision = "fp32"
    parameter_identity = True  # every parameter weighs another function: a policy must tell them apart

    def __init__(
        self,
        phi: Sequence[float] | Tensor,
        phi_spec: tuple[PhiSpec, ...],
        impl: Impl,
        precision: Precision,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _distance.check_distance(self.distance)
        if impl not in ("auto", "native", "strips", "reference"):
            raise ValueError(f"impl must be 'auto', 'native', 'strips' or 'reference', got {impl!r}")
        if precision not in ("fp32", "tf32", "bf16"):
            raise ValueError(f"precision must be 'fp32', 'tf32' or 'bf16', got {precision!r}")
        self.impl: Impl = impl
        self.precision = precision
        self.phi_spec = phi_spec
        self.register_buffer("phi", torch.zeros(len(phi_spec)))
        self.set_phi(_as_phi(phi))

    def set_reducer(self, reducer: Any) -> None:
        """Take a reducer of pytorch-metric-learning, for each of the sub-losses."""
        super().set_reducer(reducer)
        if self.reducer is not reducer and type(self.reducer) is MultipleReducers:
            self.reducer = _Reducers(self.reducer.reducers)

    def extra_repr(self) -> str:
        """How the pairs are computed, for ``repr``."""
        return f"impl={self.impl!r}, precision={self.precision!r}"

    def set_phi(self, phi: Tensor) -> None:
        """Replace the parameters in place.

        Parameters
        ----------
        phi
            Shape [len(phi_spec)], any float dtype and device.

        Raises
        ------
        ValueError
            On another shape, NaN, or a value outside its range in ``phi_spec``; nothing is changed then.
        """
        with torch.no_grad():
            self.phi.copy_(check_phi(phi, self.phi_spec))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The reduced loss: a scalar, or what the reducer makes of the terms.

        Parameters
        ----------
        embeddings
            Shape [N, D], float16, bfloat16, float32 or float64.
        labels
            Classes, shape [N], any integer dtype and device; may be left out with ``indices_tuple``.
        indices_tuple
            (anchors, positives, negatives) or (anchors, positives, anchors, negatives) of a miner; without
            it all pairs are taken.
        ref_emb, ref_labels
            What the anchors are compared with, shapes [M, D] and [M]; without them the batch itself.

        Raises
        ------
        TypeError, ValueError
            For arguments of a wrong type, dtype or shape, NaN or Inf, and labels that are missing.
        """
        check_rows(embeddings, labels, "embeddings", "labels")
        if ref_emb is not None:
            check_rows(ref_emb, ref_labels, "ref_emb", "ref_labels")
            if indices_tuple is None:
                needed(ref_labels)
        elif ref_labels is not None:
            raise ValueError("ref_labels was given without ref_emb; give both or neither")
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> LossDict:
        """Loss terms in pytorch-metric-learning's dictionary form, called by ``forward``."""
        if isinstance(indices_tuple, Tensor):
            raise TypeError("indices_tuple must be a tuple of 3 or 4 index tensors, got a tensor")
        if indices_tuple is not None and len(indices_tuple) not in (3, 4):
            raise ValueError(
                "indices_tuple must be (anchors, positives, negatives) or "
                f"(anchors, positives, anchors, negatives), got {len(indices_tuple)} index lists"
            )
        for listed in indices_tuple or ():
            if not isinstance(listed, Tensor):
                raise TypeError(f"indices_tuple must hold tensors, got {type(listed).__name__}")
        if embeddings.shape[0] == 0:
            return {name: self.zero_loss() for name in self._sub_loss_names()[:1]}
        # forward() hands the batch itself on when there are no references
        own = ref_emb is embeddings and ref_labels is labels
        phi = self.phi.to(embeddings.device, copy=True)  # a later set_phi must not reach this graph
        if _distance.is_euclidean(self.distance):
            x = _distance.rows(self.distance, embeddings)
            y = None if own else _distance.rows(self.distance, ref_emb)
            if indices_tuple is not None:
                return self.mined(_RowPairs(x, y, self.impl), indices_tuple, phi)
            ref_labels = None if own else needed(ref_labels)
            return self.all_pairs(x, needed(labels), y, ref_labels, phi, self._reduction())
        if not torch._C._are_functorch_transforms_active():  # a distance of plain torch works under vmap
            check_references(check_embeddings(embeddings, "embeddings"), ref_emb, "embeddings")
        matrix = self.distance(embeddings, ref_emb)
        if indices_tuple is not None:
            return self.mined(_MatrixPairs(matrix), indices_tuple, phi)
        labels = check_labels(needed(labels), embeddings, "labels", "embeddings")
        ref_labels = labels if own else check_labels(needed(ref_labels), ref_emb, "ref_labels", "ref_emb")
        return self.all_pairs_of_matrix(matrix, *_masks(labels, ref_labels, own), phi)

    def _reduction(self) -> Reduction:
        """A mean where the reducer makes a plain one of the losses and keeps no statistics of them."""
        reducer = self.reducer
        if isinstance(reducer, MultipleReducers):
            parts = reducer.reducers  # no dictionary: it has no get(), and torch.compile makes none of it
            reducer = parts["loss"] if "loss" in parts else None  # noqa: SIM401
        return "mean" if type(reducer) is MeanReducer and not reducer.collect_stats else "none"

    def all_pairs(
        self,
        x: Tensor,
        labels: Tensor,
        y: Tensor | None,
        ref_labels: Tensor | None,
        phi: Tensor,
        reduction: Reduction = "none",
    ) -> LossDict:
        """Loss over all pairs of the rows ``x`` and references ``y`` (``None``: the batch itself)."""
        raise NotImplementedError

    def all_pairs_of_matrix(
        self, matrix: Tensor, positive: Tensor, negative: Tensor, phi: Tensor
    ) -> LossDict:
        """Loss over all pairs of a distance matrix [N, M]."""
        raise NotImplementedError

    def partial(
        self, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor | None, phi: Tensor
    ) -> Tensor:
        """What the loss needs to know of the pairs with a part of the references, shape [s, N].

        ``own`` is the row of ``y`` that is each anchor itself, and no pair of it; None: there are no such.
        """
        raise NotImplementedError

    def merge(self, partials: Tensor, phi: Tensor) -> Tensor:
        """Loss per anchor [N] from :meth:`partial` of all parts, shape [parts, s, N]."""
        raise NotImplementedError

    def foreign_pairs(
        self, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor, phi: Tensor
    ) -> Tensor:
        """Loss per anchor [N] over all references but its own row ``own`` of ``y``."""
        return self.merge(self.partial(x, labels, y, ref_labels, own, phi)[None], phi)

    def mined(self, pairs: _RowPairs | _MatrixPairs, indices: tuple[Tensor, ...], phi: Tensor) -> LossDict:
        """Loss over the pairs or triplets that a miner chose."""
        raise NotImplementedError

    def per_anchor(self, losses: Tensor) -> LossDict:
        """One loss per anchor, shape [N], or their mean."""
        if losses.ndim == 0:
            return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}
        return {"loss": term(losses, torch.arange(losses.shape[0], device=losses.device), "element")}


class _Reducers(MultipleReducers):
    """One reducer for each sub-loss, and their sum in its own dtype: PML's is that of the rows."""

    def forward(self, loss_dict: LossDict, embeddings: Tensor, labels: Tensor | None) -> Any:
        self.reset_stats()
        found = [self.reducers[name]({name: part}, embeddings, labels) for name, part in loss_dict.items()]
        return sum(found[1:], found[0])


def check_rows(x: Any, labels: Any, name: str, labels_name: str) -> None:
    """Refuse what is no batch; values, devices and label dtypes are the affair of the ops."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape [rows, dimensions], got {tuple(x.shape)}")
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{labels_name} must be a tensor of integers, got {type(labels).__name__}")
    if tuple(labels.shape) != (x.shape[0],):
        raise ValueError(
            f"{labels_name} must have shape [{x.shape[0]}] like the rows of {name}, got {tuple(labels.shape)}"
        )


class _RowPairs:
    """Mined pairs of embedding rows, through the gather ops."""

    def __init__(self, x: Tensor, y: Tensor | None, impl: Impl) -> None:
        self.x, self.y, self.impl = x, y, impl
        self.like = x
        self.shape = (x.shape[0], (x if y is None else y).shape[0])

    def mixture(self, anchors: Tensor, others: Tensor, phi: Tensor, *, positive: bool) -> Tensor:
        return ops.mixture_pairs(
            self.x, anchors, others, phi, positive=positive, ref_emb=self.y, impl=self.impl
        )

    def triplets(self, anchors: Tensor, positives: Tensor, negatives: Tensor, phi: Tensor) -> Tensor:
        return ops.mixture_triplets(
            self.x, anchors, positives, negatives, phi, ref_emb=self.y, impl=self.impl
        )

    def distance(self, anchors: Tensor, others: Tensor) -> Tensor:
        only_distance = self.x.new_tensor([0.0, 1.0, 0.0, 0.0, 0.0])  # F+_2(d) = d
        return self.mixture(anchors, others, only_distance, positive=True)


class _MatrixPairs:
    """Mined pairs looked up in the matrix of any other pytorch-metric-learning distance."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = self.like = matrix
        self.shape = tuple(matrix.shape)

    def mixture(self, anchors: Tensor, others: Tensor, phi: Tensor, *, positive: bool) -> Tensor:
        return ops.mixture_of_distance(self.distance(anchors, others), phi, positive=positive)

    def triplets(self, anchors: Tensor, positives: Tensor, negatives: Tensor, phi: Tensor) -> Tensor:
        pull = self.mixture(anchors, positives, phi[:5], positive=True)
        return pull + self.mixture(anchors, negatives, phi[5:], positive=False)

    def distance(self, anchors: Tensor, others: Tensor) -> Tensor:
        anchors, others = check_lists(self, anchors, others)
        return self.matrix[anchors, others]


def check_lists(pairs: _RowPairs | _MatrixPairs, anchors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Two lists of a miner as int64; refused where they do not name pairs."""
    anchors = check_indices(anchors, pairs.shape[0], pairs.like, "anchors")
    others = check_indices(others, pairs.shape[1], pairs.like, "others")
    if anchors.shape != others.shape:
        raise ValueError(f"index lists must have equal lengths, got {len(anchors)} and {len(others)}")
    return anchors, others


def positive_pairs(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors and references of all positive pairs, and how many each anchor has, without an N x M mask."""
    labels = labels.contiguous()  # else searchsorted warns
    order = torch.argsort(ref_labels, stable=True)
    ascending = ref_labels[order]
    first = torch.searchsorted(ascending, labels)
    counts = torch.searchsorted(ascending, labels, right=True) - first
    anchors = torch.arange(labels.shape[0], device=labels.device).repeat_interleave(counts)
    place = (
        torch.arange(anchors.shape[0], device=labels.device) - (counts.cumsum(0) - counts - first)[anchors]
    )
    return anchors, order[place], counts


def listed_rows(y: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The listed rows and their places, where they are fewer than all: an op need not look at the rest."""
    if others.shape[0] >= y.shape[0]:
        return y, others
    return y[others], torch.arange(others.shape[0], device=others.device)


def needed(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError("labels (and ref_labels with ref_emb) are needed when indices_tuple is None")
    return labels


def _masks(labels: Tensor, ref_labels: Tensor, own: bool) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == ref_labels
    positive = same.clone()
    if own:
        positive.fill_diagonal_(False)
    return positive, ~same


def term(losses: Tensor, indices: Any, reduction_type: str) -> dict[str, Any]:
    """One entry of the loss dictionary; ``divisor`` is what DivisorReducer divides the sum by."""
    return {
        "losses": losses,
        "indices": indices,
        "reduction_type": reduction_type,
        "divisor": losses.shape[0],
    }
