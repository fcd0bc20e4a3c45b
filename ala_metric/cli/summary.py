"""Paired comparison of the demo's fixed and adaptive runs: the numbers, the table and the plain words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One measure of all runs, paired by seed.

    Parameters
    ----------
    name
        What was measured.
    fixed, adaptive
        One value per seed, in the same order; fractions in [0, 1].
    """

    name: str
    fixed: tuple[float, ...]
    adaptive: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Adaptive minus fixed, per seed."""
        return tuple(b - a for a, b in zip(self.fixed, self.adaptive))

    def cells(self) -> list[str]:
        """The row as text, in percent: name, fixed, adaptive, mean difference, every difference."""
        return [
            self.name,
            mean_and_sd(self.fixed),
            mean_and_sd(self.adaptive),
            signed(statistics.fmean(self.differences)),
            " ".join(map(signed, self.differences)),
        ]


HEADER = ("in %", "fixed", "adaptive", "difference", "per seed")


def mean_and_sd(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in percent; no deviation for a single value."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def split_pairs(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The fixed and the adaptive runs, each ordered by seed.

    Raises
    ------
    ValueError
        If a seed has not exactly one run of each.
    """
    by_seed = sorted(runs, key=lambda run: int(run["seed"]))
    fixed = [run for run in by_seed if run["mode"] == "fixed"]
    adaptive = [run for run in by_seed if run["mode"] != "fixed"]
    seeds = [run["seed"] for run in fixed]
    if not seeds or seeds != [run["seed"] for run in adaptive] or len(set(seeds)) != len(seeds):
        raise ValueError("every seed needs one fixed and one adaptive run")
    return fixed, adaptive


def compare(runs: Sequence[Run]) -> list[Row]:
    """Pair the runs by seed and list every measure."""
    fixed, adaptive = split_pairs(runs)
    rows = [
        Row(
            f"Recall@{k}",
            tuple(float(run["recall_at_k"][k]) for run in fixed),
            tuple(float(run["recall_at_k"][k]) for run in adaptive),
        )
        for k in fixed[0]["recall_at_k"]
    ]
    for key, name in (("r_precision", "R-precision"), ("map_at_r", "MAP@R")):
        rows.append(
            Row(name, tuple(float(run[key]) for run in fixed), tuple(float(run[key]) for run in adaptive))
        )
    return rows


def verdict(row: Row) -> str:
    """Say in plain words whether adapting helped, no stronger than the paired values allow."""
    values = row.differences
    count, wins = len(values), sum(value > 0 for value in values)
    mean = signed(statistics.fmean(values))
    if count == 1:
        return (
            f"One seed says nothing about whether adapting helps ({row.name} {mean} points); use more seeds."
        )
    if wins == count:
        chance = 100 * 2 ** (1 - count)
        return (
            f"The adaptive loss reached the higher {row.name} with all {count} seeds ({mean} points on "
            f"average). {count} pairs are few: by chance alone all of them agree in {chance:.0f} % of cases. "
            "Repeat with more seeds before you build on it."
        )
    if max(values) < 0:
        found = f"{row.name} was lower with all {count} seeds ({mean} points on average)"
    elif max(values) == min(values):
        found = f"{row.name} was the same with all {count} seeds"
    else:
        found = (
            f"{row.name} was higher with {wins} of {count} seeds ({mean} points on average), no clear gain"
        )
    return (
        f"The adaptive loss did not help here: {found}. That is no surprise: "
        "early in a run the network improves whatever the action was, and the miner leaves little to tune. "
        "What this shows is the mechanism at work; see the README for when adapting does not help."
    )


def compute_lines(runs: Sequence[Run]) -> list[str]:
    """What both kinds of run cost: training steps, passes over the validation set and their seconds."""
    lines = []
    for name, group in zip(("fixed", "adaptive"), split_pairs(runs)):
        passes = sum(int(run["validations"]) for run in group)
        seconds = sum(float(run["validation_seconds"]) for run in group)
        total = sum(float(run["train_seconds"]) for run in group)
        lines.append(
            f"{name}: {sum(int(run['steps']) for run in group):,} training steps over {len(group)} runs, "
            f"{passes:,} validation passes; {total:.0f} s, of which {seconds:.1f} s validation and controller"
        )
    lines[0] += " (here only to draw the curve; a fixed loss needs none)"
    return lines
