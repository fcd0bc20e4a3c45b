"""How sure a difference between two models is, when the queries of a class stand or fall together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arguments import what_it_is

_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class PairedInterval:
    """What :func:`paired_bootstrap` returns.

    Parameters
    ----------
    difference
        Mean of ``second - first`` over all queries.
    low, high
        Interval for it.

    Examples
    --------
    >>> PairedInterval(0.02, 0.01, 0.03).low > 0
    True
    """

    difference: float
    low: float
    high: float


def paired_bootstrap(
    first: Tensor,
    second: Tensor,
    classes: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
) -> PairedInterval:
    r"""Interval for the difference of two models on the same queries, resampling whole classes.

    .. math:: \Delta = \frac{\sum_{c \in C} \sum_{i \in c} (b_i - a_i)}{\sum_{c \in C} |c|}

    with C drawn with replacement from the classes. The queries of a class share their positives, so drawing
    queries one by one would promise too much. Bias-corrected and accelerated (Efron, JASA 1987), by
    ``scipy.stats.bootstrap``.

    Parameters
    ----------
    first, second
        One score per query, shape [N], such as ``retrieval(..., per_query=True).per_query["recall_at_1"]`` of
        two models. NaN, the mark of an excluded query, must stand in the same places.
    classes
        Class of every query, integers of shape [N].
    confidence
        Level of the interval, in (0, 1).
    resamples
        Number of draws.
    seed
        Of the draws: the same seed gives the same interval.

    Returns
    -------
    PairedInterval
        ``difference``, ``low`` and ``high``.

    Raises
    ------
    ValueError
        If the shapes differ, NaN stand in different places, a score is infinite, fewer than two classes are
        left, ``confidence`` or ``resamples`` is out of range, or the draws are too few for an interval.
    TypeError
        For anything but tensors, or if ``classes`` are not integers.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import metrics
    >>> first, second = torch.zeros(60), (torch.arange(60) % 4 < 2).float()
    >>> interval = metrics.paired_bootstrap(first, second, torch.arange(60) // 5)
    >>> interval.difference, interval.low < 0.5 < interval.high
    (0.5, True)
    """
    for name, given in (("first", first), ("second", second), ("classes", classes)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {what_it_is(given)}")
    if first.ndim != 1 or second.shape != first.shape or classes.shape != first.shape:
        raise ValueError(
            f"first, second and classes must have one shape [N], got {tuple(first.shape)}, "
            f"{tuple(second.shape)}, {tuple(classes.shape)}"
        )
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"classes must be integers, got {classes.dtype}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, got {resamples}")
    excluded = first.isnan()
    if not torch.equal(excluded, second.isnan()):
        raise ValueError("first and second must be NaN for the same queries")
    if bad := int((first.isinf() | second.isinf()).sum()):
        raise ValueError(f"first and second must be finite or NaN, got Inf for {bad} of {len(first)} queries")
    difference = (second.double() - first.double())[~excluded].cpu()
    found, place = torch.unique(classes[~excluded].cpu(), return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"classes must name at least 2 classes with a score, got {len(found)}")
    size = torch.bincount(place)
    total = torch.bincount(place, difference)
    center = float(difference.mean())
    if bool((total == total[0] / size[0] * size).all()):  # no spread between classes, which BCa cannot take
        return PairedInterval(center, center, center)
    low, high = _interval(total.numpy(), size.numpy(), confidence, resamples, seed)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"resamples must be enough for an interval, got {resamples}; take thousands")
    return PairedInterval(center, low, high)


def _interval(total: Any, size: Any, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    import numpy as np
    from scipy import stats

    found = stats.bootstrap(
        (total, size),
        lambda totals, sizes, axis: totals.sum(axis) / sizes.sum(axis),
        paired=True,
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=confidence,
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
