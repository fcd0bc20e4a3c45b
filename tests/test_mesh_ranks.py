"""Children times data on a 2 x 2 mesh: the decisions of one process, its weights up to rounding."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import miners
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ala_metric import ALALoss, losses, training
from ala_metric.classification import AdaptiveClassificationLoss
from ala_metric.controller import ControllerSettings
from ala_metric.losses import DistanceMixtureLoss, DistributedLoss
from ala_metric.metrics import ClassificationError, RecallAtK

from .landscape import Task
from .processes import together
from .test_race import Cliff
from .test_training import IMAGES, Stop, stop_at

RTOL = 1e-6  # float64 weights; sums over two processes are rounded in another order
CLASSES = 12


def mesh_of(shape: tuple[int, int] | None) -> Any:
    return None if shape is None else init_device_mesh("cpu", shape, mesh_dim_names=("child", "data"))


def train(mode: str, mesh: Any, rank: int = 0, **keywords: Any) -> list[Any]:
    """Pairs over the joined batch in mode paper, samples one by one in a race."""
    torch.manual_seed(7 + rank)  # what the first process has counts
    pairs = mode == "paper"
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    group = None if mesh is None else mesh.get_group("data")
    loss: Any = (
        DistributedLoss(DistanceMixtureLoss(), group=group) if pairs else AdaptiveClassificationLoss(CLASSES)
    )
    validated = []

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        validated.append(1)
        with torch.no_grad():
            return model(IMAGES.images.double() / 255), IMAGES.labels

    loss_fn = ALALoss(
        loss,
        RecallAtK((1, 2)) if pairs else ClassificationError(),
        validate,
        total_steps=12,
        every=2,
        mode="paper" if pairs else "fixed",
        settings=ControllerSettings(warm_up=4),
    )
    options: dict[str, Any] = (
        {"children": 3} if pairs else {"race": training.RaceSettings(rungs=((0.5, 4), (1.0, 1)))}
    )
    result = training.fit(
        model,
        loss_fn,
        Double(),
        total_steps=12,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        batch_classes=4,
        per_class=3,
        mode=mode,  # type: ignore[arg-type]
        mesh=mesh,
        **options,
        **keywords,
    )
    return [
        torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(),
        list(result.losses),
        [[(arm.number, arm.parent, arm.phi, arm.lives) for arm in record.arms] for record in result.records],
        result.phi_history,
        [(record.reward, record.action) for record in loss_fn.history],
        result.compute,
        len(validated),
    ]


class Double:
    """The images as float64, so that rounding is far below what is compared."""

    labels = IMAGES.labels

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = IMAGES[index]
        return image.double(), label


def falling(mesh: Any) -> list[Any]:
    """Children that diverge in a step; halves of these gradients add up without rounding."""
    task = Task()
    task.landscape = Cliff((0.0, 0.0), (0.35, 0.5))
    loss_fn = task.loss(20, "paper", every=2, settings=ControllerSettings(warm_up=6))
    result = task.fit(20, "paper", loss_fn=loss_fn, children=5, mesh=mesh)
    return [task.model.weight.item(), [[bool(arm.failed) for arm in r.arms] for r in result.records]]


class Half(nn.Module):
    """One process of the team has a loss that is not a number, the other one has."""

    statistics_width = 1

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.inner, self.rank = losses.FocalWeightingLoss(), rank
        self.phi_spec, self.set_phi, self.statistics = (
            self.inner.phi_spec,
            self.inner.set_phi,
            self.inner.statistics,
        )

    @property
    def phi(self) -> torch.Tensor:
        return self.inner.phi

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * (float("nan") if self.rank else 1.0)


def work(rank: int, shape: tuple[int, int], folder: Path, stop: int) -> Any:
    mesh = mesh_of(shape)
    options: dict[str, Any] = {"checkpoint": folder / "c", "resume": True}
    if stop:
        options |= {"checkpoint_every": 1, "on_step": stop_at(stop)}
    try:
        paper = train("paper", mesh, rank, **options)
    except (Stop, RuntimeError) as error:
        return type(error).__name__
    task = Task()
    half = ALALoss(Half(mesh.get_local_rank("data")), task.metric, task.validate, 4, mode="fixed")  # type: ignore[arg-type]
    try:
        task.fit(4, "race", loss_fn=half, mesh=mesh, race=training.RaceSettings(rungs=((0.5, 2), (1.0, 1))))
        failure = ""
    except FloatingPointError as error:
        failure = str(error)
    return [paper, train("race", mesh, rank), falling(mesh), failure]


def same(found: list[Any], alone: list[Any], first: bool) -> None:
    np.testing.assert_allclose(found[0], alone[0], rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(found[1], alone[1], rtol=RTOL)
    assert found[2:6] == alone[2:6]
    assert (found[6] > 0) == first  # the first of each pair validates


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return [train("paper", None), train("race", None), falling(None)]


def test_a_mesh_gives_the_numbers_of_one_process(tmp_path: Path, alone: list[Any]) -> None:
    found = together(4, tmp_path, work, (2, 2), tmp_path, 0)
    for rank, (paper, race, falls, failure) in enumerate(found):
        same(paper, alone[0], rank % 2 == 0)
        same(race, alone[1], rank % 2 == 0)
        assert falls == alone[2]
        assert "the loss of step 1 is nan" in failure or "dropped by its process" in failure
        np.testing.assert_array_equal(paper[0], found[0][0][0])  # replicas do not drift apart
    assert any(any(row) for row in alone[2][1])
    assert len({arm[2] for arm in alone[0][2][-1]}) > 1


def test_a_stopped_mesh_resumes_to_the_same_bits(tmp_path: Path, alone: list[Any]) -> None:
    (tmp_path / "whole").mkdir()
    whole = together(2, tmp_path, work, (1, 2), tmp_path / "whole", 0)
    assert "Stop" in together(2, tmp_path, work, (1, 2), tmp_path, 17)
    for before, after in zip(whole, together(2, tmp_path, work, (1, 2), tmp_path, 0)):
        np.testing.assert_array_equal(before[0][0], after[0][0])
        assert before[0][1:6] == after[0][1:6]


def interrupted(rank: int, folder: Path) -> Any:
    """A signal reaches one process of a team only."""

    def on_step(done: int, loss: float) -> None:
        if rank == 1 and done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    mesh = mesh_of((1, 2))
    with pytest.raises(training.Interrupted) as stopped:
        train("paper", mesh, rank, checkpoint=folder / "c", on_step=on_step)
    return stopped.value.step, train("paper", mesh, rank, checkpoint=folder / "c", resume=True)[:6]


def test_a_signal_stops_the_whole_team(tmp_path: Path, alone: list[Any]) -> None:
    for step, found in together(2, tmp_path, interrupted, tmp_path):
        assert step == 9
        np.testing.assert_allclose(found[0], alone[0][0], rtol=RTOL, atol=1e-9)
        assert found[2:] == alone[0][2:6]


def rows_of(pair: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(pair)
    return torch.randn(7, 4, generator=generator, dtype=torch.float64), torch.arange(7) % 3


def loss_of_group(rank: int) -> list[Any]:
    """Loss and gradient of each pair of ranks over uneven parts of its own rows."""
    group = mesh_of((2, 2)).get_group("data")
    rows, labels = rows_of(rank // 2)
    part = slice(0, 5) if rank % 2 == 0 else slice(5, 7)
    found = []
    for options in ({}, {"ring": True}, {"miner": miners.MultiSimilarityMiner(0.4)}):
        mine = rows[part].clone().requires_grad_()
        value = DistributedLoss(DistanceMixtureLoss(), group=group, **options)(mine, labels[part])
        value.backward()
        found.append((value.item(), (mine.grad / 2).tolist()))
    return found


def test_a_loss_of_one_group(tmp_path: Path) -> None:
    found = together(4, tmp_path, loss_of_group)
    for pair in (0, 1):
        for kind in range(3):
            rows, labels = rows_of(pair)
            rows.requires_grad_()
            mined = miners.MultiSimilarityMiner(0.4)(rows, labels) if kind == 2 else None
            value = DistanceMixtureLoss()(rows, labels, mined)
            value.backward()
            first, second = found[2 * pair][kind], found[2 * pair + 1][kind]
            np.testing.assert_allclose([first[0], second[0]], value.item(), rtol=1e-12)
            np.testing.assert_allclose(first[1] + second[1], rows.grad, rtol=1e-9, atol=1e-12)


def refused(rank: int, options: dict[str, Any], names: tuple[str, str]) -> str:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=names)
    task = Task()
    mode = options.pop("mode", "race")
    loss_fn = task.loss(4, "paper" if mode == "paper" else "fixed")
    try:
        task.fit(4, mode, loss_fn=loss_fn, mesh=mesh, **options)
    except ValueError as error:
        return str(error)
    return ""


def all_refused(rank: int) -> list[str]:
    right = ("child", "data")
    cases: list[tuple[dict[str, Any], tuple[str, str]]] = [
        ({"mode": "paper"}, right),
        ({}, ("data", "child")),
        ({"miner": _mine}, right),
    ]
    return [refused(rank, options, names) for options, names in cases]


def _mine(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    return None


def test_bad_meshes_are_refused(tmp_path: Path) -> None:
    first, second = together(2, tmp_path, all_refused)
    assert first == second
    for found, expected in zip(
        first, ["several children", "('child', 'data'), got ('data'", "DistributedLoss"]
    ):
        assert expected in found
