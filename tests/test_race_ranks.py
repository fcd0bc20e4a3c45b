"""A race over two processes: the bits of one process, also after both stop at different moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ala_metric import training
from ala_metric.controller import GroupController

from .landscape import Task
from .processes import together
from .test_race import Cliff, noisy_race
from .test_training import Stop, stop_at


def work(rank: int, folder: Path, stops: tuple[int, int]) -> Any:
    options: dict[str, Any] = {"checkpoint": folder / "c", "resume": True}
    if stops[rank]:
        options |= {"checkpoint_every": 1, "on_step": stop_at(stops[rank])}
    try:
        left = noisy_race(**options)[1]
    except (Stop, RuntimeError) as error:  # the other process sees that somebody has left
        return type(error).__name__
    task = Task()
    task.landscape = Cliff((0.45, 0.3), (0.1, 0.9))
    result = task.fit(40, "race")
    return [left, result.phi, [record.dropped for record in result.records], forks()]


def forks() -> list[Any]:
    """Forks by a policy, which decides by statistics that only one process has measured."""
    task = Task()
    settings = training.PairedSettings(forks=6, draws=3, branches=3, horizon=0.5)
    seen = []  # what the policy decides by, which changes its draws only now and then
    propose = GroupController.propose

    def note(self: Any, phi: Any, statistics: torch.Tensor, progress: float, count: int) -> Any:
        seen.append(statistics.tolist())
        return propose(self, phi, statistics, progress, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupController, "propose", note)
        result = task.fit(40, "paired", paired=settings)
    left = [task.model.weight.item(), result.losses, result.phi_history, result.records, result.compute]
    return [*left, seen]


def two(folder: Path, stops: tuple[int, int]) -> list[Any]:
    return together(2, folder, work, folder, stops)


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return noisy_race()[1]


@pytest.mark.parametrize("stops", [(3, 7), (7, 2), (9, 9), (13, 10)])
def test_two_processes_give_the_bits_of_one(stops: tuple[int, int], tmp_path: Path, alone: list[Any]) -> None:
    """Stopped at different steps, some before and some after the first exchange, then resumed."""
    assert "Stop" in two(tmp_path, stops)
    first, second = two(tmp_path, (0, 0))
    assert first[0] == second[0] == alone
    task = Task()
    task.landscape = Cliff((0.45, 0.3), (0.1, 0.9))
    result = task.fit(40, "race")
    assert first[1:3] == second[1:3] == [result.phi, [record.dropped for record in result.records]]
    assert sum(first[2]) > 0
    assert first[3] == second[3] == forks()


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    two(tmp_path, (9, 9))
    with pytest.raises(ValueError, match="has processes=2, this run has 1"):
        noisy_race(checkpoint=tmp_path / "c", resume=True)
    assert training.load_checkpoint(tmp_path / "c")["task"]["kind"] == "Race"
