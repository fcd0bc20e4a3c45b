"""How early static parameters rank: many runs with the same start and batches, scored on the way."""

from __future__ import annotations

from typing import Any

from .tasks import Problem, Task
from .trial import Trial, prior_draws

ARMS = 30
SHARES = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)


def ranks(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
    """Validation scores at shares of the run, and the final test metric, of each static draw."""
    draws = prior_draws(task, problem, seed, ARMS)
    scores, finals = [], []
    found: dict[str, Any] = {}
    for phi in draws:
        trial = Trial(task, problem, seed)
        at = {max(1, round(share * task.steps)) for share in SHARES}
        row: list[float] = []

        def look(step: int, loss: float, trial: Trial = trial, row: list[float] = row, at: Any = at) -> None:
            if step in at:
                row.append(trial.score())

        trial.fit(trial.adaptive(phi=phi).loss, on_step=look)
        found = trial.outcome(float(ARMS))
        scores.append(row)
        finals.append(next(iter(found["metrics"].values())))
    return found | {"draws": draws, "scores": scores, "finals": finals}
