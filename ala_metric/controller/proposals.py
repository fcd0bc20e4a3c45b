"""Where new loss parameters come from when nothing was learned: mutations and draws from a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import PhiSpec
from .unit_cube import from_unit, to_unit

MUTATED_SHARE = 0.3
RADIUS = 0.2
LEAST_WEIGHT = 0.25
DECADE = 10.0


def mutation(
    phi_spec: Sequence[PhiSpec], phi: Sequence[float], generator: torch.Generator, radius: float = RADIUS
) -> tuple[float, ...]:
    """A neighbour: some coordinates of the unit cube moved by normal steps, reflected at its walls.

    Each coordinate moves with probability .3, and at least one does.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    phi
        Where to start, in own units.
    generator
        Source of the randomness.
    radius
        Standard deviation of a step, in units of the cube.

    Returns
    -------
    tuple of float
        Parameters inside their ranges.

    Examples
    --------
    >>> spec = (PhiSpec("a", 0.0, 1.0), PhiSpec("b", 0.5, 64.0, "multiplicative"))
    >>> near = mutation(spec, (0.5, 8.0), torch.Generator().manual_seed(0))
    >>> near != (0.5, 8.0), 0.0 <= near[0] <= 1.0, 0.5 <= near[1] <= 64.0
    (True, True, True)
    """
    units = to_unit(phi_spec, phi)
    count = len(units)
    moved = torch.rand(count, generator=generator, dtype=torch.float64) < MUTATED_SHARE
    moved[int(torch.randint(count, (), generator=generator))] = True
    steps = radius * torch.randn(count, generator=generator, dtype=torch.float64)
    period = (units + steps * moved).remainder(2.0)
    return from_unit(phi_spec, torch.minimum(period, 2.0 - period))


def prior_draw(
    phi_spec: Sequence[PhiSpec], groups: Sequence[Sequence[int]], generator: torch.Generator
) -> tuple[float, ...]:
    """A draw that looks at no data.

    Without groups it is uniform in the unit cube, and uniform in the logarithm for additive parameters whose
    range is positive and spans at least a decade, such as class weights. With groups (alternatives of which
    one is enough, such as the distance functions of a mixture) one parameter of each group gets a weight
    between a quarter and the whole of its range, uniform in the logarithm, and the others of the group get
    the low end of theirs; parameters in no group are drawn as without groups.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    groups
        Indices of the parameters of each group.
    generator
        Source of the randomness.

    Returns
    -------
    tuple of float
        Parameters inside their ranges.

    Examples
    --------
    >>> spec = tuple(PhiSpec(f"phi_{k}", 0.0, 1.0) for k in range(4))
    >>> drawn = prior_draw(spec, ((0, 1), (2, 3)), torch.Generator().manual_seed(0))
    >>> sum(value > 0 for value in drawn)
    2
    """
    units = torch.rand(len(phi_spec), generator=generator, dtype=torch.float64)
    for index, spec in enumerate(phi_spec):
        if spec.rule == "additive" and spec.low > 0.0 and spec.high >= DECADE * spec.low:
            units[index] = spec.share(spec.low * (spec.high / spec.low) ** float(units[index]))
    for group in groups:
        pick = group[int(torch.randint(len(group), (), generator=generator))]
        weight = LEAST_WEIGHT ** float(torch.rand((), generator=generator, dtype=torch.float64))
        units[list(group)] = 0.0
        units[pick] = weight
    return from_unit(phi_spec, units)
