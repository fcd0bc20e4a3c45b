"""Floor 1: rank 0 decides, all ranks know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def rank(group: Any = None) -> int:
    """Rank of this process (in a group); 0 when torch.distributed is not in use."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """Number of processes; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def on_rank_zero(work: Callable[[], Result]) -> Result:
    """Run ``work`` on rank 0 and hand its result to every rank.

    Parameters
    ----------
    work
        Called on rank 0 only; its result must be picklable. Must not use collectives.

    Returns
    -------
    Result
        The same on every rank.

    Raises
    ------
    RuntimeError
        On the other ranks, if ``work`` raised on rank 0 (there the error itself is raised).

    Examples
    --------
    >>> on_rank_zero(lambda: 42)
    42
    """
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    box: list[Any] = [None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            box = [(work(), "")]
        except Exception as error:
            failure = error
            box = [(None, f"{type(error).__name__}: {error}")]
    dist.broadcast_object_list(box, src=0)
    result, message = box[0]
    if failure is not None:
        raise failure
    if message:
        raise RuntimeError(f"rank 0 failed: {message}")
    return result
