"""Paired differences: mean, interval, sign-flip test, and Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 16  # pairs: 65,536 sign patterns
DRAWS = 100_000


@dataclass(frozen=True)
class Comparison:
    """Mean of paired differences, its BCa 95 % interval and the two-sided p of the sign-flip test."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def compare(differences: Sequence[float]) -> Comparison:
    """Judge paired differences."""
    low, high = interval(differences)
    return Comparison(float(np.mean(differences)), low, high, sign_flip_p(differences), len(differences))


def interval(
    differences: Sequence[float], level: float = 0.95, resamples: int = 9_999
) -> tuple[float, float]:
    """BCa interval of the mean (Efron, JASA 1987); a point where all differences are equal."""
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Share of the sign patterns whose mean is at least as far from 0 as the one seen."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0:
        return 1.0
    if len(values) <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        extra = 0
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (DRAWS, len(values)))
        extra = 1  # the pattern that was seen
    sums = np.abs(signs @ values)
    seen = abs(values.sum())
    return float((np.count_nonzero(sums >= seen - 1e-9 * max(1.0, seen)) + extra) / (len(signs) + extra))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm, 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
