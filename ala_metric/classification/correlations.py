"""The matrix Phi of Eq. 6 as a list of actions: one per class, or one per unordered pair of classes."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..types import PhiSpec

DIAGONAL_LOW, HIGHEST = 0.05, 1.0
OFF_DIAGONAL = (-1.0, HIGHEST)


@lru_cache(maxsize=4)
def class_pairs(num_classes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the unordered pairs {i, j}, i = j included, row by row of the upper triangle."""
    rows, columns = torch.triu_indices(num_classes, num_classes, device=device)
    return rows, columns


def first_pairs(num_classes: int, count: int) -> torch.Tensor:
    """``[2, count]`` rows and columns of the first pairs of different classes."""
    return torch.triu_indices(num_classes, num_classes, 1)[:, :count].contiguous()


@lru_cache(maxsize=4)
def pair_places(num_classes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the pairs are in a flat matrix and in its transpose, and which of them are on the diagonal."""
    rows, columns = class_pairs(num_classes, device)
    return rows * num_classes + columns, columns * num_classes + rows, (rows == columns).nonzero()[:, 0]


def action_specs(
    num_classes: int, off_diagonal: bool, off_diagonal_step: float, diagonal_low: float
) -> tuple[PhiSpec, ...]:
    """Name, range and step rule of every action, in the order of :func:`class_pairs`."""
    return tuple(
        PhiSpec(f"phi[{i},{j}]", diagonal_low, HIGHEST)
        if i == j
        else PhiSpec(f"phi[{i},{j}]", *OFF_DIAGONAL, scale=off_diagonal_step)
        for i in range(num_classes)
        for j in range(i, num_classes if off_diagonal else i + 1)
    )


def confusion_specs(count: int, off_diagonal_step: float) -> tuple[PhiSpec, ...]:
    """The same for actions on the most confused pairs."""
    return tuple(PhiSpec(f"confusion[{k}]", *OFF_DIAGONAL, scale=off_diagonal_step) for k in range(count))


def checked_confusions(phi: torch.Tensor, count: int) -> torch.Tensor:
    """Vector of actions on the most confused pairs."""
    if phi.shape != (count,):
        raise ValueError(f"phi must be [{count}], got {list(phi.shape)}")
    slack = max(2e-6, 4 * torch.finfo(phi.dtype).eps)
    return _in_range("phi", phi, OFF_DIAGONAL, slack)


def checked_actions(
    phi: torch.Tensor, num_classes: int, off_diagonal: bool, diagonal_low: float
) -> torch.Tensor:
    """Vector of actions of a matrix or vector Phi; ValueError where it is not one of this loss."""
    length = num_classes * (num_classes + 1) // 2 if off_diagonal else num_classes
    if phi.shape not in ((num_classes, num_classes), (length,)):
        raise ValueError(f"phi must be [{num_classes}, {num_classes}] or [{length}], got {list(phi.shape)}")
    slack = max(2e-6, 4 * torch.finfo(phi.dtype).eps)
    bounds = (diagonal_low, HIGHEST)
    if not off_diagonal:
        if phi.ndim == 2 and int(phi.count_nonzero()) > int(phi.diagonal().count_nonzero()):
            raise ValueError("phi must be diagonal with off_diagonal=False, got a non-zero off-diagonal")
        diagonal = phi.diagonal() if phi.ndim == 2 else phi
        return _in_range("diagonal of phi", diagonal, bounds, slack)
    upper, _, on = pair_places(num_classes, phi.device)
    if phi.ndim == 2 and not float(gap := (phi - phi.T).abs().max()) <= slack:
        raise ValueError(f"phi must be finite and symmetric, got |phi - phi^T| up to {float(gap)}")
    actions = phi.take(upper) if phi.ndim == 2 else phi
    diagonal = _in_range("diagonal of phi", actions[on], bounds, slack)
    # The diagonal lies in the range of the others, so all may be looked at in one go.
    actions = _in_range("off-diagonal of phi", actions, OFF_DIAGONAL, slack)
    actions[on] = diagonal
    return actions


def _in_range(name: str, values: torch.Tensor, bounds: tuple[float, float], slack: float) -> torch.Tensor:
    """A copy, clipped where it is out of range by rounding only; refuse the rest."""
    low, high = bounds
    room = slack * (high - low)
    least, most = values.aminmax()
    if not (least >= low - room and most <= high + room):
        inside = (values >= low - room) & (values <= high + room)
        raise ValueError(f"{name} must lie in [{low}, {high}], got {float(values[~inside][0])}")
    return values.clamp(low, high)
