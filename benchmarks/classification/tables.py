"""From cells to tables: mean and deviation over seeds, paired differences, CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.study.cells import Key
from benchmarks.study.statistics import Comparison, compare, holm
from benchmarks.study.tables import p_text
from benchmarks.study.tables import table as markdown_table

from .rows import BY_NAME, TABLES, Table

SECOND_RUNS = ("ala-2nd", "ala-2nd-tuned")
HIGHER_IS_BETTER = ("AUCPR", "top-1", "top-5")
Found = Mapping[Key, dict[str, Any]]


def value(cell: dict[str, Any], column: str) -> float:
    """A number of a cell by the name of its column."""
    return float(cell["train_error"] if column == "train error" else cell["metrics"][column])


def by_seed(found: Found, column: str, row: str) -> dict[int, dict[str, Any]]:
    """Cells of a row, by seed."""
    return {seed: cell for (where, name, seed), cell in found.items() if (where, name) == (column, row)}


def gains(cells: dict[int, Any], others: dict[int, Any], column: str) -> list[float]:
    """Paired differences in points, positive where the first is better."""
    sign = 1.0 if column in HIGHER_IS_BETTER else -1.0
    return [
        sign * (value(cells[seed], column) - value(others[seed], column))
        for seed in sorted(cells.keys() & others.keys())
    ]


def primary_column(table: Table, where: str) -> str:
    """What the rows are compared on."""
    if "imbalanced" in where and table.number == 1:
        return "balanced error"
    return next(column for column in table.columns if column != "train error")


def table_text(table: Table, found: Found, columns: Sequence[str]) -> str:
    """All columns of one table of the paper."""
    parts = [f"## Table {table.number}: {table.title.lower()}"]
    parts += [text for where in columns if (text := _column_text(table, found, where))]
    return "\n\n".join(parts)


def _column_text(table: Table, found: Found, where: str) -> str:
    base = by_seed(found, where, table.baseline)
    lines, compared = [], []
    primary = primary_column(table, where)
    for name in table.rows:
        cells = by_seed(found, where, name)
        if not cells:
            continue
        known = [column for column in table.columns if column in (*_known(cells), "train error")]
        numbers = [_spread([value(cell, column) for cell in cells.values()]) for column in known]
        compute = fmean(cell["compute"] for cell in cells.values())
        gain = compare(gains(cells, base, primary)) if base and name != table.baseline else None
        compared.append(gain)
        lines.append((BY_NAME[name].title, *numbers, f"{compute:.2f}", gain, str(len(cells))))
    if not lines:
        return ""
    adjusted = iter(holm([gain.p for gain in compared if gain is not None]))
    rows = [
        (
            title,
            *rest,
            *(("", "", "") if gain is None else (_points(gain), p_text(gain.p), p_text(next(adjusted)))),
            n,
        )
        for title, *rest, gain, n in lines
    ]
    some = next(iter(by_seed(found, where, next(n for n in table.rows if by_seed(found, where, n))).values()))
    head = ("method", *known, "compute / T", f"gain in {primary} [95 %]", "p", "p (Holm)", "seeds")
    note = (
        f"### {where}\n\nT = {some['steps']} steps, K = {some['every']}; %, mean ± standard deviation; "
        f"gain over “{BY_NAME[table.baseline].title}”, paired by seed: BCa interval, sign-flip p."
    )
    if any(by_seed(found, where, name) for name in SECOND_RUNS if name in table.rows):
        note += " Second runs have other weights and batches: with them only the split is paired."
    note += "\n\n"
    return note + markdown_table(head, rows)


def _known(cells: dict[int, Any]) -> list[str]:
    return list(next(iter(cells.values()))["metrics"])


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _points(found: Comparison) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]".replace("-", "−")


def write_csv(path: Path, found: Found) -> None:
    """One line per cell and metric; with all digits, so that ties stay ties."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "row", "seed", "metric", "value", "compute", "cpu_seconds"))
        for (where, row, seed), cell in sorted(found.items()):
            numbers = {**cell["metrics"], "train error": cell["train_error"]}
            for metric, number in numbers.items():
                writer.writerow(
                    (
                        where,
                        row,
                        seed,
                        metric,
                        repr(float(number)),
                        f"{cell['compute']:.3f}",
                        cell["cpu_seconds"],
                    )
                )


def write_tables(found: Found, asked: Mapping[int, Sequence[str]], out: Path) -> str:
    """Write ``classification.csv`` and ``classification.md``; the text of the latter."""
    write_csv(out / "classification.csv", found)
    spent = sum(cell["cpu_seconds"] for cell in found.values()) / 60
    text = f"{len(found)} cells, {spent:.1f} minutes of processor time.\n\n" + "\n\n".join(
        table_text(TABLES[number], found, columns) for number, columns in asked.items()
    )
    (out / "classification.md").write_text(text + "\n", encoding="utf-8")
    return text
