"""Eq. 9 as a pytorch-metric-learning loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..types import Impl, PhiSpec, Precision, Reduction
from . import _distance
from ._base import AdaptivePairLoss, LossDict, _MatrixPairs, _RowPairs, listed_rows, positive_pairs, term

_DEFAULT = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)  # d^2 for positives, 0.5/d for negatives


class DistanceMixtureLoss(AdaptivePairLoss):
    r"""Mixture of five increasing and five decreasing distance functions (Huang et al., ICML 2019, Eq. 9).

    .. math::
        l_i = \frac{1}{|P_i|} \sum_{p \in P_i} \sum_{k=1}^{5} \phi_k F^+_k(d_{ip})
            + \frac{1}{|N_i|} \sum_{n \in N_i} \sum_{k=1}^{5} \phi_{k+5} F^-_k(d_{in})

    The functions are listed at :func:`ala_metric.ops.distance_mixture`. Without ``indices_tuple`` there is
    one loss per anchor (reduction type "element"), over all its pairs. With triplets there is one loss
    :math:`F^+(d_{ap}) + F^-(d_{an})` per triplet; with pairs, one per positive pair and one per negative pair
    ("pos_loss" and "neg_loss", as in pytorch-metric-learning's own pair losses).

    Parameters
    ----------
    phi
        Ten weights in [0, 1], shape [10], unitless; ``None`` starts with :math:`d^2` and :math:`0.5/d`, as
        the paper does. Kept as the float32 buffer ``.phi``.
    impl
        ``"native"``, ``"strips"``, ``"reference"`` or ``"auto"``.
    precision
        ``"fp32"``, ``"tf32"`` or ``"bf16"``: the lowest precision of the matrix products, on a GPU; see
        :func:`ala_metric.ops.distance_mixture`. Mined pairs and other distances are not concerned.
    **kwargs
        ``distance``, ``reducer``, ``embedding_regularizer``, ``embedding_reg_weight``, ``collect_stats``
        of pytorch-metric-learning. The default distance is Euclidean between normalised embeddings; other
        distances run on their full matrix. A zero embedding normalises to zero, with a zero gradient.

    Raises
    ------
    ValueError
        For ``phi`` of a wrong length or out of range, an unknown ``impl`` or ``precision``, and a
        similarity as ``distance``.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.DistanceMixtureLoss()
    >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(2.3536)
    """

    phi_groups = (tuple(range(5)), tuple(range(5, 10)))  # alternatives: functions of positives, of negatives

    def __init__(
        self,
        phi: Sequence[float] | Tensor | None = None,
        *,
        impl: Impl = "auto",
        precision: Precision = "fp32",
        **kwargs: Any,
    ) -> None:
        spec = tuple(PhiSpec(f"phi_{k}", 0.0, 1.0, "additive") for k in range(1, 11))
        super().__init__(_DEFAULT if phi is None else phi, spec, impl, precision, **kwargs)

    def statistics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of each parameter's own distance function over all pairs.

        Parameters
        ----------
        outputs
            Embeddings, shape [N, D].
        targets
            Classes, shape [N], any integer dtype.

        Returns
        -------
        Tensor
            Shape [10, 1], unitless: see :func:`ala_metric.ops.distance_statistics`, on Euclidean distances.

        Raises
        ------
        TypeError, ValueError
            As :func:`ala_metric.ops.distance_statistics`.
        """
        rows = _distance.rows(self.distance, outputs.detach())
        return ops.distance_statistics(rows, targets, impl=self.impl, precision=self.precision)[:, None]

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
            ops.distance_mixture(
                x,
                labels,
                phi,
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
        return self.per_anchor(ops.mixture_of_matrix(matrix, positive, negative, phi))

    def partial(
        self, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor | None, phi: Tensor
    ) -> Tensor:
        """Sums of the mixture over the positive and the negative pairs, and the numbers of pairs."""
        means = ops.distance_mixture(
            x, labels, phi, ref_emb=y, ref_labels=ref_labels, impl=self.impl, precision=self.precision
        )
        anchors, others, positives = positive_pairs(labels, ref_labels)
        rows, places = listed_rows(y, others)
        pull = _RowPairs(x, rows, self.impl).mixture(anchors, places, phi[:5], positive=True)
        zero = torch.zeros_like(means)
        negatives = y.shape[0] - positives
        pushed = (means - zero.index_add(0, anchors, pull) / positives.clamp_min(1)) * negatives
        if own is not None:
            foreign = others != own[anchors]
            anchors, pull, positives = anchors[foreign], pull[foreign], positives - 1
        pulled = zero.index_add(0, anchors, pull)
        return torch.stack([pulled, pushed, positives.to(pulled), negatives.to(pulled)])

    def merge(self, partials: Tensor, phi: Tensor) -> Tensor:
        """Means of the pairs of all parts."""
        pulled, pushed, positives, negatives = partials.sum(0)
        return pulled / positives.clamp_min(1) + pushed / negatives.clamp_min(1)

    def foreign_pairs(
        self, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor, phi: Tensor
    ) -> Tensor:
        """Loss per anchor over all references but its own row: one op on CPU, two fused ones on a GPU."""
        if not x.is_cpu:
            return super().foreign_pairs(x, labels, y, ref_labels, own, phi)
        return ops.distance_mixture(
            x,
            labels,
            phi,
            ref_emb=y,
            ref_labels=ref_labels,
            own=own,
            impl=self.impl,
            precision=self.precision,
        )

    def mined(self, pairs: _RowPairs | _MatrixPairs, indices: tuple[Tensor, ...], phi: Tensor) -> LossDict:
        """One loss per triplet, or one per positive and one per negative pair."""
        if len(indices) == 3:
            if all(listed.numel() == 0 for listed in indices):
                return {"loss": self.zero_loss()}
            return {"loss": term(pairs.triplets(*indices, phi), indices, "triplet")}
        found: LossDict = {}
        for name, (anchors, others), weights in (
            ("pos", indices[:2], phi[:5]),
            ("neg", indices[2:], phi[5:]),
        ):
            found[f"{name}_loss"] = self.zero_loss()
            if anchors.numel() + others.numel() > 0:
                values = pairs.mixture(anchors, others, weights, positive=name == "pos")
                found[f"{name}_loss"] = term(values, (anchors, others), f"{name}_pair")
        return found

    def _sub_loss_names(self) -> list[str]:
        return ["loss", "pos_loss", "neg_loss"]
