"""The equations in plain Python floats: explicit double loops, no torch arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def tangent(f, slope, d: float) -> float:
    """f(d), continued by its tangent below 0.1."""
    return f(d) if d >= 0.1 else f(0.1) + slope(0.1) * (d - 0.1)


POSITIVE = (
    lambda d: d**2,
    lambda d: d,
    lambda d: math.sqrt(d + 0.01) - 0.1,
    lambda d: 0.5 * d**3,
    lambda d: softplus(6 * (d - 0.8)) / 6,
)
NEGATIVE = (
    lambda d: tangent(lambda t: 0.5 / t, lambda t: -0.5 / t**2, d),
    lambda d: 2 - d,
    lambda d: tangent(lambda t: -math.log(t / 2), lambda t: -1 / t, d),
    lambda d: 2 * math.exp(-2 * d),
    lambda d: softplus(6 * (1.2 - d)) / 6,
)


def dist(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b)))


def pairs_of(i: int, x: Rows, labels, y: Rows | None, ref_labels):
    """(distance, is positive) of anchor i to every reference but itself."""
    for j, row in enumerate(x if y is None else y):
        if y is None and i == j:
            continue
        other = (labels if y is None else ref_labels)[j]
        yield dist(x[i], row), labels[i] == other


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def mixture(x: Rows, labels, phi, y: Rows | None = None, ref_labels=None) -> list[float]:
    out = []
    for i in range(len(x)):
        pos, neg = [], []
        for d, same in pairs_of(i, x, labels, y, ref_labels):
            if same:
                pos.append(sum(w * f(d) for w, f in zip(phi[:5], POSITIVE)))
            else:
                neg.append(sum(w * f(d) for w, f in zip(phi[5:], NEGATIVE)))
        out.append(mean(pos) + mean(neg))
    return out


def focal(x: Rows, labels, phi, offset: float, y: Rows | None = None, ref_labels=None) -> list[float]:
    out = []
    for i in range(len(x)):
        pos = neg = 0.0
        for d, same in pairs_of(i, x, labels, y, ref_labels):
            if same:
                pos += math.exp(phi[0] * (d - offset))
            else:
                neg += math.exp(-phi[1] * (d - offset))
        out.append(math.log1p(pos) / phi[0] + math.log1p(neg) / phi[1])
    return out


def statistics(x: Rows, labels, y: Rows | None = None, ref_labels=None) -> list[float]:
    pos, neg = [], []
    for i in range(len(x)):
        for d, same in pairs_of(i, x, labels, y, ref_labels):
            (pos if same else neg).append(d)
    return [mean([f(d) for d in pos]) for f in POSITIVE] + [mean([f(d) for d in neg]) for f in NEGATIVE]


def ranks(x: Rows, labels, y: Rows | None = None, ref_labels=None, optimistic=False) -> list[list[int]]:
    """Per query, the ascending 1-based ranks of its positives."""
    out = []
    for i in range(len(x)):
        pos, neg = [], []
        for d, same in pairs_of(i, x, labels, y, ref_labels):
            (pos if same else neg).append(d)
        pos.sort()
        out.append(
            [j + sum(n < p or (n == p and not optimistic) for n in neg) for j, p in enumerate(pos, start=1)]
        )
    return out
