"""The five increasing and five decreasing distance functions of the mixture, with their slopes.

The paper's supplement with its own five shapes is not public; these are ours (see
:func:`ala_metric.ops.distance_mixture`). Each slope stands below its function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

KNEE = 0.1  # 0.5/d and -log(d/2) are continued by their tangent below this distance
_SHARPNESS = 6.0


def _softplus(z: Tensor) -> Tensor:
    # not torch.nn.functional.softplus: that one turns linear above 20, an error of 2e-9
    return torch.logaddexp(z, torch.zeros((), dtype=z.dtype, device=z.device))


def positive_functions(d: Tensor) -> tuple[Tensor, ...]:
    """F+_1 ... F+_5: increasing, applied to distances of positive pairs."""
    return (
        d * d,
        d,
        torch.sqrt(d + 0.01) - 0.1,
        0.5 * d * d * d,
        _softplus(_SHARPNESS * (d - 0.8)) / _SHARPNESS,
    )


def positive_slopes(d: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of :func:`positive_functions`."""
    return (
        2 * d,
        torch.ones_like(d),
        0.5 / torch.sqrt(d + 0.01),
        1.5 * d * d,
        torch.sigmoid(_SHARPNESS * (d - 0.8)),
    )


def negative_functions(d: Tensor) -> tuple[Tensor, ...]:
    """F-_1 ... F-_5: decreasing, applied to distances of negative pairs."""
    safe = d.clamp_min(KNEE)
    below = d - safe  # 0 above the knee, negative below it
    return (
        0.5 / safe - 0.5 / KNEE**2 * below,
        2 - d,
        math.log(2) - torch.log(safe) - below / KNEE,
        2 * torch.exp(-2 * d),
        _softplus(_SHARPNESS * (1.2 - d)) / _SHARPNESS,
    )


def negative_slopes(d: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of :func:`negative_functions`."""
    safe = d.clamp_min(KNEE)
    return (
        -0.5 / (safe * safe),
        -torch.ones_like(d),
        -1 / safe,
        -4 * torch.exp(-2 * d),
        -torch.sigmoid(_SHARPNESS * (1.2 - d)),
    )


def weighted(functions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k weights[k] * functions[k]``."""
    total = weights[0] * functions[0]
    for k in range(1, len(functions)):
        total = total + weights[k] * functions[k]
    return total


def mixture_of_distance(distance: Tensor, phi: Tensor, *, positive: bool) -> Tensor:
    r"""The mixture of five functions of each distance (Huang et al., ICML 2019, Eq. 9).

    .. math:: f(d) = \sum_{k=1}^{5} \phi_k F^{\pm}_k(d)

    with the functions listed at :func:`distance_mixture`.

    Parameters
    ----------
    distance
        Distances, any shape, float32 or float64.
    phi
        Weights, shape [5].
    positive
        Whether the increasing or the decreasing functions apply.

    Returns
    -------
    Tensor
        Same shape as ``distance``, unitless; differentiable.

    Raises
    ------
    IndexError
        If ``phi`` is shorter than five.

    Examples
    --------
    >>> mixture_of_distance(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0, 0, 0, 0]), positive=True)
    tensor([0.2500, 1.0000])
    """
    return weighted((positive_functions if positive else negative_functions)(distance), phi)
