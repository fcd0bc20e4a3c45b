"""The paper's children over 2 and 3 processes: the bits of one process, also after a stop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import ALALoss, training
from ala_metric.controller import ControllerSettings
from ala_metric.losses import DistanceMixtureLoss
from ala_metric.metrics import RecallAtK

from .landscape import Task
from .processes import together
from .test_race import Cliff
from .test_training import IMAGES, Noisy, Stop, stop_at

STEPS, CHILDREN = 11, 5


def plain(value: Any) -> Any:
    """Tensors as lists, so that ``==`` compares bits."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def noisy_children(rank: int = 0, **keywords: Any) -> list[Any]:
    """A short run of a network that draws from every global stream, and all that it leaves behind."""
    torch.manual_seed(1 + rank)  # what the first process has counts
    np.random.seed(1 + rank)  # noqa: NPY002
    random.seed(1 + rank)
    model = Noisy()
    loss_fn = ALALoss(
        DistanceMixtureLoss(),
        RecallAtK((1, 2), distance="cosine"),
        lambda: training.embed(model, [(IMAGES.images[:24].float() / 255, IMAGES.labels[:24])]),
        total_steps=STEPS,
        every=2,
        offsets=(0, 1),
        seed=3 + rank,
        settings=ControllerSettings(warm_up=6),
    )
    result = training.fit(
        model,
        loss_fn,
        IMAGES,
        total_steps=STEPS,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        batch_classes=5,
        per_class=3,
        mode="paper",
        children=CHILDREN,
        **keywords,
    )
    assert result.phi_history[-1][1] == tuple(result.phi) == loss_fn.history[-1].phi
    return [
        plain(model.state_dict()),
        [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],  # noqa: NPY002
        plain(loss_fn.learner.state_dict()),
        [[record.phi, record.reward, record.action] for record in loss_fn.history],
        result.losses,
        result.phi_history,
        result.records,
        result.compute,
    ]


def falling_children(children: int = 7) -> list[Any]:
    """Some of them diverge, so that later ones change their places and their processes."""
    task = Task()
    task.landscape = Cliff((0.0, 0.0), (0.35, 0.5))
    loss_fn = task.loss(40, "paper", every=2, settings=ControllerSettings(warm_up=6))
    result = task.fit(40, "paper", loss_fn=loss_fn, children=children)
    arms = [[(arm.number, arm.phi, bool(arm.failed)) for arm in record.arms] for record in result.records]
    return [task.model.weight.item(), result.phi_history, arms, plain(loss_fn.learner.state_dict())]


def work(rank: int, folder: Path, stops: tuple[int, ...]) -> Any:
    options: dict[str, Any] = {"checkpoint": folder / "c", "resume": True}
    if stops[rank]:
        options |= {"checkpoint_every": 1, "on_step": stop_at(stops[rank])}
    try:
        left = noisy_children(rank, **options)
    except (Stop, RuntimeError) as error:  # the other processes see that somebody has left
        return type(error).__name__
    return [left, falling_children()]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return [noisy_children(), falling_children()]


def test_what_is_compared_can_differ(alone: list[Any]) -> None:
    left, falls = alone
    assert left[2]["baseline"] != 0.0
    assert left[2]["optimizer"]["state"]  # the policy has learned
    assert len(left[2]["replay"]["reward"]) == CHILDREN * (STEPS // 2 - 1)
    assert len({arm.phi for arm in left[6][-1].arms}) > 1
    dropped = [sum(failed for *_, failed in arms) for arms in falls[2]]
    assert 0 < sum(dropped[:-1]) < 6


@pytest.mark.parametrize("size", [2, 3])
def test_processes_give_the_bits_of_one(size: int, tmp_path: Path, alone: list[Any]) -> None:
    for found in together(size, tmp_path, work, tmp_path, (0,) * size):
        assert found == alone


@pytest.mark.parametrize("stops", [(5, 9), (20, 13)])
def test_stopped_processes_resume_to_the_same_bits(
    stops: tuple[int, ...], tmp_path: Path, alone: list[Any]
) -> None:
    """Stopped at different steps, before and after episodes were exchanged."""
    assert "Stop" in together(2, tmp_path, work, tmp_path, stops)
    for found in together(2, tmp_path, work, tmp_path, (0, 0)):
        assert found == alone
