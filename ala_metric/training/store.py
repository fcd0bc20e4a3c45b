"""Checkpoints of a run with children: one file per process, and the one from before the last exchange."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..types import CheckpointError
from .checkpoint import load_checkpoint, save_checkpoint
from .processes import Processes


class Store:
    """Saves and finds the state of :class:`ala_metric.training.stages.Stages`.

    Processes train their arms on their own and meet at the end of each stage, so their files may be of
    different moments. Each writes one before it meets the others and keeps it until the next meeting: whoever
    woke up ahead of the slowest goes back to it. The first process writes ``path``, the others
    ``path.rank1`` and so on; files from before a meeting end in ``.before``.

    Parameters
    ----------
    path
        File, or None to save nothing.
    every
        Save after each multiple of this many steps of this process.
    task
        What the run is; a checkpoint of another one is refused.
    processes
        Of the run.

    Examples
    --------
    >>> import torch
    >>> store = Store(None, None, {"mode": "race"}, Processes(torch.device("cpu")))
    >>> store.save({}), store.load()
    (None, None)
    """

    def __init__(
        self, path: Path | None, every: int | None, task: dict[str, Any], processes: Processes
    ) -> None:
        self.every, self.task, self.processes = every, task, processes
        suffix = "" if processes.rank == 0 else f".rank{processes.rank}"
        self.path = None if path is None else path.with_name(path.name + suffix)
        self._saved_at: int | None = None

    def _before(self, path: Path) -> Path:
        return path.with_name(path.name + ".before")

    def save(self, state: dict[str, Any], before_exchange: bool = False) -> None:
        """Write a checkpoint, where there is a file for it."""
        if self.path is not None:
            path = self._before(self.path) if before_exchange else self.path
            save_checkpoint(path, {"task": self.task, "stages": state})

    def save_if_due(self, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Write a checkpoint whenever another multiple of ``every`` steps is reached or passed."""
        if self.every is None or steps // self.every <= (self._saved_at or 0) // self.every:
            return
        self._saved_at = steps
        self.save(state())

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, of the same stage in every process; None to start afresh."""
        found = [] if self.path is None else [self._read(self.path)]
        if self.path is not None and self.processes.size > 1:
            found.append(self._read(self._before(self.path)))
        states = [state for state in found if state is not None]
        newest = max((state["stage"] for state in states), default=0)
        stage = min(self.processes.everyone(newest))
        same = [state for state in states if state["stage"] == stage]
        if not same and stage > 0:
            raise CheckpointError(f"{self.path} has no checkpoint of stage {stage}, where another process is")
        best = max(same, key=lambda state: state["meter"]["training_steps"], default=None)
        self._saved_at = None if best is None else best["meter"]["training_steps"]
        return best

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        state = load_checkpoint(path)
        if not {"task", "stages"} <= state.keys():
            raise CheckpointError(f"{path} is a checkpoint, but not one of training.fit with children")
        for name, mine in self.task.items():
            if state["task"].get(name) != mine:
                raise ValueError(f"{path} has {name}={state['task'].get(name)!r}, this run has {mine!r}")
        found: dict[str, Any] = state["stages"]
        return found
