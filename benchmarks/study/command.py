"""The command line of the study."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from .cells import load_cells, refuse_other_settings, run_cells
from .rows import BY_NAME, ROWS
from .tables import write_tables
from .tasks import Task, tasks_of

DATA = ("glyphs", "digits", "sop", "lfw", "cifar10")


def main(argv: list[str]) -> int:
    """Run the study, or draw one of the paper's figures."""
    options = _parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = chosen_tasks(options)
    if options.figure:
        from .figures import draw

        return draw(options.figure, options.out, range(options.seed, options.seed + options.seeds))
    seeds = range(options.seed, options.seed + options.seeds)
    if options.overhead:
        from .overhead import overhead

        overhead(options.out)
        return 0
    if options.diagnose:
        from .diagnosis import diagnose

        diagnose(tasks, seeds, options.out, options.workers, options.steps)
        return 0
    rows = [BY_NAME[name] for name in options.rows] if options.rows else list(ROWS)
    path = options.out / "cells.jsonl"
    if options.tables_only:
        refuse_other_settings(load_cells(path), tasks, options.root, path)
    else:
        run_cells(tasks, rows, seeds, path, workers=options.workers, root=options.root)
    write_tables(path, tasks, seeds, options.out, options.others)
    if not options.no_plots:
        from .plots import write_plots

        write_plots(path, tasks, seeds, options.out, options.others)
    return 0


def chosen_tasks(options: argparse.Namespace) -> list[Task]:
    """Tasks of the data sets that were asked for, with the steps that were asked for."""
    found = [task for name in options.data for task in tasks_of(name)]
    if options.tasks:
        known = {task.name: task for task in found}
        if unknown := set(options.tasks) - set(known):
            raise SystemExit(f"study: unknown tasks {sorted(unknown)}; there are {', '.join(known)}")
        found = [known[name] for name in options.tasks]
    changed = {"steps": options.steps, "every": options.every}
    changed = {name: value for name, value in changed.items() if value is not None}
    return [replace(task, **changed) for task in found]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks study", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["glyphs", "digits"])
    parser.add_argument("--root", type=Path, help="folder with the files of sop, lfw or cifar10")
    parser.add_argument("--tasks", nargs="+", help="tasks of these data sets; all if not given")
    parser.add_argument("--rows", nargs="+", choices=list(BY_NAME), metavar="ROW", help=", ".join(BY_NAME))
    parser.add_argument("--seeds", type=int, default=10, help="number of paired seeds")
    parser.add_argument("--seed", type=int, default=0, help="first of them")
    parser.add_argument("--steps", type=int, help="iterations of a run, T; 600")
    parser.add_argument("--every", type=int, help="iterations per controller step, K; 10")
    parser.add_argument("--workers", type=int, default=2, help="cells at the same time; 0: in this process")
    parser.add_argument("--out", type=Path, required=True, help="folder for cells, tables and plots")
    parser.add_argument("--tables-only", action="store_true", help="train nothing, write from what is there")
    parser.add_argument(
        "--others", type=Path, metavar="CSV", help="a study.csv whose rows the tables have too, where missing"
    )
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--figure", type=int, choices=(1, 3, 4, 5), help="a figure of the paper instead")
    parser.add_argument(
        "--diagnose", action="store_true", help="what the published reward says about actions"
    )
    parser.add_argument("--overhead", action="store_true", help="what the published controller costs")
    return parser
