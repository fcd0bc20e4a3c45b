"""A queue of past embeddings as references, without lists of pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import _pml
from .._gather import gather_rows, row_counts, world_size
from .._pml import loss_and_miner_utils
from .._ranks import rank
from ..ops._check import check_embeddings, check_labels, known_values
from . import _distance
from ._base import check_rows, needed
from ._wrapper import PassesPhiOn, all_pairs, is_fused, part_named, reduce, refuse_joined

Indices = tuple[Tensor, ...]


class CrossBatchMemory(PassesPhiOn, _pml.CrossBatchMemory):
    r"""Pairs of the batch with a queue of past embeddings (Wang et al., CVPR 2020), for every loss.

    The batch enters the queue, and its rows are the anchors; the references :math:`Q` are all rows of the
    queue, less the anchor's own:

    .. math:: L = \operatorname{reduce}_i\; l(x_i,\; Q \setminus \{x_i\})

    Queued rows are constants. The adaptive pair losses of this package see the queue as a reference set, in
    :math:`O((N + Q) D)` memory and a list of the positive pairs. Every other loss gets lists of all pairs, as
    in pytorch-metric-learning, whose class of the same name this one replaces.

    Parameters
    ----------
    loss
        Any loss that takes ``(embeddings, labels, indices_tuple, ref_emb, ref_labels)``. To adapt it, put
        ``ALALoss`` around the memory.
    embedding_size
        Dimensions of an embedding.
    memory_size
        Rows of the queue.
    miner
        Chooses pairs or triplets of (batch, queue); pairs are lists then.
    synchronize
        Under torch.distributed, let the batches of all ranks enter, in the order of the ranks: all ranks have
        the same queue. The loss is that of one process with the joined batch, on every rank, and so are
        gradients that are averaged over the ranks (DistributedDataParallel).

    Raises
    ------
    ValueError
        For sizes below 1, a batch larger than the queue, ``indices_tuple`` with ``enqueue_mask``, and a state
        with another queue.
    TypeError
        For a loss that is or holds a ``DistributedLoss`` or another ``CrossBatchMemory``; and, if the ranks
        are to be joined here, for a call from pytorch-metric-learning's ``DistributedLossWrapper``.

    Notes
    -----
    ``forward(embeddings, labels, indices_tuple=None, enqueue_mask=None)``. ``indices_tuple`` names rows of
    the (joined) batch and adds to the pairs with the queue. With ``enqueue_mask`` [N] the marked rows enter
    the queue and the others are the anchors (a momentum encoder). For fused losses the queue holds rows as
    the distance compares them, usually normalised. ``state_dict()`` has the queue and its position.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.CrossBatchMemory(losses.DistanceMixtureLoss(), embedding_size=4, memory_size=8)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> [round(loss_fn(torch.eye(4), labels).item(), 4) for _ in range(2)]
    [2.3536, 1.6869]
    """

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: int
    has_been_filled: bool

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Callable[..., Indices] | None = None,
        *,
        synchronize: bool = True,
    ) -> None:
        for name, value in (("embedding_size", embedding_size), ("memory_size", memory_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not isinstance(loss, nn.Module):
            raise TypeError(
                f"loss must be a loss of pytorch-metric-learning or ours, got {type(loss).__name__}"
            )
        held = part_named(loss, "DistributedLoss", "DistributedLossWrapper", "CrossBatchMemory")
        if held is not None:
            raise TypeError(
                f"loss is or holds a {held}; CrossBatchMemory joins the ranks itself (synchronize=True): "
                "give it the loss inside"
            )
        super().__init__(loss, embedding_size, memory_size, miner)
        self.synchronize = synchronize
        self._graphs = self._held = 0

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Admit every loss."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Indices | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """Loss of the batch against the queue, which the batch has entered."""
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("indices_tuple and enqueue_mask are mutually exclusive")
        check_rows(embeddings, labels, "embeddings", "labels")
        self.reset_stats()
        if embeddings.shape[1] != self.embedding_size:
            found = embeddings.shape[1]
            raise ValueError(
                f"embeddings must have {self.embedding_size} columns (embedding_size), got {found}"
            )
        labels = needed(labels).to(embeddings.device)
        labels = check_labels(labels, embeddings, "labels", "embeddings")
        entering = torch.ones_like(labels) if enqueue_mask is None else enqueue_mask.to(labels)
        if entering.shape != labels.shape:
            raise ValueError(f"enqueue_mask must have shape [{len(labels)}], got {tuple(entering.shape)}")
        together = self.synchronize and world_size() > 1
        if together:
            refuse_joined("use CrossBatchMemory without it, or with synchronize=False")
        listed = not is_fused(self.loss) or self.miner is not None or indices_tuple is not None
        if together and listed:  # every rank then does what one process would do
            counts = row_counts(labels)
            embeddings, labels, entering = (gather_rows(v, counts) for v in (embeddings, labels, entering))
        rows = _distance.rows(self.loss.distance, embeddings) if is_fused(self.loss) else embeddings
        if is_fused(self.loss):
            check_embeddings(rows, "embeddings")  # NaN must not enter the queue
        slots = self._enqueue(rows.detach(), labels, entering.bool(), together and not listed)
        own = slots if enqueue_mask is None else None
        if enqueue_mask is not None:
            rows, embeddings, labels = (v[entering == 0] for v in (rows, embeddings, labels))
        filled = self.memory_size if self.has_been_filled else self.queue_idx
        queue, queue_labels = self.embedding_memory[:filled], self.label_memory[:filled]
        self._graphs += 1
        self._held = self._graphs if torch.is_grad_enabled() else 0
        if listed:
            lists = self._lists(embeddings, labels, queue, queue_labels, indices_tuple, own)
            return self._watched(self.loss(embeddings, labels, lists, queue, queue_labels))
        with known_values():
            losses = self._watched(all_pairs(self.loss, rows, labels, queue, queue_labels, own))
        return reduce(self.loss, losses, embeddings, labels, together)

    def _watched(self, losses: Any) -> Any:
        """The losses of the latest graph, whose backward pass sets the queue free."""
        if isinstance(losses, Tensor) and losses.requires_grad:
            losses.register_hook(partial(self._release, self._graphs))
        return losses

    def _release(self, graph: int, _: Tensor) -> None:
        """Called by the backward pass of a graph; the queue is free if that was the latest one."""
        if self._held == graph:
            self._held = 0

    @torch.inference_mode(False)  # a queue made in that mode could not be trained with
    @torch.no_grad()
    def _enqueue(self, rows: Tensor, labels: Tensor, entering: Tensor, together: bool) -> Tensor:
        """Put the marked rows into the queue; slot of each row of this rank, -1 where it did not enter."""
        start, count = 0, len(labels)
        if together:
            counts = row_counts(labels)
            start = sum(counts[: rank()])
            rows, labels = gather_rows(rows, counts), gather_rows(labels, counts)
            entering = gather_rows(entering.long(), counts).bool()
        new = int(entering.sum())
        if new > self.memory_size:
            raise ValueError(f"memory_size={self.memory_size} is too small for {new} new rows")
        slots = torch.where(entering, self.queue_idx + entering.cumsum(0) - 1, -1)
        slots = torch.where(entering, slots % self.memory_size, -1)
        if self._held > 0 or self.embedding_memory.is_inference():
            # a graph that waits for its backward pass needs the queue as it was; the other cannot be written
            self.embedding_memory, self.label_memory = (
                self.embedding_memory.clone(),
                self.label_memory.clone(),
            )
        self._held = 0
        self.embedding_memory = self.embedding_memory.to(rows).index_copy_(0, slots[entering], rows[entering])
        self.label_memory = self.label_memory.to(labels).index_copy_(0, slots[entering], labels[entering])
        self.has_been_filled = self.has_been_filled or self.queue_idx + new >= self.memory_size
        self.queue_idx = (self.queue_idx + new) % self.memory_size
        return slots[start : start + count]

    def _lists(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queue: Tensor,
        queue_labels: Tensor,
        given: Indices | None,
        own: Tensor | None,
    ) -> Indices:
        """Pairs or triplets of (batch, queue) without the pairs of a row with itself, and the given ones."""
        lists: Indices
        if self.miner is not None:
            lists = self.miner(embeddings, labels, queue, queue_labels)
        else:
            lists = loss_and_miner_utils.get_all_pairs_indices(labels, queue_labels)
        if own is None:
            return lists
        anchors, positives, *rest = (v.long() for v in lists)
        foreign = positives != own[anchors]
        rest = [v[foreign] for v in rest] if len(rest) == 1 else rest
        lists = (anchors[foreign], positives[foreign], *rest)
        if given is None:
            return lists
        if len(lists) == 4:
            given = loss_and_miner_utils.convert_to_pairs(given, labels)
        else:
            given = loss_and_miner_utils.convert_to_triplets(given, labels)
        others = (1, 3) if len(lists) == 4 else (1, 2)
        placed = (own[v.long()] if k in others else v.long() for k, v in enumerate(given))
        return tuple(torch.cat(both) for both in zip(lists, placed))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        queue = state_dict.get(prefix + "embedding_memory")
        if queue is not None and queue.shape != self.embedding_memory.shape:
            rows, columns = queue.shape
            raise ValueError(
                f"the state has memory_size={rows} and embedding_size={columns}, this memory has "
                f"memory_size={self.memory_size} and embedding_size={self.embedding_size}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> dict[str, Any]:
        """Position in the queue, part of ``state_dict()``."""
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`get_extra_state`."""
        self.queue_idx, self.has_been_filled = int(state["queue_idx"]), bool(state["has_been_filled"])
        if not 0 <= self.queue_idx < self.memory_size:
            raise ValueError(f"queue_idx must lie in [0, {self.memory_size - 1}], got {self.queue_idx}")
