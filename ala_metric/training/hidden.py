"""What a step changes in a module and its ``state_dict()`` leaves out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._pml import CrossBatchMemory

_QUEUE = ("queue_idx", "has_been_filled")


def hidden_state(part: Any) -> dict[str, Any]:
    """Buffers that are not persistent, and places in the queues of pytorch-metric-learning.

    Parameters
    ----------
    part
        A module; anything else has nothing.

    Returns
    -------
    dict
        Plain data by name, which shares memory with the module.

    Examples
    --------
    >>> import torch
    >>> module = nn.Sequential(nn.Identity())
    >>> module[0].register_buffer("mean", torch.ones(2), persistent=False)
    >>> hidden_state(module)
    {'0.mean': tensor([1., 1.])}
    """
    return {
        f"{prefix}.{name}" if prefix else name: getattr(module, name)
        for prefix, module in _modules(part)
        for name in _names(module)
    }


def restore_hidden(part: Any, state: dict[str, Any]) -> None:
    """Bring back a :func:`hidden_state`, which stays as it is.

    Parameters
    ----------
    part
        The module.
    state
        What it was; names that are missing stay as they are.
    """
    for prefix, module in _modules(part):
        for name in _names(module):
            key = f"{prefix}.{name}" if prefix else name
            if key not in state:
                continue
            mine, value = getattr(module, name), state[key]
            if isinstance(value, Tensor) and isinstance(mine, Tensor):
                if mine.shape == value.shape and mine.dtype == value.dtype:
                    mine.detach().copy_(value)
                    continue
                value = value.to(mine.device)
            setattr(module, name, value.detach().clone() if isinstance(value, Tensor) else value)


def _modules(part: Any) -> list[tuple[str, nn.Module]]:
    return list(part.named_modules()) if isinstance(part, nn.Module) else []


def _names(module: nn.Module) -> list[str]:
    queue = _QUEUE if isinstance(module, CrossBatchMemory) else ()
    return [*sorted(module._non_persistent_buffers_set), *queue]
