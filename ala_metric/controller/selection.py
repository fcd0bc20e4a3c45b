"""Comparing siblings: rewards relative to each other, who lives, and how many at which time."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

Rungs = tuple[tuple[float, int], ...]

# Successive halving: (end as a fraction of the run, arms that train up to there).
RUNGS_4T: Rungs = ((0.05, 20), (0.1, 10), (0.2, 6), (0.35, 4), (0.6, 2), (1.0, 1))
RUNGS_2T: Rungs = ((0.05, 12), (0.1, 5), (0.2, 3), (0.3, 2), (1.0, 1))
SURVIVING_SHARE = (2, 3)


def relative_rewards(scores: Sequence[float | None]) -> list[float | None]:
    """Rewards of siblings: ``(score - mean) / sd`` over those that have a finite score.

    Parameters
    ----------
    scores
        The metric of each sibling, higher is better; None or not finite where it is not known.

    Returns
    -------
    list of (float or None)
        Population standard deviation; 0 for all where the siblings tie, None where the score is not known.

    Examples
    --------
    >>> relative_rewards([1.0, 3.0, None, float("nan")])
    [-1.0, 1.0, None, None]
    >>> relative_rewards([0.1, 0.1])
    [0.0, 0.0]
    """
    known = [score for score in scores if score is not None and math.isfinite(score)]
    if not known:
        return [None] * len(scores)
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in known) / len(known))
    spread = deviation if max(known) > min(known) else math.inf
    return [
        (score - mean) / spread if score is not None and math.isfinite(score) else None for score in scores
    ]


def ranking(scores: Sequence[float | None]) -> list[int]:
    """Indices of the siblings from the best to the worst; those without a finite score are left out.

    Parameters
    ----------
    scores
        As in :func:`relative_rewards`. Of equal scores the earlier sibling comes first.

    Returns
    -------
    list of int
        Indices into ``scores``.

    Examples
    --------
    >>> ranking([0.2, None, 0.5, 0.2])
    [2, 0, 3]
    """
    known = [(-score, i) for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    return [index for _, index in sorted(known)]


def survivors(rows: int) -> int:
    """How many of the next rung's ``rows`` go on unchanged: two thirds, rounded up.

    Parameters
    ----------
    rows
        Arms of the next rung.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> [survivors(rows) for rows in (10, 6, 4, 2, 1)]
    [7, 4, 3, 2, 1]
    """
    part, whole = SURVIVING_SHARE
    return -(-rows * part // whole)


def rungs_for(budget: float) -> Rungs:
    """A halving schedule whose training costs about ``budget`` trainings, a tenth left for validation.

    4 and 2 give the two measured schedules (training costs 3.6 and 2.05); other budgets scale the number of
    arms of the nearer one.

    Parameters
    ----------
    budget
        Compute in full trainings, more than 1.

    Returns
    -------
    tuple of (float, int)
        End of each rung as a fraction of the run, and its arms.

    Raises
    ------
    ValueError
        If the budget is not a number above 1 and finite.

    Examples
    --------
    >>> rungs_for(4.0) == RUNGS_4T, rungs_for(2.0) == RUNGS_2T
    (True, True)
    >>> rungs_for(8.0)[0]
    (0.05, 47)
    """
    number = isinstance(budget, numbers.Real) and not isinstance(budget, bool)
    if not (number and math.isfinite(budget) and budget > 1.0):
        raise ValueError(f"budget must be above 1 (one training), got {budget!r}")
    base, nominal = (RUNGS_4T, 4.0) if budget >= 3.5 else (RUNGS_2T, 2.0)
    cost = training_cost(base)
    factor = max(cost * budget / nominal - 1.0, 0.0) / (cost - 1.0)
    return tuple((end, max(1, int(rows * factor + 1e-9)) if end < 1.0 else 1) for end, rows in base)


def training_cost(rungs: Rungs) -> float:
    """Training steps of a schedule in full trainings.

    Parameters
    ----------
    rungs
        End of each rung as a fraction of the run, and its arms.

    Returns
    -------
    float
        ``sum_r (end_r - end_{r-1}) rows_r``.

    Examples
    --------
    >>> round(training_cost(RUNGS_4T), 6), round(training_cost(RUNGS_2T), 6)
    (3.6, 2.05)
    """
    starts = (0.0, *(end for end, _ in rungs))
    return sum((end - start) * rows for start, (end, rows) in zip(starts, rungs))
