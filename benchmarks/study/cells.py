"""The cells of the study, task x row x seed: each is trained once and kept as one line of a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from .rows import BY_NAME, Row
from .tasks import BUILT_IN, Task, problem
from .trial import timed

Key = tuple[str, str, int]


def load_cells(path: Path) -> dict[Key, dict[str, Any]]:
    """Finished cells by task, row and seed. A last line that a crash has cut is left out."""
    if not path.exists():
        return {}
    cells = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        cells[cell["task"], cell["row"], cell["seed"]] = cell
    return cells


def settings_of(task: Task, root: Path | None) -> dict[str, Any]:
    """What the command line may change of a task: cells that differ in it are not one study."""
    built_in = task.data in {known.data for known in BUILT_IN}
    where = None if built_in or root is None else str(root.resolve())
    return {"steps": task.steps, "every": task.every, "root": where}


def refuse_other_settings(
    cells: dict[Key, dict[str, Any]], tasks: Sequence[Task], root: Path | None, path: Path
) -> None:
    """Stop where ``path`` has cells of these tasks that were trained otherwise than asked for now."""
    asked = {task.name: settings_of(task, root) for task in tasks}
    for key, cell in cells.items():
        if key[0] in asked:
            refuse_mismatch(path, key, cell, asked[key[0]])


def refuse_mismatch(path: Path, key: Key, cell: dict[str, Any], asked: dict[str, Any]) -> None:
    """Stop where a cell says other settings than those asked for; what an older file does not say passes."""
    if different := [name for name in asked if name in cell and cell[name] != asked[name]]:
        has, wants = (", ".join(f"{name} = {source[name]}" for name in different) for source in (cell, asked))
        raise SystemExit(f"{path} holds {key} with {has}, asked for: {wants}; choose another --out")


def plan(tasks: Sequence[Task], rows: Sequence[Row], seeds: Iterable[int]) -> list[tuple[Task, Row, int]]:
    """Cells in the order of their seeds, so that a study that is stopped has whole seeds."""
    by_name = {task.name: task for task in tasks}
    wanted: dict[Key, tuple[Task, Row, int]] = {}

    def want(task: Task, row: Row, seed: int) -> None:
        for name in row.needs:
            want(task, BY_NAME[name], seed)
        owner = row.owner(task)
        if owner != task.name and owner not in by_name:
            owner = task.name
        wanted.setdefault((owner, row.name, seed), (by_name[owner], row, seed))

    for seed in seeds:
        for task in tasks:
            for row in rows:
                if row.applies(task):
                    want(task, row, seed)
    return list(wanted.values())


def run_cells(
    tasks: Sequence[Task],
    rows: Sequence[Row],
    seeds: Iterable[int],
    path: Path,
    *,
    workers: int = 2,
    root: Path | None = None,
) -> dict[Key, dict[str, Any]]:
    """Train what is missing in ``path``, ``workers`` cells at a time, one thread each; 0: in this process."""
    cells = load_cells(path)
    refuse_other_settings(cells, tasks, root, path)
    waiting = [
        (task, row, seed)
        for task, row, seed in plan(tasks, rows, seeds)
        if (task.name, row.name, seed) not in cells
    ]
    total, started = len(waiting), time.monotonic()
    if not waiting:
        return cells
    os.environ["OMP_NUM_THREADS"] = "1"
    _end_line(path)
    if workers == 0:
        with path.open("a", encoding="utf-8") as file:
            while (ready := _take_ready(waiting, cells)) is not None:
                task, row, seed = ready
                given = {name: cells[task.name, name, seed] for name in row.needs}
                key = (task.name, row.name, seed)
                cells[key] = train_cell(task, row.name, seed, given, root)
                file.write(json.dumps(cells[key]) + "\n")
                file.flush()
                _report(key, cells[key], total - len(waiting), total, time.monotonic() - started)
        return cells
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context, _start_worker) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        running: dict[Future[dict[str, Any]], Key] = {}
        try:
            while waiting or running:
                while len(running) < workers and (ready := _take_ready(waiting, cells)) is not None:
                    task, row, seed = ready
                    given = {name: cells[task.name, name, seed] for name in row.needs}
                    future = pool.submit(train_cell, task, row.name, seed, given, root)
                    running[future] = (task.name, row.name, seed)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    cells[key] = future.result()
                    file.write(json.dumps(cells[key]) + "\n")
                    file.flush()
                    left = len(waiting) + len(running)
                    _report(key, cells[key], total - left, total, time.monotonic() - started)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return cells


def train_cell(
    task: Task, row: str, seed: int, given: dict[str, dict[str, Any]], root: Path | None
) -> dict[str, Any]:
    """Train one cell; plain numbers only."""
    parts = problem(replace(task, title=""), seed, root)
    about = {"task": task.name, "row": row, "seed": seed} | settings_of(task, root)
    return about | timed(BY_NAME[row].run, task, parts, seed, given)


def _take_ready(
    waiting: list[tuple[Task, Row, int]], cells: dict[Key, dict[str, Any]]
) -> tuple[Task, Row, int] | None:
    """Remove and return the first cell whose needs are met."""
    for place, (task, row, seed) in enumerate(waiting):
        if all((task.name, name, seed) in cells for name in row.needs):
            return waiting.pop(place)
    return None


def _end_line(path: Path) -> None:
    """A line that a crash has cut must not swallow the next one."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _report(key: Key, cell: dict[str, Any], done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    name, value = next(iter(cell["metrics"].items()))
    print(
        f"[{done}/{total}] {key[0]} {key[1]} seed {key[2]}: {name} {value:.1f}, {cell['compute']:.2f} T, "
        f"{cell['seconds']:.1f} s; about {left / 60:.0f} min left",
        flush=True,
        file=sys.stderr,
    )


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


def of_task(
    cells: dict[Key, dict[str, Any]], task: Task, row: Row, seeds: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """The cells of one row of a task, by seed; ends early where one is missing."""
    for seed in seeds:
        for owner in (row.owner(task), task.name):
            if (owner, row.name, seed) in cells:
                yield cells[owner, row.name, seed]
                break
        else:
            return
