"""From cells to tables: derived rows, paired comparisons, CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .cells import Key, load_cells, of_task
from .rows import BY_NAME, ROWS, STATIC_NAMES
from .statistics import Comparison, compare, holm
from .tasks import Task

LOWER_IS_BETTER = ("balanced error", "error")
BASELINE = "fixed"
Line = tuple[str, str, list[dict[str, Any]]]


PRIMARY = (
    ("glyphs-allpairs", "race", "fixed"),
    ("glyphs-allpairs", "race", "best-of-random"),
    ("glyphs-focal", "race", "fixed"),
    ("glyphs-focal", "race", "best-of-random"),
    ("glyphs-allpairs", "paired", "fixed"),
)
"""Task, row and the row it is claimed to beat; fixed before the study was run, corrected together."""
EQUAL_COMPUTE = (("race", "fixed-4"), ("paired", "fixed-2"))
"""A row with children and fixed parameters trained for about as long, on every task. These controls were
added after the study was run; they are corrected together, apart from the claims above."""
SECONDARY = (
    ("race", "fixed"),
    ("race", "best-of-random"),
    ("race", "best-of-both"),
    ("race", "halving"),
    ("race", "race-no-twins"),
    ("race", "race-no-critic"),
    ("race", "race-plain"),
    ("race", "race-final"),
    ("race", "race-mean"),
    ("paired", "fixed"),
    ("guarded", "fixed"),
    ("paper", "fixed"),
    ("random-walk", "fixed"),
    ("halving", "fixed-4"),
    ("best-of-random", "fixed-4"),
    ("race", "multisimilarity-4"),
    ("race-2", "fixed-2"),
    ("guarded", "fixed-2"),
    ("paper", "fixed-2"),
)
"""Pairs of rows compared on every task."""


def write_tables(
    path: Path, tasks: Sequence[Task], seeds: Iterable[int], out: Path, others: Path | None = None
) -> None:
    """Write ``study.csv``, every seed's values, and ``study.md``.

    Rows that are not there are taken from ``others``, the CSV of another run.
    """
    cells, seeds = load_cells(path), list(seeds)
    lines = lines_of_tasks(cells, tasks, seeds, others)
    write_csv(out / "study.csv", lines)
    text = markdown(tasks, lines, cells)
    (out / "study.md").write_text(text, encoding="utf-8")
    print(text)


def lines_of_tasks(
    cells: dict[Key, dict[str, Any]], tasks: Sequence[Task], seeds: Sequence[int], others: Path | None
) -> dict[str, list[Line]]:
    """Rows of every task that has fixed parameters, those of another run's CSV included."""
    lines = {task.name: lines_of(cells, task, seeds) for task in tasks}
    if others is not None:
        older = read_csv(others, seeds)
        lines = {name: with_rows(rows, older.get(name, [])) for name, rows in lines.items()}
    return {name: rows for name, rows in lines.items() if any(row[0] == BASELINE for row in rows)}


def lines_of(cells: dict[Key, dict[str, Any]], task: Task, seeds: Sequence[int]) -> list[Line]:
    """Name, title and cells by seed of every row of a task that is there, derived rows included."""
    found: list[Line] = []
    by_row = {row.name: list(of_task(cells, task, row, seeds)) for row in ROWS if row.applies(task)}
    for row in ROWS:
        own = by_row.get(row.name)
        if own and row.name not in STATIC_NAMES[1:]:
            found.append((row.name, _title(row.name), own))
        if row.name == STATIC_NAMES[-1]:
            found += _best_of(by_row)
    return found


def read_csv(path: Path, seeds: Iterable[int]) -> dict[str, list[Line]]:
    """Rows by task of a CSV that ``write_csv`` has written, of these seeds."""
    wanted = set(seeds)
    cells: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            seed = int(line["seed"])
            if seed in wanted:
                numbers = {name: float(line[name]) for name in ("compute", "cpu_seconds")}
                row = cells.setdefault(line["task"], {}).setdefault(line["row"], {})
                cell = row.setdefault(seed, {"seed": seed, "metrics": {}, **numbers})
                cell["metrics"][line["metric"]] = float(line["value"])
    return {
        task: [(name, _title(name), list(by_seed.values())) for name, by_seed in rows.items()]
        for task, rows in cells.items()
    }


def with_rows(lines: Sequence[Line], others: Sequence[Line]) -> list[Line]:
    """Rows of a task and those of ``others`` that it lacks, in the order of the tables."""
    have = {name for name, *_ in lines}
    return sorted(
        [*lines, *(line for line in others if line[0] not in have)], key=lambda line: _place(line[0])
    )


def _place(name: str) -> int:
    """Where a row stands; the derived ones behind what they are derived from."""
    names = [row.name for row in ROWS]
    return names.index(name if name in names else STATIC_NAMES[-1])


def _title(name: str) -> str:
    if name == STATIC_NAMES[0]:
        return "random static Φ"
    return BEST_OF[name][0] if name in BEST_OF else BY_NAME[name].title


BEST_OF = {
    "best-of-random": (f"best of {len(STATIC_NAMES)} random static Φ", STATIC_NAMES),
    "best-of-both": (
        f"best of fixed and {len(STATIC_NAMES) - 1} random static Φ",
        (BASELINE, *STATIC_NAMES[:-1]),
    ),
}


def _best_of(by_row: dict[str, list[dict[str, Any]]]) -> list[Line]:
    """Best of n static parameters by the validation metric, the passes that choose counted."""
    found: list[Line] = []
    for name, (title, members) in BEST_OF.items():
        columns = [by_row.get(member, []) for member in members]
        chosen = []
        for group in zip(*columns):
            best = max(group, key=lambda cell: cell["validation"])
            spent = sum(cell["compute"] + cell["pass_cost"] for cell in group)
            chosen.append(best | {"compute": spent})
        if chosen:
            found.append((name, title, chosen))
    return found


def metric_of(cell: dict[str, Any]) -> str:
    """The metric that the task is about: the first one."""
    return next(iter(cell["metrics"]))


def gains(cells: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[float]:
    """Paired differences in points, positive where the first is better."""
    metric = metric_of(others[0])
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    by_seed = {cell["seed"]: cell for cell in others}
    return [
        sign * (cell["metrics"][metric] - by_seed[cell["seed"]]["metrics"][metric])
        for cell in cells
        if cell["seed"] in by_seed
    ]


def write_csv(path: Path, lines: Mapping[str, Sequence[Line]]) -> None:
    """One line per task, row, seed and metric; with all digits, so that ties stay ties."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "row", "seed", "metric", "value", "compute", "cpu_seconds"))
        for task, rows in lines.items():
            for name, _, cells in rows:
                for cell in cells:
                    for metric, value in cell["metrics"].items():
                        spent = (f"{cell['compute']:.3f}", cell["cpu_seconds"])
                        writer.writerow((task, name, cell["seed"], metric, repr(float(value)), *spent))


def markdown(tasks: Sequence[Task], lines: dict[str, list[Line]], cells: dict[Key, dict[str, Any]]) -> str:
    """The claims, pairs of rows on all tasks, then one table per task."""
    seconds = sum(cell["cpu_seconds"] for cell in cells.values())
    wall = sum(cell["seconds"] for cell in cells.values())
    parts = [
        f"{len(cells):,} cells, {seconds / 60:.0f} minutes of processor time "
        f"({wall / 60:.0f} minutes of wall-clock time added up over the cells).",
        primary_table(lines),
        equal_compute_table(lines),
        secondary_table(lines),
        means_table(lines),
        *(task_table(task, lines[task.name]) for task in tasks if task.name in lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def primary_table(lines: dict[str, list[Line]]) -> str:
    """The claims, with Holm's correction over all of them."""
    asked = [(*claim, found) for claim in PRIMARY if (found := between(lines, *claim))]
    if not asked:
        return ""
    adjusted = holm([found.p for *_, found in asked])
    rows = [
        (task, first, second, _points(found), p_text(found.p), p_text(p), str(found.pairs))
        for (task, first, second, found), p in zip(asked, adjusted)
    ]
    head = ("task", "row", "against", "gain in points [95 %]", "p", "p (Holm)", "seeds")
    return "## Primary comparisons\n\n" + table(head, rows)


def equal_compute_table(lines: dict[str, list[Line]]) -> str:
    """Rows with children against fixed parameters trained for as long, Holm's correction over all."""
    asked = [
        (task, first, second, found)
        for first, second in EQUAL_COMPUTE
        for task in lines
        if (found := between(lines, task, first, second))
    ]
    if not asked:
        return ""
    adjusted = holm([found.p for *_, found in asked])
    rows = []
    for (task, first, second, found), p in zip(asked, adjusted):
        spent = (f"{_compute(lines[task], name):.2f}" for name in (first, second))
        tests = (_points(found), p_text(found.p), p_text(p), str(found.pairs))
        rows.append((task, first, second, " : ".join(spent), *tests))
    head = ("task", "row", "against", "compute / T", "gain in points [95 %]", "p", "p (Holm)", "seeds")
    return "## Against fixed parameters trained for as long\n\n" + table(head, rows)


def _compute(lines: Sequence[Line], name: str) -> float:
    return fmean(cell["compute"] for row, _, cells in lines if row == name for cell in cells)


def secondary_table(lines: dict[str, list[Line]]) -> str:
    """Pairs of rows on every task: mean gain in points and its interval, one column per task."""
    rows = []
    for first, second in SECONDARY:
        found = [between(lines, task, first, second) for task in lines]
        if any(found):
            rows.append((f"{first} − {second}", *("" if f is None else _points(f) for f in found)))
    if not rows:
        return ""
    note = "Gain in points [95 % interval], not corrected for their number.\n\n"
    return "## All tasks side by side\n\n" + note + table(("rows", *lines), rows)


def means_table(lines: dict[str, list[Line]]) -> str:
    """Means of the first metric, one column per task."""
    titles: dict[str, str] = {}
    means: dict[tuple[str, str], str] = {}
    for task, rows in lines.items():
        for name, title, cells in rows:
            titles.setdefault(name, title)
            metric = metric_of(cells[0])
            means[name, task] = f"{fmean(cell['metrics'][metric] for cell in cells):.1f}"
    body = [
        (titles[name], *(means.get((name, task), "") for task in lines))
        for name in sorted(titles, key=_place)
    ]
    return "## Means of the first metric\n\n" + table(("row", *lines), body) if body else ""


def between(lines: dict[str, list[Line]], task: str, first: str, second: str) -> Comparison | None:
    """Compare two rows of a task, if both are there."""
    rows = {name: cells for name, _, cells in lines.get(task, [])}
    if first not in rows or second not in rows:
        return None
    differences = gains(rows[first], rows[second])
    return compare(differences) if differences else None


def task_table(task: Task, lines: Sequence[Line]) -> str:
    """Means over the seeds and paired differences to fixed parameters."""
    base = next((cells for name, _, cells in lines if name == BASELINE), None)
    columns = list(lines[0][2][0]["metrics"])
    rows = []
    for name, title, cells in lines:
        values = [f"{fmean(cell['metrics'][column] for cell in cells):.1f}" for column in columns]
        difference = p = ""
        if base is not None and name != BASELINE:
            found = compare(gains(cells, base))
            difference, p = _points(found), p_text(found.p)
        compute = f"{fmean(cell['compute'] for cell in cells):.2f}"
        rows.append((title, *values, compute, difference, p, str(len(cells))))
    direction = "lower is better" if columns[0] in LOWER_IS_BETTER else "higher is better"
    head = ("row", *columns, "compute / T", f"gain in {columns[0]} [95 %]", "p", "seeds")
    title = f"## {task.title}\n\nT = {task.steps}, K = {task.every}; {columns[0]}: {direction}; in %.\n\n"
    return title + table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def _points(found: Comparison) -> str:
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]".replace("-", "−")


def p_text(p: float) -> str:
    """A p value as the tables print it; never 0."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.3f}" if p >= 0.0095 else f"{p:.4f}"
