"""The command line of the classification benchmark."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ala_metric.training import models

from .cells import Cell, run_cells
from .rows import BY_NAME, POLICY_SOURCE, TABLES
from .tables import write_tables
from .tasks import DATA, tasks_of
from .trial import Size

CIFAR_SIZE = Size(steps=64_000, every=200, batch=128, lr=0.1)
SIZES = {"cifar10": CIFAR_SIZE, "imagenet": replace(CIFAR_SIZE, steps=600_000, batch=256)}
NEEDS_FILES = ("cifar10", "imagenet")


def main(argv: list[str]) -> int:
    """Train what is missing and write the tables."""
    options = _parser().parse_args(argv)
    cells = planned(options)
    options.out.mkdir(parents=True, exist_ok=True)
    found = run_cells(cells, options.out / "cells.jsonl", options.workers)
    asked: dict[int, list[str]] = {}
    for cell in cells:
        columns = asked.setdefault(cell.table, [])
        if cell.column not in columns:
            columns.append(cell.column)
    print(write_tables(found, asked, options.out))
    if not options.no_plots:
        from .plots import write_plots

        for number, columns in asked.items():
            for column in columns:
                for path in write_plots(found, TABLES[number], column, options.out):
                    print(path)
    return 0


def planned(options: argparse.Namespace) -> list[Cell]:
    """Cells in the order of their seeds, so that a run that is stopped has whole seeds."""
    if options.data in NEEDS_FILES and options.root is None:
        raise SystemExit(f"classification: {options.data} is read from files; name their folder with --root")
    tasks = tasks_of(options.data, options.root, options.image_size)
    if options.tasks:
        known = {task.name: task for task in tasks}
        if unknown := sorted(set(options.tasks) - set(known)):
            raise SystemExit(f"classification: unknown tasks {unknown}; there are {', '.join(known)}")
        tasks = [known[name] for name in options.tasks]
    size = SIZES.get(options.data, Size())
    asked = {"steps": options.steps, "every": options.every, "batch": options.batch, "lr": options.lr}
    size = replace(size, **{name: value for name, value in asked.items() if value is not None})
    source_name = POLICY_SOURCE[options.data]
    source = tasks_of(source_name, options.source_root or options.root)[0]
    if source_name not in NEEDS_FILES:
        source = tasks_of(source_name)[0]
    seen: dict[tuple[int, tuple[str, str, int]], Cell] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        for number in options.table:
            table = TABLES[number]
            for task in tasks if number == 1 else tasks[:1]:
                for network in options.networks or table.networks[options.data]:
                    for row in options.rows or table.rows:
                        if row not in table.rows:
                            continue
                        folder = options.out / "policies"
                        cell = Cell(number, task, network, row, seed, size, source, folder)
                        seen[number, cell.key] = cell
    return list(seen.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks classification", description=__doc__)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--root", type=Path, help="folder with the files of cifar10 or imagenet")
    parser.add_argument("--source-root", type=Path, help="of cifar10, for the policy that imagenet is given")
    parser.add_argument("--image-size", type=int, help="pixels that image files are resized to; 64")
    parser.add_argument("--table", type=int, nargs="+", choices=sorted(TABLES), default=[1])
    parser.add_argument("--tasks", nargs="+", help="tasks of the data set; all if not given")
    parser.add_argument("--rows", nargs="+", choices=list(BY_NAME), metavar="ROW", help=", ".join(BY_NAME))
    parser.add_argument("--networks", nargs="+", choices=list(models.MODELS))
    parser.add_argument("--seeds", type=int, default=10, help="number of paired seeds")
    parser.add_argument("--seed", type=int, default=0, help="first of them")
    parser.add_argument("--steps", type=int, help="training steps of a run, T")
    parser.add_argument("--every", type=int, help="training steps per controller step, K")
    parser.add_argument("--batch", type=int, help="images in a batch")
    parser.add_argument("--lr", type=float, help="learning rate of momentum SGD at the start")
    parser.add_argument("--workers", type=int, default=2, help="cells at the same time; 0: in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/classification"), help="folder to write")
    parser.add_argument("--no-plots", action="store_true")
    return parser
