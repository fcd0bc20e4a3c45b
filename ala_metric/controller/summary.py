"""What is kept of a controller step with too many parameters to list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..types import PhiSpec

FARTHEST = 8


def summary_of(
    phi: torch.Tensor, action: Sequence[float] | torch.Tensor, start: torch.Tensor, specs: Sequence[PhiSpec]
) -> dict[str, Any]:
    """A step in a few numbers, however many parameters there are.

    Parameters
    ----------
    phi, start
        Parameters ``[n]`` after the step and at the beginning of the run.
    action
        The step of each, ``[n]``; empty where none was taken.
    specs
        Their names.

    Returns
    -------
    dict
        ``mean``, ``std`` (of the population), ``min``, ``max`` of the parameters; ``up``, ``down``, the
        shares that moved; and ``farthest``, the values by name of the 8 that are farthest from the start.

    Examples
    --------
    >>> specs = [PhiSpec(name, 0.0, 1.0) for name in "abc"]
    >>> found = summary_of(torch.tensor([1.0, 0.5, 0.0]), (0.0, -0.5, 0.0), torch.ones(3), specs)
    >>> found["mean"], found["down"], list(found["farthest"])
    (0.5, 0.3333333333333333, ['c', 'b'])
    """
    way = torch.as_tensor(action)
    count = max(len(phi), 1)
    moved = (phi - start).abs()
    far = moved.topk(min(FARTHEST, len(phi))).indices
    low, high = phi.aminmax()
    return {
        "mean": float(phi.mean()),
        "std": float(phi.std(correction=0)),
        "min": float(low),
        "max": float(high),
        "up": int((way > 0).sum()) / count,
        "down": int((way < 0).sum()) / count,
        "farthest": {specs[place].name: float(phi[place]) for place in far[moved[far] > 0].tolist()},
    }
