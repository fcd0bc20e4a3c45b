"""What a run with children did, as the history of its winner and as the story of all arms."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..training import ArmRecord, FitResult


def of_the_winner(result: FitResult) -> list[dict[str, Any]]:
    """One record per measured rung or fork, of the line that leads to the final weights.

    The last stage is left out: it is measured by another metric than the rungs.
    """
    lines: list[tuple[int, ArmRecord]] = []
    wanted = None
    for stage in reversed(result.records):
        arm = next(row for row in stage.arms if (row.lives if wanted is None else row.number == wanted))
        lines.append((stage.end, arm))
        wanted = arm.parent
    found = []
    for step, arm in reversed(lines[1:]):
        if arm.metric is not None:
            found.append(
                {
                    "step": step,
                    "metric": arm.metric,
                    "error": None,
                    "reward": arm.reward,
                    "action": [None] * len(arm.phi),
                    "phi": list(arm.phi),
                    "entropy": None,
                    "seconds": None,
                }
            )
    return found


def of_all(result: FitResult, steps: int) -> dict[str, Any]:
    """Every stage with its arms, and the compute."""
    return {
        "compute": result.compute.state_dict() | {"trainings": result.compute.in_units_of(steps)},
        "phi_history": [[step, list(phi)] for step, phi in result.phi_history],
        "stages": [asdict(record) for record in result.records],
    }
