"""Floor 1: the parameters of an adaptive loss as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def read_phi(loss: Any) -> list[float]:
    """Parameters of a loss in the order of its ``phi_spec``.

    Parameters
    ----------
    loss
        An :class:`AdaptiveLoss`; where ``phi`` has another size than ``phi_spec``, its ``phi_vector`` counts.

    Returns
    -------
    list of float
        One number per parameter.

    Raises
    ------
    ValueError
        If neither has as many elements as ``phi_spec``.
    """
    count = len(loss.phi_spec)
    phi = loss.phi
    if phi.numel() != count:
        phi = getattr(loss, "phi_vector", phi)
    values: list[float] = phi.detach().double().flatten().tolist()
    if len(values) != count:
        raise ValueError(f"loss.phi must have {count} elements as phi_spec, got {len(values)}")
    return values


def read_vector(loss: Any) -> torch.Tensor:
    """The same as a tensor ``[n]`` on the CPU, where there are too many for a list."""
    phi = loss.phi if loss.phi.numel() == len(loss.phi_spec) else loss.phi_vector
    return phi.detach().flatten().to("cpu", torch.float32)


def write_phi(loss: Any, values: Sequence[float] | torch.Tensor) -> None:
    """Set the parameters of a loss, if they differ; ValueError as its ``set_phi``."""
    if isinstance(values, torch.Tensor):
        loss.set_phi(values.to(loss.phi))
        return
    if list(values) != read_phi(loss):
        loss.set_phi(torch.tensor(values, dtype=loss.phi.dtype, device=loss.phi.device))
