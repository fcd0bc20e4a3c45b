"""The study's pictures: parameters, rewards, early ranks, and what compute buys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ala_metric.cli.figures import ADAPTIVE, FAINT, FIXED, INK, new_figure, save

from .cells import Key, load_cells
from .ranks import SHARES
from .tables import LOWER_IS_BETTER, Line, lines_of_tasks, metric_of
from .tasks import Task

SHOWN = ("paper", "paired", "race")
CURVE = {
    "fixed": "fixed",
    "fixed-2": "fixed, 2T",
    "fixed-4": "fixed, 4T",
    "best-of-random": "best of n",
    "best-of-both": "best of n + fixed",
    "paper": "ALA",
    "paper-10": "ALA, 10 children",
    "paired": "paired",
    "guarded": "hypergradient",
    "halving": "halving",
    "race-2": "race, 2T",
    "race": "race",
    "surrogate": "surrogate",
    "surrogate-ce": "surrogate",
}


def write_plots(
    path: Path, tasks: Sequence[Task], seeds: Iterable[int], out: Path, others: Path | None = None
) -> None:
    """Write every picture for which there are cells; the last one has the rows of ``others``, a CSV, too."""
    cells, seeds = load_cells(path), list(seeds)
    for task in tasks:
        phi_trajectories(cells, task, seeds, out / f"phi-{task.name}.png")
    reward_by_quarter(cells, tasks, seeds, out / "reward-by-quarter.png")
    early_ranks(cells, tasks, out / "early-ranks.png")
    compute_and_quality(lines_of_tasks(cells, tasks, seeds, others), out / "compute-quality.png")


def _histories(cells: dict[Key, dict[str, Any]], task: Task, row: str, seeds: Sequence[int]) -> list[Any]:
    found = []
    for seed in seeds:
        cell = cells.get((task.name, row, seed), {})
        if "phi_history" in cell:
            found.append([(step, phi) for step, phi in cell["phi_history"]])
        elif cell.get("history"):
            found.append([(record["step"], record["phi"]) for record in cell["history"]])
    return found


def phi_trajectories(cells: dict[Key, dict[str, Any]], task: Task, seeds: Sequence[int], path: Path) -> None:
    """One panel per mode; one line per parameter, of the first seed that has the row."""
    rows = {name: found[0] for name in SHOWN if (found := _histories(cells, task, name, seeds))}
    if not rows:
        return
    figure: Any = new_figure(3.2 * len(rows), 2.6)
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for panel, (name, history) in zip(panels, rows.items()):
        steps = [step for step, _ in history] + [task.steps]
        values = np.array([phi for _, phi in history] + [history[-1][1]])
        panel.plot(steps, values, drawstyle="steps-post", linewidth=0.9, alpha=0.8)
        panel.set_title(CURVE[name], loc="left", fontsize=9, color=INK)
        panel.set_xlabel("training step", fontsize=8)
    panels[0].set_ylabel("Φ", fontsize=9)
    figure.suptitle(f"{task.name}: parameters of one run", fontsize=9, color=INK)
    save(figure, path)


def quarters(cells: dict[Key, dict[str, Any]], task: Task, seeds: Sequence[int]) -> list[float]:
    """Share of +1 among the rewards of the published controller, by quarter of the run."""
    shares: list[list[float]] = [[], [], [], []]
    for seed in seeds:
        for record in cells.get((task.name, "paper", seed), {}).get("history", []):
            if record["reward"] is not None:
                shares[min(3, 4 * (record["step"] - 1) // task.steps)].append(float(record["reward"] > 0))
    return [fmean(values) for values in shares] if all(shares) else []


def reward_by_quarter(
    cells: dict[Key, dict[str, Any]], tasks: Sequence[Task], seeds: Sequence[int], path: Path
) -> None:
    """Bars of the share of +1."""
    found = {task.name: shares for task in tasks if (shares := quarters(cells, task, seeds))}
    if not found:
        return
    figure: Any = new_figure(7, 2.8)
    axes = figure.subplots()
    width = 0.8 / len(found)
    for place, (name, shares) in enumerate(found.items()):
        axes.bar(np.arange(4) + place * width, shares, width, label=name)
    axes.axhline(0.5, color=FAINT, linewidth=0.8)
    axes.set_xticks(np.arange(4) + 0.4 - width / 2, [f"quarter {i + 1}" for i in range(4)], fontsize=8)
    axes.set_ylabel("share of reward +1", fontsize=9)
    axes.legend(fontsize=7, frameon=False, ncols=2)
    save(figure, path)


def rank_correlations(cells: dict[Key, dict[str, Any]], task: Task) -> list[float]:
    """Spearman between the validation score at each share of the run and the final test metric."""
    from scipy import stats

    rows = [cell for key, cell in cells.items() if key[:2] == (task.name, "ranks")]
    found = []
    for cell in rows:
        sign = -1.0 if metric_of(cell) in LOWER_IS_BETTER else 1.0
        finals = sign * np.array(cell["finals"])
        scores = np.array(cell["scores"])
        found.append([float(stats.spearmanr(column, finals).statistic) for column in scores.T])
    return [fmean(column) for column in zip(*found)]


def early_ranks(cells: dict[Key, dict[str, Any]], tasks: Sequence[Task], path: Path) -> None:
    """Correlation over the share of the run."""
    found = {task.name: values for task in tasks if (values := rank_correlations(cells, task))}
    if not found:
        return
    figure: Any = new_figure(5, 2.8)
    axes = figure.subplots()
    for name, values in found.items():
        axes.plot(SHARES[-len(values) :], values, marker="o", markersize=3, label=name)
    axes.set_xlabel("share of the run", fontsize=9)
    axes.set_ylabel("Spearman with the final test", fontsize=9)
    axes.set_ylim(top=1)
    axes.legend(fontsize=7, frameon=False)
    save(figure, path)


def compute_and_quality(shown: Mapping[str, Sequence[Line]], path: Path) -> None:
    """The first metric of the main rows over their compute, one panel per task."""
    if not shown:
        return
    figure: Any = new_figure(10, 2.7 * -(-len(shown) // 3))
    panels = figure.subplots(-(-len(shown) // 3), 3, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, (task, lines) in zip(panels, shown.items()):
        for name, _, own in lines:
            if name not in CURVE:
                continue
            metric = metric_of(own[0])
            x = fmean(cell["compute"] for cell in own)
            y = fmean(cell["metrics"][metric] for cell in own)
            color = ADAPTIVE if name.startswith(("race", "paired", "guarded")) else FIXED
            panel.plot([x], [y], "o", color=color, markersize=4)
            panel.annotate(CURVE[name], (x, y), fontsize=6, xytext=(3, 2), textcoords="offset points")
        panel.set_xscale("log", base=2)
        panel.set_title(task, loc="left", fontsize=9, color=INK)
        panel.set_ylabel(metric, fontsize=8)
        if metric in LOWER_IS_BETTER:
            panel.invert_yaxis()
    figure.supxlabel("compute, in trainings of T steps", fontsize=9)
    save(figure, path)
