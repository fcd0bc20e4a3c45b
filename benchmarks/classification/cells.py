"""The cells of a table, column x row x seed: each is trained once and kept as one line of a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.cells import Key, load_cells, refuse_mismatch
from benchmarks.study.trial import timed

from .rows import BY_NAME, TABLES, Setting, folder, metric_of
from .tasks import Task, problem
from .trial import Size


@dataclass(frozen=True)
class Cell:
    """What one worker trains."""

    table: int
    task: Task
    network: str
    row: str
    seed: int
    size: Size
    source: Task | None
    policies: Path

    @property
    def column(self) -> str:
        """What the cell's numbers may be compared with: same task, network and metric of the controller."""
        metric = TABLES[self.table].metric
        return f"{self.task.name}/{self.network}" + ("" if metric == "task" else f"/{metric}")

    @property
    def key(self) -> Key:
        """Its place in the file."""
        return self.column, self.row, self.seed

    @property
    def settings(self) -> dict[str, Any]:
        """What the command line may change of it: cells that differ here are not of one table."""
        source = None if self.source is None else self.source.root
        return {
            **asdict(self.size),
            "root": folder(self.task.root),
            "image_size": self.task.size,
            "source_root": folder(source),
        }


def run_cells(cells: Sequence[Cell], path: Path, workers: int = 2) -> dict[Key, dict[str, Any]]:
    """Train what is missing in ``path``, ``workers`` cells at a time, one thread each; 0: in this process."""
    found = load_cells(path)
    for cell in cells:
        if cell.key in found:
            refuse_mismatch(path, cell.key, found[cell.key], cell.settings)
    waiting = {cell.key: cell for cell in cells if cell.key not in found}
    if not waiting:
        return found
    os.environ["OMP_NUM_THREADS"] = "1"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:  # a line that a crash has cut
            file.write("\n")
    total, started, queue = len(waiting), time.monotonic(), list(waiting.values())
    with _pool(workers) as pool, path.open("a", encoding="utf-8") as file:
        running: dict[Future[dict[str, Any]], Cell] = {}
        try:
            while queue or running:
                while queue and len(running) < max(workers, 1):
                    cell = queue.pop(0)
                    running[pool.submit(train_cell, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    found[cell.key] = future.result()
                    file.write(json.dumps(found[cell.key]) + "\n")
                    file.flush()
                    done = total - len(queue) - len(running)
                    _report(found[cell.key], done, total, time.monotonic() - started)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


class _Here(Executor):
    """Runs at once, in this process."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result of ``work``, or its error."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(workers: int) -> Executor:
    if workers == 0:
        return _Here()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)


def train_cell(cell: Cell) -> dict[str, Any]:
    """Train one cell; plain numbers only."""
    parts = problem(cell.task, cell.seed)
    metric = metric_of(TABLES[cell.table], parts)
    setting = Setting(parts, cell.network, cell.size, cell.seed, metric, cell.source, cell.policies)
    column, row, seed = cell.key
    about = {"task": column, "row": row, "seed": seed} | cell.settings
    return about | timed(BY_NAME[row].run, setting)


def _report(cell: dict[str, Any], done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done) / 60
    print(
        f"[{done}/{total}] {cell['task']} {cell['row']} seed {cell['seed']}: "
        f"error {cell['metrics']['error']:.2f}, {cell['compute']:.2f} T, {cell['seconds']:.1f} s; "
        f"about {left:.1f} min left",
        file=sys.stderr,
        flush=True,
    )


def _start() -> None:
    import torch

    torch.set_num_threads(1)
