"""The arithmetic of the reward: Eq. 4 and Eq. 5 as pure functions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

from .._arguments import is_offset


def discounted_mean(errors: Sequence[float], offsets: Sequence[int], gamma: float) -> float:
    r"""Error of one controller step, averaged over some of its K iterations (Eq. 4, normalised).

    .. math:: E = \sum_j \gamma^{o_j} e_j \, / \, \sum_j \gamma^{o_j}

    The paper sums the discounted errors of all K iterations. Dividing by the sum of the weights does not
    change the sign of a difference between two steps, keeps the unit of the metric, and lets a few
    iterations stand for all of them.

    Parameters
    ----------
    errors
        Validation errors (lower is better), in the unit of the metric.
    offsets
        For each error, how many iterations before the last of the K it was measured: 0 is the last.
    gamma
        Discount factor in (0, 1]; weighs recent errors more.

    Returns
    -------
    float
        The mean, NaN if any error is NaN.

    Raises
    ------
    ValueError
        On no errors, unequal lengths, a negative or fractional offset, or gamma outside (0, 1].
    TypeError
        If gamma is no real number.

    Examples
    --------
    >>> discounted_mean([0.5, 1.0], offsets=[0, 1], gamma=0.5)
    0.6666666666666666
    """
    if len(errors) != len(offsets) or len(errors) == 0:
        raise ValueError(
            f"errors and offsets must have one equal, positive length, got {len(errors)} and {len(offsets)}"
        )
    if isinstance(gamma, bool) or not isinstance(gamma, numbers.Real):
        raise TypeError(f"gamma must be a number in (0, 1], got {gamma!r}")
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}")
    if not all(is_offset(offset) for offset in offsets):
        raise ValueError(f"offsets must be integers >= 0, got {list(offsets)}")
    latest = min(offsets)
    weights = [gamma ** (offset - latest) for offset in offsets]
    return sum(w * float(e) for w, e in zip(weights, errors)) / sum(weights)


def sign_reward(previous_error: float, error: float) -> int:
    """Reward of the action between two errors (Eq. 5): ``sign(previous_error - error)``.

    Parameters
    ----------
    previous_error, error
        Errors before and after the action; lower is better.

    Returns
    -------
    int
        +1 if the error fell, 0 on a tie, -1 if it rose.

    Raises
    ------
    ValueError
        If the difference is not a number: an unknown error has no reward, and 0 would be a lie.

    Examples
    --------
    >>> sign_reward(0.4, 0.3), sign_reward(0.3, 0.3), sign_reward(0.3, 0.4)
    (1, 0, -1)
    """
    difference = float(previous_error) - float(error)
    if math.isnan(difference):
        raise ValueError(
            f"no reward between the errors {previous_error} and {error}: their difference is NaN"
        )
    return (difference > 0) - (difference < 0)
