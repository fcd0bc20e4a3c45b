"""The loss of the joined batch of all ranks, with its exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._gather import Group, gather_rows, pass_on, row_counts, world_size
from .._ranks import rank
from ..ops._check import check_labels
from . import _distance
from ._base import AdaptivePairLoss, check_rows
from ._wrapper import PassesPhiOn, all_pairs, is_fused, part_named, reduce, refuse_joined

Indices = tuple[Tensor, ...]
_JOINED = "the ranks are joined in there: give the loss inside"
_INSTEAD = {
    "CrossBatchMemory": "ours joins the ranks itself (synchronize=True): use it without wrapper",
    "SelfSupervisedLoss": "write SelfSupervisedLoss(DistributedLoss(loss))",
    "DistributedLoss": _JOINED,
    "DistributedLossWrapper": _JOINED,
}


class DistributedLoss(PassesPhiOn, nn.Module):
    r"""A loss under torch.distributed, as one process would compute it from the batches of all ranks.

    .. math:: L_r = L\big([x_1; \ldots; x_W],\; [y_1; \ldots; y_W]\big) \quad \text{on every rank } r

    The reported loss is that of one process, whatever the reducer and also for uneven batches. Gradients that
    are averaged over the ranks, as DistributedDataParallel does, are those of one process; summed, they are W
    times as large.

    Parameters
    ----------
    loss
        Any loss that takes ``(embeddings, labels, indices_tuple, ref_emb, ref_labels)``. The adaptive pair
        losses of this package compare the rank's own anchors with all rows; every other loss is computed for
        all rows on every rank. To adapt it, put ``ALALoss`` around this wrapper.
    ring
        Never hold the rows of all ranks: they travel around, in the forward and in the backward pass, one
        rank's batch at a time. Only for the adaptive pair losses, without a miner; an embedding regularizer
        still gathers.
    miner
        Called as ``miner(embeddings, labels)`` (and with references, where given) on the rows of all ranks.
    group
        The ranks that share a batch, such as ``mesh.get_group("data")``; None for all.

    Raises
    ------
    TypeError
        For a loss that is or holds a ``CrossBatchMemory`` or another ``DistributedLoss``, which join the
        ranks themselves, or a ``SelfSupervisedLoss``, which belongs around this wrapper; and for a call from
        pytorch-metric-learning's ``DistributedLossWrapper``.
    ValueError
        If ``ring`` cannot be had.
    NotImplementedError
        In a backward pass with ``create_graph=True`` through ``ring=True``.

    Notes
    -----
    ``forward(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``. Rows stand in the
    order of the ranks; ``indices_tuple`` names rows of the joined batch. Without torch.distributed this is
    the loss itself.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.DistributedLoss(losses.DistanceMixtureLoss())
    >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(2.3536)
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        ring: bool = False,
        miner: Callable[..., Indices] | None = None,
        group: Group = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(
                f"loss must be a loss of pytorch-metric-learning or ours, got {type(loss).__name__}"
            )
        held = part_named(loss, *_INSTEAD)
        if held is not None:
            raise TypeError(f"loss is or holds a {held}: {_INSTEAD[held]}")
        if ring and not (is_fused(loss) and miner is None):
            raise ValueError(
                "ring=True needs an adaptive pair loss with a Euclidean distance and no miner, "
                f"got {type(loss).__name__} and miner={miner!r}"
            )
        self.loss: Any = loss
        self.ring, self.miner, self.group = ring, miner, group

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Indices | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """Loss of the joined batch."""
        check_rows(embeddings, labels, "embeddings", "labels")
        plain = indices_tuple is None and self.miner is None and ref_emb is None and labels is not None
        if self.ring and not plain:
            raise ValueError("ring=True needs labels, and neither indices_tuple nor references")
        if world_size(self.group) > 1:
            refuse_joined("use DistributedLoss without it")
        if world_size(self.group) > 1 and plain and is_fused(self.loss):
            return self._of_own_anchors(embeddings, labels)
        embeddings, labels = _joined(embeddings, labels, self.group)
        if ref_emb is not None:
            ref_emb, ref_labels = _joined(ref_emb, ref_labels, self.group)
        if self.miner is not None:
            references = () if ref_emb is None else (ref_emb, ref_labels)
            indices_tuple = self.miner(embeddings, labels, *references)
        return self.loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def _of_own_anchors(self, embeddings: Tensor, labels: Any) -> Any:
        labels = check_labels(labels.to(embeddings.device), embeddings, "labels", "embeddings")
        rows = _distance.rows(self.loss.distance, embeddings)
        group = self.group
        counts = row_counts(labels, group)
        if self.ring:
            phi = self.loss.phi.to(rows.device, copy=True)
            losses = _Ring.apply(rows, labels, phi, self.loss, counts, group)
        else:
            own = sum(counts[: rank(group)]) + torch.arange(len(labels), device=labels.device)
            every = gather_rows(rows, counts, group), gather_rows(labels, counts, group)
            losses = all_pairs(self.loss, rows, labels, *every, own)
        return reduce(self.loss, losses, embeddings, labels, together=True, group=group)


def _joined(rows: Tensor, labels: Tensor | None, group: Group) -> tuple[Tensor, Tensor | None]:
    counts = row_counts(rows, group)
    if labels is not None:
        labels = gather_rows(labels.to(rows.device), counts, group)
    return gather_rows(rows, counts, group), labels


class _Ring(torch.autograd.Function):
    """Loss of the own anchors [N]; the blocks of the other ranks come by one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        labels: Tensor,
        phi: Tensor,
        loss: AdaptivePairLoss,
        counts: list[int],
        group: Group,
    ) -> Tensor:
        found = []
        for block, block_labels, own, _ in _blocks(x, labels, counts, None, group):
            found.append(loss.partial(x, labels, block, block_labels, own, phi))
        partials = torch.stack(found)
        ctx.loss, ctx.counts, ctx.group = loss, counts, group
        ctx.save_for_backward(x, labels, phi, partials)
        return loss.merge(partials, phi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "DistributedLoss(ring=True) is differentiable once; use ring=False and a loss with "
                "impl='reference' for more"
            )
        x, labels, phi, partials = ctx.saved_tensors
        with torch.enable_grad():
            leaves = partials.detach().requires_grad_()
            (weights,) = torch.autograd.grad(ctx.loss.merge(leaves, phi), leaves, grad)
        grad_x = torch.zeros_like(x)
        travelling = [torch.zeros_like(x)]  # the gradient of a block goes around with it, and home at the end
        blocks = _blocks(x, labels, ctx.counts, travelling, ctx.group)
        for k, (block, block_labels, own, grads) in enumerate(blocks):
            with torch.enable_grad():
                anchors, others = x.detach().requires_grad_(), block.detach().requires_grad_()
                partial = ctx.loss.partial(anchors, labels, others, block_labels, own, phi)
                mine, theirs = torch.autograd.grad(partial, (anchors, others), weights[k])
            grad_x += mine
            grads[0] += theirs
        return grad_x + travelling[0], None, None, None, None, None


def _blocks(
    x: Tensor, labels: Tensor, counts: list[int], travelling: list[Tensor] | None, group: Group
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, list[Tensor]]]:
    """Rows and labels of this rank, then those of the ranks before it; ``travelling`` goes with them."""
    own: Tensor | None = torch.arange(len(labels), device=labels.device)
    block = [x, labels]
    for step in range(1, len(counts) + 1):
        yield block[0], block[1], own, travelling or []
        rows = counts[(rank(group) - step) % len(counts)]
        own = None
        if step < len(counts):
            block = pass_on(block, rows, group)
        if travelling is not None:
            travelling[:] = pass_on(travelling, rows, group)
