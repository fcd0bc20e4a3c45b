"""Floor 1: the published action space, shared by the controller and the random baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .types import PhiSpec

DIRECTIONS = (-1, 0, 1)


def allowed_actions(phi_spec: Sequence[PhiSpec], phi: Sequence[float], beta: float) -> torch.Tensor:
    """Actions that keep each parameter in its range; staying is always allowed.

    Parameters
    ----------
    phi_spec, phi
        Ranges and current values, one per parameter.
    beta
        Step size.

    Returns
    -------
    torch.Tensor
        ``[n_params, 3]`` bool for the steps -beta, 0, +beta.

    Examples
    --------
    >>> allowed_actions([PhiSpec("a", 0.0, 1.0)], [0.95], beta=0.1).tolist()
    [[True, True, False]]
    """
    rows = [
        [way == 0 or spec.allows(value, way * beta) for way in DIRECTIONS]
        for spec, value in zip(phi_spec, phi)
    ]
    return torch.tensor(rows, dtype=torch.bool, device="cpu").reshape(-1, len(DIRECTIONS))


def take_actions(
    phi_spec: Sequence[PhiSpec], phi: Sequence[float], choice: torch.Tensor, beta: float
) -> tuple[list[float], list[float]]:
    """Move each parameter by its chosen action (Sec. 3.2, "Action space").

    Parameters
    ----------
    phi_spec, phi
        Ranges and current values, one per parameter.
    choice
        ``[n_params]`` int64: 0 is -beta, 1 is no step, 2 is +beta.
    beta
        Step size; a multiplicative parameter is multiplied by ``exp(+-beta)``.

    Returns
    -------
    phi : list of float
        New values, inside their ranges.
    action : list of float
        The step of each parameter: -beta, 0 or +beta.

    Examples
    --------
    >>> take_actions([PhiSpec("a", 0.0, 1.0)], [0.5], torch.tensor([2]), beta=0.25)
    ([0.75], [0.25])
    """
    action = [DIRECTIONS[index] * beta for index in choice.tolist()]
    moved = [
        spec.clip(spec.step(value, size)) if size else value
        for spec, value, size in zip(phi_spec, phi, action)
    ]
    return moved, action
