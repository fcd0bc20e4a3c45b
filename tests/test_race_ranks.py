"""A race over two processes: the bits of one process, also after both stop at different moments."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ala_metric import training
from ala_metric.controller import GroupController

from .landscape import Task
from .test_race import Cliff, noisy_race
from .test_training import Stop, stop_at


def work(rank: int, folder: str, stops: tuple[int, int], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    options: dict[str, Any] = {"checkpoint": Path(folder) / "c", "resume": True}
    outcome: Any = None
    try:
        if stops[rank]:
            options |= {"checkpoint_every": 1, "on_step": stop_at(stops[rank])}
        outcome = noisy_race(**options)[1]
    except (Stop, RuntimeError) as error:  # the other process sees that somebody has left
        outcome = type(error).__name__
    if stops == (0, 0):
        task = Task()
        task.landscape = Cliff((0.45, 0.3), (0.1, 0.9))
        result = task.fit(40, "race")
        outcome = [outcome, result.phi, [record.dropped for record in result.records]]
        outcome.append(forks())
        try:
            paper = task.loss(40, "paper")
            task.fit(40, "paper", loss_fn=paper, children=2)
        except NotImplementedError as error:
            outcome.append(str(error))
    results.put((rank, outcome))
    results.close()
    results.join_thread()
    os._exit(0)  # a process that has left its group does not wait for it


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
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    (folder / "meet").unlink(missing_ok=True)
    started = [context.Process(target=work, args=(rank, str(folder), stops, results)) for rank in (0, 1)]
    for process in started:
        process.start()
    found = dict(results.get(timeout=100) for _ in started)
    for process in started:
        process.join(timeout=20)
        process.kill()
    return [found[0], found[1]]


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
    assert first[4] == "children of mode='paper' train in one process, there are 2 of them"


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    two(tmp_path, (9, 9))
    with pytest.raises(ValueError, match="has processes=2, this run has 1"):
        noisy_race(checkpoint=tmp_path / "c", resume=True)
    assert training.load_checkpoint(tmp_path / "c")["task"]["kind"] == "Race"
