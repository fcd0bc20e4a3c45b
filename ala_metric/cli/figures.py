"""The pictures of a run: parameters, validation metric and rewards over training steps."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import atomic_write_bytes
from .console import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]
Neighbour = tuple[Any, "bool | None"]
"""A picture ``[H, W]`` uint8, and whether it has the query's class; None for the query itself."""

INK, FAINT, FIXED, ADAPTIVE = "#1b1e23", "#8a9099", "#7a5c00", "#0b62b3"
"""Colours; a page that follows the reader's theme replaces each by a variable of its own."""
RIGHT, WRONG = "#1a7f37", "#c62828"
THEME = {INK: "var(--ink)", FAINT: "var(--faint)", FIXED: "var(--fixed)", ADAPTIVE: "var(--adaptive)"}


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of the given size in inches, independent of pyplot and of the user's settings."""
    optional("matplotlib", "drawing")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_phi(figure: Any, histories: Sequence[History], names: Sequence[str], start: Sequence[float]) -> None:
    """One small panel per parameter, first half left and second half right; one line per run."""
    rows = math.ceil(len(names) / 2)
    axes = figure.subplots(rows, 2, sharex=True, squeeze=False)
    panels = [*axes[:, 0], *axes[:, 1]]
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for index, (panel, name) in enumerate(zip(panels, names)):
        _style(panel)
        for history in histories:
            steps = [0, *(record["step"] for record in history)]
            values = [start[index], *(float(record["phi"][index]) for record in history)]
            if history:  # what the last action chose holds for as long again
                steps.append(2 * steps[-1] - steps[-2])
                values.append(values[-1])
            panel.plot(steps, values, color=ADAPTIVE, linewidth=1.2, alpha=0.75, drawstyle="steps-post")
        panel.set_title(name, loc="left", fontsize=9, pad=3, color=INK)
    for column in axes.T:
        lows, highs = zip(*(panel.get_ylim() for panel in column))
        for panel in column:
            panel.set_ylim(min(lows), max(highs))
        column[-1].set_xlabel("training step", fontsize=9, color=INK)


def draw_metric(axes: Axes, groups: Mapping[str, Sequence[History]], name: str) -> None:
    """Validation metric over steps: thin lines are runs, the thick one their mean."""
    _style(axes)
    for label, histories in groups.items():
        color, dash = (FIXED, (0, (4, 2))) if label == "fixed" else (ADAPTIVE, "-")
        for history in histories:
            steps = [record["step"] for record in history]
            values = [float(record["metric"]) for record in history]
            axes.plot(steps, values, color=color, linestyle=dash, linewidth=0.7, alpha=0.45)
        means = [statistics.fmean(float(record["metric"]) for record in column) for column in zip(*histories)]
        shared = [column[0]["step"] for column in zip(*histories)]
        axes.plot(shared, means, color=color, linestyle=dash, linewidth=2.2, label=label)
    axes.set_xlabel("training step", fontsize=9, color=INK)
    axes.set_ylabel(f"validation {name}", fontsize=9, color=INK)
    axes.legend(fontsize=9, frameon=False, labelcolor=INK, loc="lower right")


def draw_reward(axes: Axes, histories: Sequence[History]) -> None:
    """Mean over the runs of the reward of each action, one bar per controller step."""
    _style(axes)
    columns = [
        (column[0]["step"], [record["reward"] for record in column if record["reward"] is not None])
        for column in zip(*histories)
    ]
    shown = [(step, statistics.fmean(rewards)) for step, rewards in columns if rewards]
    if shown:
        steps, means = zip(*shown)
        gap = min((b - a for a, b in pairwise(steps)), default=1)
        axes.bar(steps, means, width=0.7 * gap, color=ADAPTIVE)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_ylim(-1.1, 1.1)
    axes.set_yticks([-1, 0, 1])
    axes.set_xlabel("training step", fontsize=9, color=INK)
    axes.set_ylabel("reward (mean of runs)", fontsize=9, color=INK)


def draw_neighbours(figure: Any, rows: Sequence[Sequence[Neighbour]]) -> None:
    """One line of small pictures per query: the query, then its neighbours, framed by right and wrong."""
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, row in zip(axes, rows):
        for panel, (image, right) in zip(line, row):
            panel.imshow(image, cmap="gray", vmin=0, vmax=255)
            panel.set_xticks([])
            panel.set_yticks([])
            color = FAINT if right is None else RIGHT if right else WRONG
            mark = "query" if right is None else "✓" if right else "✗"
            panel.set_xlabel(mark, fontsize=9, labelpad=2, color=INK if right is None else color)
            panel.spines[:].set(color=color, linewidth=2, linestyle="--" if right is False else "-")


def overview(
    groups: Mapping[str, Sequence[History]],
    names: Sequence[str],
    start: Sequence[float],
    metric: str,
    grids: Mapping[str, Sequence[Sequence[Neighbour]]] | None = None,
) -> Figure:
    """All figures in one picture; the parameters and rewards are those of the last group."""
    figure: Any = new_figure(9.6, 5.4 if grids is None else 8.6)
    upper = figure
    if grids is not None:
        upper, lower = figure.subfigures(2, 1, height_ratios=(5.4, 3.2))
        for part, (name, rows) in zip(lower.subfigures(1, len(grids)), grids.items()):
            draw_neighbours(part, rows)
            part.suptitle(f"{name}: test queries and their nearest neighbours", fontsize=10, color=INK)
    left, right = upper.subfigures(1, 2)
    *_, adaptive = groups.values()
    draw_phi(left, adaptive, names, start)
    left.suptitle("parameters of the loss", fontsize=10, color=INK)
    above, below = right.subplots(2, 1, height_ratios=(3, 2))
    draw_metric(above, groups, metric)
    draw_reward(below, adaptive)
    right.suptitle("what the validation set said", fontsize=10, color=INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture for people, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=130, facecolor="white")
    atomic_write_bytes(path, buffer.getvalue())


def to_svg(figure: Figure) -> str:
    """The figure as SVG text for a web page: no header, colours from the page, same bytes every time."""
    matplotlib = optional("matplotlib", "drawing")
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "ala", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in THEME.items():
        text = text.replace(color, variable)
    return text


def _style(axes: Axes) -> None:
    """Two thin spines, small ticks, faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
