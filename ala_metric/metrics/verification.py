"""Pair verification: same or different, as in Labeled Faces in the Wild (LFW)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class VerificationResult:
    """Outcome of :func:`verification`.

    Parameters
    ----------
    accuracy
        Mean of ``fold_accuracies``; every fold counts once, whatever its size.
    standard_error
        ``std / sqrt(number of folds)``, the number after the ± in LFW tables.
    std
        Standard deviation of the fold accuracies, ``ddof=1``.
    fold_accuracies
        Accuracy on each held-out fold, in ascending order of the fold's number.
    thresholds
        The threshold that each held-out fold was judged by, in the unit of the distances.
    roc_auc
        Area under the ROC curve over all pairs, ties counted half.
    tar_at_far
        True accept rate for each asked false accept rate.

    Examples
    --------
    >>> VerificationResult(0.75, 0.25, 0.35, (0.5, 1.0), (1.0, 1.1), 0.9, {0.001: 0.5}).accuracy
    0.75
    """

    accuracy: float
    standard_error: float
    std: float
    fold_accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]
    roc_auc: float
    tar_at_far: dict[float, float]


def verification(
    distances: Any,
    same: Any,
    folds: Any,
    *,
    higher_is_same: bool = False,
    far: Sequence[float] = (1e-3,),
) -> VerificationResult:
    """Cross-validated accuracy of telling same pairs from different ones by a distance (LFW protocol).

    For every fold the threshold is chosen on all *other* folds and judged on this one. A pair is called
    "same" when ``distance <= threshold``. The search is exact: with the v distinct distances of the
    other folds sorted, all v + 1 cuts (below, between, above) are tried.

    Parameters
    ----------
    distances
        ``[P]`` numbers, one per pair, of any unit: only their order and gaps matter. Tensor, array or
        sequence; computed in float64.
    same
        ``[P]`` booleans or 0/1: whether the pair shows the same class.
    folds
        ``[P]`` integers: the fold of each pair. Folds may differ in size.
    higher_is_same
        The numbers are similarities: called "same" when ``similarity >= threshold``.
    far
        False accept rates in [0, 1] for which the true accept rate is reported.

    Returns
    -------
    VerificationResult

    Raises
    ------
    ValueError
        If lengths differ, a distance is NaN or infinite, there are fewer than two folds, all pairs (or
        all pairs outside one fold) are of one kind, or a rate lies outside [0, 1].
    TypeError
        If an argument cannot be made a tensor, ``distances`` are complex, ``folds`` not integers or ``same``
        neither booleans nor integers.

    Notes
    -----
    *Equally good cuts.* Neighbouring equally good cuts form a plateau, the interval of thresholds from
    the distance just below its first cut to the distance just above its last. Of several plateaus the
    middle one in ascending order is taken (the lower of two middle ones), and the threshold is its
    midpoint; ``-inf`` or ``+inf`` when "all different" or "all same" is as good as any, half-way between
    the extreme distances when every cut is equally good. The choice uses only the order of the
    distances, so their scale changes no accuracy; for the same reason a held-out distance that equals
    the threshold up to a few units of rounding counts as equal to it.

    *TAR at FAR* is pooled over all pairs and pessimistic: the largest true accept rate among the cuts
    whose false accept rate is at most the asked one, without interpolation. With D different pairs, a
    rate below 1/D therefore means no false accept at all.

    *ROC AUC* is pooled over all pairs: the chance that a same pair is nearer than a different one.

    Examples
    --------
    >>> distances = [0.2, 0.9, 0.3, 0.8, 0.1, 0.7, 0.75, 0.6]
    >>> same = [1, 0, 1, 0, 1, 0, 1, 0]
    >>> result = verification(distances, same, [0, 0, 0, 0, 1, 1, 1, 1])
    >>> result.fold_accuracies, [round(t, 3) for t in result.thresholds]
    ((1.0, 0.75), [0.35, 0.55])
    >>> result.roc_auc
    0.875
    """
    numbers = to_cpu("distances", distances)
    if numbers.is_complex():
        raise TypeError(f"distances must be real numbers, got {numbers.dtype}")
    rounding = torch.finfo(torch.float32 if numbers.dtype == torch.float32 else torch.float64).eps
    scores = _vector("distances", numbers.double())
    positive = _vector("same", to_cpu("same", same), len(scores))
    fold_of = _vector("folds", to_cpu("folds", folds), len(scores))
    if positive.dtype.kind not in "biu" or not np.isin(positive, (0, 1)).all():
        kind = ValueError if positive.dtype.kind in "biu" else TypeError
        raise kind(f"same must hold booleans or 0/1, got {positive.dtype} values")
    if fold_of.dtype.kind not in "iu":
        raise TypeError(f"folds must be integers, got {fold_of.dtype}")
    rates = _rates(far)
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"distances must be finite, got {bad} NaN or infinite of {len(scores)}")
    names = np.unique(fold_of)
    if len(names) < 2:
        raise ValueError(f"folds must name at least 2 folds, got {len(names)}: no threshold can be learnt")
    positive = positive.astype(bool)
    sign = -1.0 if higher_is_same else 1.0
    scores = sign * scores

    _both_kinds(positive, "same")
    accuracies, thresholds = [], []
    for name in names:
        held_out = fold_of == name
        _both_kinds(positive[~held_out], f"same outside fold {name}")
        threshold, limit = _best_threshold(scores[~held_out], positive[~held_out], rounding)
        accuracies.append(float(((scores[held_out] <= limit) == positive[held_out]).mean()))
        thresholds.append(sign * threshold)
    std = float(np.std(accuracies, ddof=1))
    roc_auc, tar_at_far = _roc(scores, positive, rates)
    return VerificationResult(
        accuracy=float(np.mean(accuracies)),
        standard_error=std / math.sqrt(len(names)),
        std=std,
        fold_accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
        roc_auc=roc_auc,
        tar_at_far=tar_at_far,
    )


def to_cpu(name: str, value: Any) -> torch.Tensor:
    """Bring any input to the CPU; sequences of Python floats keep their 64 bits."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    what = type(value).__name__
    try:
        array = np.array(value, order="C")  # a copy: torch takes no negative strides
        what += f" of {array.dtype}" if array.ndim else ""
        return torch.as_tensor(array)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a tensor, array or sequence of numbers, got {what}") from error


def _vector(name: str, value: torch.Tensor, length: int | None = None) -> np.ndarray[Any, Any]:
    """Turn a tensor of the expected length into a NumPy vector."""
    if value.ndim != 1 or (length is not None and len(value) != length):
        expected = "[P]" if length is None else f"[{length}]"
        raise ValueError(f"{name} must be {expected}, got {list(value.shape)}")
    return value.numpy()


def _rates(far: Sequence[float]) -> list[float]:
    """Check the false accept rates."""
    if isinstance(far, (int, float)):
        raise TypeError(f"far must be a sequence of rates, got the number {far}")
    rates = [float(rate) for rate in far]
    if not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"far must hold rates in [0, 1], got {rates}")
    return rates


def _both_kinds(positive: np.ndarray[Any, Any], name: str) -> None:
    """Refuse pairs that are all same or all different."""
    if not 0 < positive.sum() < len(positive):
        raise ValueError(
            f"{name} must hold both kinds of pairs, got {int(positive.sum())} same of {len(positive)}"
        )


def _best_threshold(
    scores: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], rounding: float
) -> tuple[float, float]:
    """Midpoint of the middle best plateau, and the same a few roundings up for the comparison."""
    values, inverse = np.unique(scores, return_inverse=True)
    gain = np.bincount(inverse, weights=np.where(positive, 1.0, -1.0))
    correct = np.concatenate(([0.0], np.cumsum(gain)))  # cut k accepts values[:k]; up to a constant
    steps = np.diff(np.concatenate(([False], correct == correct.max(), [False])).astype(np.int8))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    middle = (len(starts) - 1) // 2
    bounds = np.concatenate(([-np.inf], values, [np.inf]))
    low, high = float(bounds[starts[middle]]), float(bounds[ends[middle]])
    if math.isinf(low) and math.isinf(high):
        low, high = float(values[0]), math.nextafter(float(values[-1]), math.inf)
    if math.isinf(low) or math.isinf(high):
        threshold = low if math.isinf(low) else high
        return threshold, threshold
    threshold = low / 2 + high / 2
    if not low <= threshold < high:  # neighbouring floats: their midpoint rounds to one of them
        threshold = low
    limit = threshold + 8 * rounding * abs(threshold)
    return threshold, limit if limit < high else threshold


def _roc(
    scores: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], rates: list[float]
) -> tuple[float, dict[float, float]]:
    """Area under the ROC curve, and the true accept rate at each false accept rate."""
    values, inverse = np.unique(scores, return_inverse=True)
    same = np.bincount(inverse[positive], minlength=len(values))
    different = np.bincount(inverse[~positive], minlength=len(values))
    accepted = np.concatenate(([0], np.cumsum(same)))
    false_accepted = np.concatenate(([0], np.cumsum(different)))
    total_same, total_different = int(accepted[-1]), int(false_accepted[-1])
    farther = 2 * (total_different - false_accepted[1:]) + different
    roc_auc = int((same * farther).sum()) / (2 * total_same * total_different)
    tar_at_far = {
        rate: int(accepted[false_accepted / total_different <= rate][-1]) / total_same for rate in rates
    }
    return roc_auc, tar_at_far
