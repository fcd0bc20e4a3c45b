"""``--diagnose``: what the published controller's reward says about its actions, at several K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ala_metric.cli.figures import ADAPTIVE, FAINT, FIXED, INK, new_figure, save

from .cells import Key, run_cells
from .effects import CHECKPOINTS
from .rows import BY_NAME, INTERVALS
from .tables import table
from .tasks import Task

STEPS = 2000


@dataclass(frozen=True)
class Shares:
    """Shares of a variance: of the action, of the batches, and what is left (omega squared, unbiased)."""

    action: float
    batches: float


def diagnose(
    tasks: Sequence[Task], seeds: Sequence[int], out: Path, workers: int, steps: int | None = None
) -> None:
    """Train what is missing and write ``diagnosis.md`` and ``diagnosis.png``."""
    tasks = [replace(task, steps=steps or STEPS, base=None) for task in tasks]
    rows = [BY_NAME[f"{kind}-{every}"] for every in INTERVALS for kind in ("paper-every", "effects")]
    cells = run_cells(tasks, rows, seeds, out / "diagnosis.jsonl", workers=workers)
    text = "\n\n".join(summary(cells, task, seeds) for task in tasks) + "\n"
    (out / "diagnosis.md").write_text(text, encoding="utf-8")
    print(text)
    draw(cells, tasks, seeds, out / "diagnosis.png")


def summary(cells: dict[Key, dict[str, Any]], task: Task, seeds: Sequence[int]) -> str:
    """The numbers of one task as a table, one row per K."""
    rows = []
    for every in INTERVALS:
        histories = [cells[task.name, f"paper-every-{every}", seed]["history"] for seed in seeds]
        gains = gains_of(cells, task, every, seeds)
        up = quarter_shares(histories, task.steps)
        entropy = [share_of_full_entropy(history) for history in histories]
        ratio = fmean(np.abs(gains - gains[..., :1])[..., 1:].mean(axis=(1, 2)) / spread(gains))
        rows.append(
            (
                str(every),
                str(len(histories[0]) - 1),
                " ".join(f"{value:.2f}" for value in up),
                f"{fmean(start for start, _ in entropy):.3f} → {fmean(end for _, end in entropy):.3f}",
                percent(pooled(np.sign(gains)).action),
                percent(pooled(gains).action),
                percent(paired(gains)),
                f"{ratio:.2f}",
            )
        )
    head = (
        "K",
        "rewards per run",
        "share of +1 by quarter",
        "entropy / maximum, first → last quarter",
        "reward (Eq. 5): action's share",
        "gain: action's share",
        "paired gain: action's share",
        "effect of an action / spread over batches",
    )
    return f"## {task.title}\n\nT = {task.steps}, {len(seeds)} seeds.\n\n" + table(head, rows)


def gains_of(
    cells: dict[Key, dict[str, Any]], task: Task, every: int, seeds: Sequence[int]
) -> NDArray[np.float64]:
    """``[checkpoints of all seeds, stream, action]``."""
    found = [np.array(cells[task.name, f"effects-{every}", seed]["gains"]) for seed in seeds]
    return np.concatenate(found)


def pooled(values: NDArray[np.float64]) -> Shares:
    """Shares over all checkpoints together: what a learner sees that knows neither time nor batches."""
    checkpoints, streams, actions = values.shape
    total = float(((values - values.mean()) ** 2).sum())
    error, degrees = _error(values)
    by_action = streams * float(((values.mean(1) - values.mean((1, 2))[:, None]) ** 2).sum())
    by_stream = actions * float(((values.mean(2) - values.mean((1, 2))[:, None]) ** 2).sum())
    noise = error / degrees
    whole = total + noise
    if whole <= 0:
        return Shares(0.0, 0.0)
    return Shares(
        (by_action - checkpoints * (actions - 1) * noise) / whole,
        (by_stream - checkpoints * (streams - 1) * noise) / whole,
    )


def paired(values: NDArray[np.float64]) -> float:
    """The action's share of the differences to the sibling that takes no action, on the same batches."""
    differences = values[..., 1:] - values[..., :1]
    checkpoints, streams, actions = differences.shape
    total = float((differences**2).sum())
    means = streams * float((differences.mean(1) ** 2).sum())
    noise = (total - means) / (checkpoints * actions * (streams - 1))
    return (means - checkpoints * actions * noise) / total if total > 0 else 0.0


def _error(values: NDArray[np.float64]) -> tuple[float, int]:
    """Sum of squares within checkpoints that neither action nor batches explain; its degrees of freedom."""
    centre = values.mean((1, 2), keepdims=True)
    rest = values - values.mean(1, keepdims=True) - values.mean(2, keepdims=True) + centre
    checkpoints, streams, actions = values.shape
    return float((rest**2).sum()), checkpoints * (streams - 1) * (actions - 1)


def spread(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over batches of the gain without an action, per checkpoint."""
    return np.maximum(gains[..., 0].std(axis=1, ddof=1), 1e-12)


def quarter_shares(histories: Sequence[Any], steps: int) -> list[float]:
    """Share of +1 among the rewards, by quarter of the run."""
    shares: list[list[float]] = [[], [], [], []]
    for history in histories:
        for record in history:
            if record["reward"] is not None:
                shares[min(3, 4 * (record["step"] - 1) // steps)].append(float(record["reward"] > 0))
    return [fmean(values) if values else math.nan for values in shares]


def share_of_full_entropy(history: Sequence[Any]) -> tuple[float, float]:
    """Mean entropy of the first and the last quarter over ln 3, the entropy of three equal actions.

    Parameters at a wall have two actions, so even a uniform policy stays below 1.
    """
    values = [record["entropy"] / math.log(3) for record in history if record["entropy"] is not None]
    quarter = max(1, len(values) // 4)
    return fmean(values[:quarter]), fmean(values[-quarter:])


def percent(share: float) -> str:
    """A share in percent; an unbiased estimate of a small one may be negative."""
    return f"{100 * share + 0.0:.1f} %".replace("-0.0", "0.0").replace("-", "−")


def draw(cells: dict[Key, dict[str, Any]], tasks: Sequence[Task], seeds: Sequence[int], path: Path) -> None:
    """Reward by quarter, entropy over the run, and gains by action and batches."""
    figure: Any = new_figure(9.6, 2.6 * len(tasks))
    for row, task in zip(figure.subplots(len(tasks), 3, squeeze=False), tasks):
        for every, color in zip(INTERVALS, (ADAPTIVE, FIXED, INK)):
            histories = [cells[task.name, f"paper-every-{every}", seed]["history"] for seed in seeds]
            row[0].plot(
                range(1, 5), quarter_shares(histories, task.steps), "o-", color=color, label=f"K = {every}"
            )
            for history in histories:
                steps = [record["step"] for record in history]
                values = [record["entropy"] / math.log(3) for record in history]
                row[1].plot(steps, values, color=color, linewidth=0.7, alpha=0.6)
        gains = gains_of(cells, task, INTERVALS[0], seeds)[: len(CHECKPOINTS)]
        for place, table_of in enumerate(gains):
            for stream, values in enumerate(table_of):
                x = place + 0.15 * (stream - 1.5)
                row[2].plot([x] * len(values), values, ".", color=ADAPTIVE, markersize=4)
                row[2].plot([x], values[:1], "_", color=INK, markersize=8)
        row[0].set_ylim(0, 1.05)
        row[0].axhline(0.5, color=FAINT, linewidth=0.8)
        row[0].set_xticks(range(1, 5))
        row[0].set_xlabel("quarter of the run", fontsize=8)
        row[0].set_ylabel("share of reward +1", fontsize=8)
        row[0].legend(fontsize=7, frameon=False)
        row[1].set_xlabel("training step", fontsize=8)
        row[1].set_ylabel("entropy / ln 3", fontsize=8)
        row[2].set_xticks(range(len(CHECKPOINTS)), [f"{share:.0%}" for share in CHECKPOINTS], fontsize=8)
        row[2].set_xlabel(f"place in the run, K = {INTERVALS[0]}: 4 batch streams", fontsize=8)
        row[2].set_ylabel("gain over K iterations", fontsize=8)
        row[0].set_title(task.name, loc="left", fontsize=9, color=INK)
    save(figure, path)
