"""Eq. 10 as a pytorch-metric-learning loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..types import Impl, PhiSpec, Precision, Reduction
from . import _distance
from ._base import (
    AdaptivePairLoss,
    LossDict,
    _MatrixPairs,
    _RowPairs,
    check_lists,
    listed_rows,
    positive_pairs,
)


class FocalWeightingLoss(AdaptivePairLoss):
    r"""Soft weighting of far positives and near negatives (Huang et al., ICML 2019, Eq. 10).

    .. math::
        l_i = \frac{1}{\phi_1} \log\Big[1 + \sum_{p \in P_i} e^{\phi_1 (d_{ip} - \alpha)}\Big]
            + \frac{1}{\phi_2} \log\Big[1 + \sum_{n \in N_i} e^{-\phi_2 (d_{in} - \alpha)}\Big]

    One loss per anchor (reduction type "element"). With ``indices_tuple`` the sums run over the set of pairs
    that the miner listed for the anchor: a pair that stands in several triplets counts once.

    Parameters
    ----------
    phi
        The two sharpnesses, shape [2], in [0.5, 64], in 1 / distance. Kept as the float32 buffer ``.phi``; a
        controller moves them by factors.
    offset
        The distance offset :math:`\alpha`, a finite number.
    impl
        ``"native"``, ``"strips"``, ``"reference"`` or ``"auto"``.
    precision
        ``"fp32"``, ``"tf32"`` or ``"bf16"``: the lowest precision of the matrix products, on a GPU; see
        :func:`ala_metric.ops.focal_weighting`. Mined pairs and other distances are not concerned.
    **kwargs
        ``distance``, ``reducer``, ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats``
        of pytorch-metric-learning. The default distance is Euclidean between normalised embeddings; other
        distances run on their full matrix. A zero embedding normalises to zero, with a zero gradient.

    Raises
    ------
    ValueError
        For ``phi`` of a wrong length or out of range, an offset that is not finite, an unknown ``impl`` or
        ``precision``, and a similarity as ``distance``.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.FocalWeightingLoss(phi=(2.0, 8.0))
    >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(0.6042)
    """

    def __init__(
        self,
        phi: Sequence[float] | Tensor = (2.0, 8.0),
        offset: float = 1.0,
        *,
        impl: Impl = "auto",
        precision: Precision = "fp32",
        **kwargs: Any,
    ) -> None:
        if not isinstance(offset, (int, float)) or not math.isfinite(offset):
            raise ValueError(f"offset must be a finite number, got {offset!r}")
        spec = tuple(PhiSpec(f"phi_{sign}", 0.5, 64.0, "multiplicative") for sign in ("pos", "neg"))
        super().__init__(phi, spec, impl, precision, **kwargs)
        self.offset = offset
        self.add_to_recordable_attributes(list_of_names=["offset"], is_stat=False)

    def statistics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean positive distance for the first parameter, mean negative distance for the second.

        Parameters
        ----------
        outputs
            Embeddings, shape [N, D].
        targets
            Classes, shape [N], any integer dtype.

        Returns
        -------
        Tensor
            Shape [2, 1], in units of (Euclidean) distance; 0 where there are no such pairs.

        Raises
        ------
        TypeError, ValueError
            As :func:`ala_metric.ops.distance_statistics`.
        """
        rows = _distance.rows(self.distance, outputs.detach())
        return _distance.mean_distances(rows, targets, self.impl, self.precision)[:, None]

    def all_pairs(
        self,
        x: Tensor,
        labels: Tensor,
        y: Tensor | None,
        ref_labels: Tensor | None,
        phi: Tensor,
        reduction: Reduction = "none",
    ) -> LossDict:
        """One loss per anchor over all its pairs, or their mean."""
        return self.per_anchor(
            ops.focal_weighting(
                x,
                labels,
                phi,
                offset=self.offset,
                ref_emb=y,
                ref_labels=ref_labels,
                impl=self.impl,
                precision=self.precision,
                reduction=reduction,
            )
        )

    def all_pairs_of_matrix(
        self, matrix: Tensor, positive: Tensor, negative: Tensor, phi: Tensor
    ) -> LossDict:
        """One loss per anchor over all pairs of a distance matrix."""
        return self.per_anchor(ops.focal_of_matrix(matrix, positive, negative, phi, self.offset))

    def partial(
        self, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor | None, phi: Tensor
    ) -> Tensor:
        """``log(1 + sum exp)`` over the positive and over the negative pairs."""
        both = ops.focal_weighting(
            x,
            labels,
            phi,
            offset=self.offset,
            ref_emb=y,
            ref_labels=ref_labels,
            impl=self.impl,
            precision=self.precision,
        )
        anchors, others, positives = positive_pairs(labels, ref_labels)
        rows, places = listed_rows(y, others)
        centred = _RowPairs(x, rows, self.impl).distance(anchors, places) - self.offset
        pull = log1p_sum_exp(phi[0] * centred, anchors, x.shape[0])
        push = torch.where(positives < y.shape[0], phi[1] * (both - pull / phi[0]), 0)
        if own is not None:
            foreign = others != own[anchors]
            pull = log1p_sum_exp(phi[0] * centred[foreign], anchors[foreign], x.shape[0])
        return torch.stack([pull, push])

    def merge(self, partials: Tensor, phi: Tensor) -> Tensor:
        """Log-sum-exp of all parts, each of which counts the 1 once."""
        top = partials.detach().amax(0)
        rest = torch.exp(partials - top).sum(0) - (partials.shape[0] - 1) * torch.exp(-top)
        return ((top + rest.log()) / phi[:, None]).sum(0)

    def mined(self, pairs: _RowPairs | _MatrixPairs, indices: tuple[Tensor, ...], phi: Tensor) -> LossDict:
        """One loss per anchor over the set of its listed pairs."""
        if all(listed.numel() == 0 for listed in indices):
            return {"loss": self.zero_loss()}
        anchors, positives = indices[:2]
        losses = self._mined_term(pairs, anchors, positives, phi[0])
        return self.per_anchor(losses + self._mined_term(pairs, *_negatives(indices), -phi[1]))

    def _mined_term(
        self, pairs: _RowPairs | _MatrixPairs, anchors: Tensor, others: Tensor, sharpness: Tensor
    ) -> Tensor:
        rows, references = pairs.shape
        anchors, others = check_lists(pairs, anchors, others)
        listed = torch.unique(anchors * references + others)
        anchors, others = listed // references, listed % references
        exponent = sharpness * (pairs.distance(anchors, others) - self.offset)
        return log1p_sum_exp(exponent, anchors, rows) / sharpness.abs()


def _negatives(indices: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return (indices[0], indices[2]) if len(indices) == 3 else (indices[2], indices[3])


def log1p_sum_exp(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """``log(1 + sum exp(values))`` of each group, shape [groups]; exactly 0 for an empty group."""
    zero = values.new_zeros(groups)
    top = zero.scatter_reduce(0, group, values.detach(), "amax")  # includes the 1 = exp(0)
    total = zero.index_add(0, group, torch.exp(values - top[group]))
    return torch.where(top == 0, torch.log1p(total), top + torch.log(torch.exp(-top) + total))
