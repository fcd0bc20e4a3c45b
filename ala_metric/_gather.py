"""Floor 1: rows of all ranks, with their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any
"""A process group of torch.distributed; None for all ranks."""


def world_size(group: Group = None) -> int:
    """Number of ranks; 1 when torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def row_counts(x: Tensor, group: Group = None) -> list[int]:
    """Rows of every rank's ``x``, by rank."""
    if world_size(group) == 1:
        return [x.shape[0]]
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size(group))]
    dist.all_gather(counts, torch.tensor([x.shape[0]], device=x.device), group=group)
    return [int(count) for count in counts]


def gather_rows(x: Tensor, counts: Sequence[int], group: Group = None) -> Tensor:
    """Rows of all ranks, in the order of the ranks; the backward pass sums the ranks' gradients.

    Parameters
    ----------
    x
        Rows of this rank, shape [counts[rank], ...].
    counts
        Of :func:`row_counts`; they may differ.
    group
        The ranks; None for all.

    Returns
    -------
    Tensor
        Shape [sum(counts), ...]. A loss that every rank computes from it in full so has ``world_size`` times
        its gradient with respect to ``x``, which averaging over the ranks, as DistributedDataParallel does,
        turns into the gradient.
    """
    if world_size(group) == 1:
        return x
    result: Tensor = _Gather.apply(x, list(counts), group)
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _OwnOfSum.apply(grad, ctx.counts, ctx.group), None, None


class _OwnOfSum(torch.autograd.Function):
    """Of the sum over the ranks the rows of this one; each of the two is the backward pass of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        rank = dist.get_rank(group)
        start = sum(counts[:rank])
        return total[start : start + counts[rank]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grad, ctx.counts, ctx.group), None, None


def pass_on(tensors: Sequence[Tensor], rows: int, group: Group = None) -> list[Tensor]:
    """Send tensors to the next rank and receive those of the previous one, which have ``rows`` rows."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    after, before = (rank + 1) % ranks, (rank - 1) % ranks
    if group is not None:
        after, before = dist.get_global_rank(group, after), dist.get_global_rank(group, before)
    received = [tensor.new_empty(rows, *tensor.shape[1:]) for tensor in tensors]
    work = [dist.P2POp(dist.isend, tensor.contiguous(), after, group) for tensor in tensors]
    work += [dist.P2POp(dist.irecv, tensor, before, group) for tensor in received]
    for request in dist.batch_isend_irecv(work):
        request.wait()
    return received
