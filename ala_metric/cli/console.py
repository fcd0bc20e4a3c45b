"""What the commands print: tables and progress, with rich where it helps and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

from ..types import AlaMetricError

EXTRA_OF = {
    "rich": "cli",
    "yaml": "cli",
    "matplotlib": "cli",
    "PIL": "cli",
    "sklearn": "cli",
    "faiss": "faiss",
}


class MissingPartError(AlaMetricError):
    """An optional package is not installed; the message names the command that adds it."""


def install_command(module: str) -> str:
    """Command that adds the optional part which brings ``module``."""
    return f"pip install 'ala-metric[{EXTRA_OF.get(module, 'cli')}]'"


def is_installed(module: str) -> bool:
    """Whether an optional module could be imported."""
    return find_spec(module) is not None


def optional(module: str, purpose: str) -> ModuleType:
    """Import an optional module, or say what needs it and how to add it."""
    try:
        return import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            name = module.split(".")[0]
            raise MissingPartError(f"{purpose} needs {name}: {install_command(name)}") from None
        raise


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align a table in plain text: the first column to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def align(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([align(lines[0]), rule, *map(align, lines[1:])])


class Progress(Protocol):
    """Receives the number of finished steps of one named task."""

    def update(self, task: str, done: int, note: str = "") -> None:
        """Say that ``done`` steps of ``task`` are finished."""
        ...


class PlainProgress:
    """One line per task and tenth of its steps, for logs and pipes."""

    def __init__(self, totals: dict[str, int]) -> None:
        self.totals = totals
        self._said = dict.fromkeys(totals, 0)
        self._start = time.monotonic()

    def update(self, task: str, done: int, note: str = "") -> None:
        """Print a line when another tenth of the steps is finished."""
        tenth = 10 * done // max(self.totals[task], 1)
        if tenth > self._said[task]:
            self._said[task] = tenth
            seconds = time.monotonic() - self._start
            print(
                f"{task}: step {done}/{self.totals[task]}  {seconds:.0f} s  {note}".rstrip(), file=sys.stderr
            )


class RichProgress:
    """One live bar per task."""

    def __init__(self, totals: dict[str, int]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._ids = {task: self.bars.add_task(task, total=total, note="") for task, total in totals.items()}

    def update(self, task: str, done: int, note: str = "") -> None:
        """Move the bar."""
        self.bars.update(self._ids[task], completed=done, note=note)


@contextmanager
def progress(totals: dict[str, int]) -> Iterator[Progress]:
    """Live bars on a terminal with rich; plain lines otherwise."""
    if sys.stderr.isatty() and is_installed("rich"):
        live = RichProgress(totals)
        with live.bars:
            yield live
    else:
        yield PlainProgress(totals)
