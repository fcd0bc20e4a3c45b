"""What wrappers share: they pass the adaptive protocol on, and reduce what they computed themselves."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from .._gather import Group, gather_rows, row_counts
from ..types import PhiSpec
from . import _distance
from ._base import AdaptivePairLoss


class PassesPhiOn:
    """The members of ``AdaptiveLoss``, taken from the wrapped loss where it has them."""

    loss: Any

    @property
    def phi(self) -> Tensor:
        """Parameters of the wrapped loss."""
        return self.loss.phi

    @property
    def phi_spec(self) -> tuple[PhiSpec, ...]:
        """Ranges and step rules of the wrapped loss."""
        return self.loss.phi_spec

    @property
    def set_phi(self) -> Any:
        """The wrapped loss's way to replace its parameters."""
        return self.loss.set_phi

    @property
    def statistics(self) -> Any:
        """The wrapped loss's validation statistics."""
        return self.loss.statistics

    @property
    def statistics_width(self) -> int | None:
        """Statistics per parameter, where the wrapped loss declares them."""
        return getattr(self.loss, "statistics_width", None)

    @property
    def parameter_identity(self) -> bool:
        """Whether a policy must tell the parameters apart."""
        return bool(getattr(self.loss, "parameter_identity", False))


def part_named(loss: nn.Module, *names: str) -> str | None:
    """The first of these classes, or of those that derive from them, that the loss is or holds."""
    kinds = [kind.__name__ for part in loss.modules() for kind in type(part).__mro__]
    return next((name for name in names if name in kinds), None)


def refuse_joined(instead: str) -> None:
    """TypeError in a call of pytorch-metric-learning's DistributedLossWrapper: it has joined the rows."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_globals.get("__name__") == "pytorch_metric_learning.utils.distributed":
            raise TypeError(f"DistributedLossWrapper has joined the rows of the ranks already: {instead}")


def is_fused(loss: Any) -> bool:
    """Whether the loss of all pairs with some references runs without a matrix or a list of them."""
    return isinstance(loss, AdaptivePairLoss) and _distance.is_euclidean(loss.distance)


def all_pairs(
    loss: AdaptivePairLoss, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, own: Tensor | None
) -> Tensor:
    """Loss per anchor [N] over all references but the anchor's own row, between rows as they are."""
    phi = loss.phi.to(x.device, copy=True)  # a later set_phi must not reach this graph
    if own is None:
        terms = loss.all_pairs(x, labels, y, ref_labels, phi)
        losses: Tensor = terms["loss"]["losses"]
        return losses
    return loss.foreign_pairs(x, labels, y, ref_labels, own, phi)


def reduce(
    loss: AdaptivePairLoss,
    losses: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    together: bool,
    group: Group = None,
) -> Any:
    """What ``forward`` of pytorch-metric-learning does with loss terms; ``together``: with all ranks'."""
    loss.reset_stats()
    if together:
        counts = row_counts(labels, group)
        losses, labels = gather_rows(losses, counts, group), gather_rows(labels, counts, group)
        if loss.embedding_regularizer is not None:
            embeddings = gather_rows(embeddings, counts, group)
    terms = {"loss": loss.zero_loss()} if losses.shape[0] == 0 else loss.per_anchor(losses)
    loss.add_embedding_regularization_to_loss_dict(terms, embeddings)
    return loss.reducer(terms, embeddings, labels)
