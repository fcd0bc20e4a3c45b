"""Loss parameters of every kind as points of one unit cube."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import PhiSpec


def to_unit(phi_spec: Sequence[PhiSpec], phi: Sequence[float]) -> torch.Tensor:
    """Place of each parameter in its range, 0 at its low and 1 at its high end.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter; a multiplicative range is measured in logarithms.
    phi
        Parameters in their own units; values outside the range are clipped.

    Returns
    -------
    torch.Tensor
        ``[n_params]`` float64 in [0, 1].

    Examples
    --------
    >>> to_unit((PhiSpec("a", 0.0, 4.0), PhiSpec("b", 0.5, 50.0, "multiplicative")), (1.0, 5.0)).tolist()
    [0.25, 0.5]
    """
    shares = [spec.share(spec.clip(value)) for spec, value in zip(phi_spec, phi, strict=True)]
    return torch.tensor(shares, dtype=torch.float64, device="cpu")


def from_unit(phi_spec: Sequence[PhiSpec], units: torch.Tensor) -> tuple[float, ...]:
    """Parameters at a point of the unit cube: the inverse of :func:`to_unit`.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    units
        ``[n_params]``; values outside [0, 1] are clipped.

    Returns
    -------
    tuple of float
        Parameters in their own units, inside their ranges.

    Examples
    --------
    >>> spec = (PhiSpec("a", 0.0, 4.0), PhiSpec("b", 0.25, 4.0, "multiplicative"))
    >>> from_unit(spec, torch.tensor([0.25, 0.5]))
    (1.0, 1.0)
    """
    return tuple(spec.value(share) for spec, share in zip(phi_spec, units.tolist(), strict=True))
