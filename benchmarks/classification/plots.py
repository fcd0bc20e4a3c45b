"""Pictures of a table: error curves, Phi as a strip of heat maps over time, confusions early and late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.cells import Key

from .rows import BY_NAME, Table
from .tables import by_seed

FRAMES = 8
ADAPTIVE = ("paired", "ala", "ala-wide", "ala-10", "race", "paper")
COLOURS = 10  # in matplotlib's cycle


def write_plots(found: Mapping[Key, dict[str, Any]], table: Table, where: str, out: Path) -> list[Path]:
    """Draw what the cells of one column have; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stem = f"table{table.number}-{where.replace('/', '-')}"
    written = []
    for name, draw in (("curves", _curves), ("phi", _phi), ("confusions", _confusions)):
        figure = draw(plt, found, table, where)
        if figure is not None:
            path = out / f"{stem}-{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight")
            plt.close(figure)
            written.append(path)
    return written


def _curves(plt: Any, found: Mapping[Key, dict[str, Any]], table: Table, where: str) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in table.rows:
        curves = [cell["curve"] for cell in by_seed(found, where, name).values() if cell["curve"]]
        if curves and len({len(curve) for curve in curves}) == 1:
            points = np.array(curves)
            style = ("-", "--", ":")[len(axes.lines) // COLOURS % 3]
            mean = 100 * points[:, :, 1].mean(0)
            axes.plot(points[0, :, 0], mean, label=BY_NAME[name].title, lw=1, ls=style)
    if not axes.lines:
        plt.close(figure)
        return None
    axes.set(xlabel="training step", ylabel="validation metric, %", title=where, yscale="log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _with(found: Mapping[Key, dict[str, Any]], table: Table, where: str, what: str) -> list[Any]:
    """Rows that adapt and kept something: name and the cell of the first seed."""
    cells = [(name, by_seed(found, where, name)) for name in ADAPTIVE if name in table.rows]
    first = [(name, own[min(own)]) for name, own in cells if own]
    return [(name, cell) for name, cell in first if cell.get(what) and all(cell[what])]


def _phi(plt: Any, found: Mapping[Key, dict[str, Any]], table: Table, where: str) -> Any:
    rows = _with(found, table, where, "phi_history")
    if not rows:
        return None
    figure, grid = plt.subplots(len(rows), FRAMES, figsize=(1.3 * FRAMES, 1.5 * len(rows)), squeeze=False)
    for line, (name, cell) in zip(grid, rows):
        history = cell["phi_history"]
        picks = np.linspace(0, len(history) - 1, FRAMES).round().astype(int)
        for axes, pick in zip(line, picks):
            step, phi = history[pick]
            axes.imshow(matrix_of(phi, len(cell["confusions"][-1])), vmin=-1, vmax=1, cmap="RdBu")
            axes.set_title(f"step {step}", fontsize=6)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=6)
    return figure


def matrix_of(phi: Sequence[float], classes: int) -> np.ndarray:
    """Phi as a matrix: from its diagonal, or from its upper triangle row by row."""
    if len(phi) == classes:
        return np.diag(phi)
    table = np.zeros((classes, classes))
    table[np.triu_indices(classes)] = phi
    return np.maximum(table, table.T) + np.minimum(table, table.T)


def _confusions(plt: Any, found: Mapping[Key, dict[str, Any]], table: Table, where: str) -> Any:
    rows = _with(found, table, where, "confusions")
    if not rows:
        return None
    figure, grid = plt.subplots(len(rows), 2, figsize=(5, 2.4 * len(rows)), squeeze=False)
    for line, (name, cell) in zip(grid, rows):
        for axes, confusion, when in zip(line, cell["confusions"], ("early", "at the end")):
            axes.imshow(np.sqrt(np.array(confusion)), vmin=0, vmax=1, cmap="magma")
            axes.set_title(f"{name}, {when}", fontsize=6)
            axes.set(xticks=[], yticks=[])
    return figure
