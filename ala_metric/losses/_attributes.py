"""Numeric attributes of a loss, named by paths such as ``alpha``, ``distance.power`` or ``weights.0``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

# What a loss turns into shapes or tables when it is built: moving it later does nothing, or harm.
_FIXED = {"num_classes", "embedding_size", "memory_size", "queue_idx", "descriptors_dim", "K", "l"} | {
    "delta",
    "min_val",
    "max_n",
    "num_bins",
    "num_edges",
    "sub_centers",
    "centers_per_class",
    "triplets_per_anchor",
}


def _write_circle(loss: Any) -> None:
    """CircleLoss reads four numbers that its constructor derives from ``m``."""
    loss.op, loss.on, loss.delta_p, loss.delta_n = 1 + loss.m, -loss.m, 1 - loss.m, loss.m


_DERIVED: dict[tuple[str, str], Callable[[Any], None]] = {("CircleLoss", "m"): _write_circle}


def read(loss: nn.Module, path: str) -> float:
    """Value of the attribute at ``path``.

    Raises
    ------
    ValueError
        If there is no such attribute, or the loss reads it only when it is built.
    TypeError
        If it is not one number, or is trained by the optimizer.
    """
    owner, name = _find(loss, path)
    value = _items(owner)[name]
    where = f"{type(loss).__name__}.{path}"
    multiplies_angles = name == "margin" and hasattr(owner, "max_n")  # an integer, expanded into a table
    if name in _FIXED or multiplies_angles:
        raise ValueError(f"{where} is read when the loss is built: it cannot be moved, give it there")
    if isinstance(value, nn.Parameter):
        raise TypeError(f"{where} is trained by the optimizer; a parameter of phi must not be")
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor) and value.is_floating_point() and value.unique().numel() == 1:
        return float(value.flatten()[0])
    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise TypeError(f"{where} must be a number, got {shown}")


def write(loss: nn.Module, path: str, value: float) -> None:
    """Set the attribute at ``path``, and what the loss derives from it; a tensor is filled anew."""
    owner, name = _find(loss, path)
    old = _items(owner)[name]
    new = torch.full_like(old, value) if isinstance(old, Tensor) else value
    if isinstance(owner, list):
        owner[int(name)] = new
    elif isinstance(owner, dict):
        owner[name] = new
    else:
        setattr(owner, name, new)
        for kind in type(owner).__mro__:
            _DERIVED.get((kind.__name__, name), lambda _: None)(owner)


def _find(loss: nn.Module, path: str) -> tuple[Any, str]:
    """What holds the last name of ``path``, and that name."""
    owner: Any = loss
    *outer, name = path.split(".")
    for depth, step in enumerate(outer):
        owner = _items(owner).get(step)
        if owner is None:
            raise ValueError(f"{type(loss).__name__} has no attribute {'.'.join(outer[: depth + 1])!r}")
    items = _items(owner)
    if name not in items:
        there = ", ".join(_numbers(items)) or "none"
        raise ValueError(f"{type(loss).__name__} has no attribute {path!r}; numbers there: {there}")
    return owner, name


def _items(owner: Any) -> dict[str, Any]:
    """Attributes of a module, or elements of a list or dictionary."""
    if isinstance(owner, list):
        return {str(index): item for index, item in enumerate(owner)}
    if isinstance(owner, dict):
        return owner
    if isinstance(owner, nn.Module):
        return vars(owner) | owner._parameters | owner._buffers | owner._modules
    return {}


def _numbers(items: dict[str, Any]) -> Iterable[str]:
    for name, value in items.items():
        if isinstance(value, Real) and not isinstance(value, bool) and name[0] != "_" and name not in _FIXED:
            yield name
