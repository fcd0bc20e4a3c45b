"""Children that diverge with finite weights, and state that ``state_dict()`` does not hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
from torch import nn

from ala_metric import ALALoss, losses, training
from ala_metric.metrics import RecallAtK
from ala_metric.training.hidden import hidden_state, restore_hidden
from ala_metric.training.hypergradient import Hypergradient
from ala_metric.training.meter import Meter
from ala_metric.training.parts import Parts

from .landscape import Landscape, Task
from .test_training import IMAGES, Stop, stop_at

STEPS = 12


class Explosion(nn.Module):
    """A loss that, with the parameter in the upper half, makes the outputs infinite and refuses those."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Landscape((0.3,), (0.45,))
        self.phi_spec = self.inner.phi_spec

    phi = property(lambda self: self.inner.phi)
    statistics_width = 1

    def set_phi(self, phi: torch.Tensor) -> None:
        self.inner.set_phi(phi)

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.inner.statistics(outputs, targets)

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not outputs.isfinite().all():
            raise ValueError("embeddings must be finite")
        return self.inner(outputs, labels) * (1e300 if self.phi[0] > 0.5 else 1.0)


class Steep(nn.Module):
    """Weights of 1e300 are finite; its outputs are not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.weight + self.weight**3).expand(len(inputs), 1)


def exploding(start: float = 0.45) -> Task:
    task = Task()
    task.model = Steep()  # type: ignore[assignment]
    task.optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    task.landscape = Explosion()  # type: ignore[assignment]
    task.landscape.set_phi(torch.tensor([start]))
    return task


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("mode", ["race", "paired"])
def test_a_child_with_huge_finite_weights_is_dropped_alone(mode: str, vectorised: bool) -> None:
    keywords: dict[str, Any] = {"paired": training.PairedSettings(forks=4, proposals=("random",))}
    if mode == "race":
        keywords = {"race": training.RaceSettings(rungs=((0.5, 8), (1.0, 1)))}
    result = exploding().fit(20, mode, seed=0, vectorised=vectorised, **keywords)
    failed = [arm for arm in result.records[0].arms if arm.failed]
    assert len(failed) > 0
    assert all(arm.phi[0] > 0.5 and not arm.lives for arm in failed)
    assert {arm.failed for arm in failed} == {"the outputs of step 2 are not finite"}
    assert result.steps == 20


def test_a_plain_fit_that_diverges_says_so() -> None:
    with pytest.raises(FloatingPointError, match="the outputs of step 2 are not finite"):
        exploding(0.8).fit(20, None)  # type: ignore[arg-type]


class Refusing:
    """A metric that refuses outputs that are not finite."""

    name, higher_is_better = "refusing", True

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if not outputs.isfinite().all():
            raise ValueError("outputs must be finite")
        return float(outputs.mean())


def test_a_child_whose_validation_outputs_are_infinite_is_dropped_alone() -> None:
    task = exploding()
    task.metric = Refusing()
    result = task.fit(20, "race", race=training.RaceSettings(rungs=((0.05, 8), (1.0, 1))))
    failed = [arm for arm in result.records[0].arms if arm.failed]
    assert {arm.failed for arm in failed} == {"the validation outputs are not finite"}


# --- state that state_dict() does not hold


class Centred(nn.Module):
    """Subtracts a running mean, which is no part of its state; assigned anew or written in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.flatten, self.linear, self.in_place = nn.Flatten(), nn.Linear(64, 8), in_place
        self.register_buffer("mean", torch.zeros(8), persistent=False)
        self.register_buffer("unused", None, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.linear(self.flatten(inputs))
        if self.training:
            mean = (0.5 * self.mean + 0.5 * outputs.mean(0)).detach()
            if self.in_place:
                self.mean.copy_(mean)
            else:
                self.mean = mean
        return outputs - self.mean


def queued() -> Any:
    return losses.AdaptPML(
        CrossBatchMemory(ContrastiveLoss(neg_margin=0.5), 8, memory_size=50), {"loss.neg_margin": (0.2, 1.5)}
    )


SETUPS = {
    "assigned": (lambda: Centred(False), losses.DistanceMixtureLoss),
    "in place": (lambda: Centred(True), losses.DistanceMixtureLoss),
    "queue": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), queued),
}
MODES: dict[str, dict[str, Any]] = {
    "alone": {},
    "race": {"mode": "race", "race": training.RaceSettings(rungs=((0.5, 4), (1.0, 1)), copies=False)},
    "vectorised": {
        "mode": "race",
        "race": training.RaceSettings(rungs=((0.5, 4), (1.0, 1)), copies=False),
        "vectorised": True,
    },
    "paper": {"mode": "paper", "children": 3},
}


def run(setup: str, mode: str, phi: Any = None, **keywords: Any) -> tuple[training.FitResult, Any]:
    torch.manual_seed(0)
    make, make_loss = SETUPS[setup]
    model, loss = make(), make_loss()
    if phi is not None:
        loss.set_phi(torch.tensor(phi))
    validate = training.Validation(model, IMAGES)
    loss_fn = ALALoss(
        loss,
        RecallAtK((1,)),
        validate,
        STEPS,
        every=4,
        offsets=(0,),
        mode="paper" if mode == "paper" else "fixed",
    )
    result = training.fit(
        model,
        loss_fn,
        IMAGES,
        total_steps=STEPS,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        batch_classes=4,
        per_class=2,
        **(MODES[mode] | keywords),
    )
    return result, (model.state_dict(), hidden_state(model), hidden_state(loss))


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("mode", ["race", "vectorised"])
def test_a_winner_is_what_it_would_be_alone(setup: str, mode: str) -> None:
    result, _ = run(setup, mode)
    alone, _ = run(setup, "alone", phi=result.phi)
    assert result.losses == pytest.approx(alone.losses, rel=0 if mode == "race" else 1e-4)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("mode", MODES)
def test_hidden_state_comes_back_from_a_checkpoint(setup: str, mode: str, tmp_path: Path) -> None:
    expected, state = run(setup, mode)
    keywords = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 1}
    for stop in (3, 7):
        with pytest.raises(Stop):
            run(setup, mode, on_step=stop_at(stop), resume=True, **keywords)
    result, resumed = run(setup, mode, resume=True, **keywords)
    assert result.losses == expected.losses
    assert result.phi == expected.phi
    torch.testing.assert_close(resumed, state, rtol=0, atol=0)


def test_hidden_state_by_hand() -> None:
    module = nn.Sequential(Centred(False), CrossBatchMemory(ContrastiveLoss(), 8, memory_size=4))
    before = copy.deepcopy(hidden_state(module))
    assert before.keys() == {"0.mean", "0.unused", "1.queue_idx", "1.has_been_filled"}
    module[0](torch.ones(2, 64))
    module[0].unused = torch.ones(3)
    module[1](torch.ones(3, 8), torch.tensor([0, 0, 1]))
    assert module[1].queue_idx == 3
    restore_hidden(module, before)
    assert not module[0].mean.any()
    assert module[0].unused is None
    assert (module[1].queue_idx, module[1].has_been_filled) == (0, False)
    restore_hidden(module, {"0.unused": torch.ones(3)})
    assert module[0].unused.tolist() == [1.0, 1.0, 1.0]
    assert hidden_state(print) == {}


# --- hypergradients


@pytest.mark.parametrize(
    "make",
    [
        queued,
        lambda: losses.CrossBatchMemory(losses.DistanceMixtureLoss(), 8, 100),
        lambda: losses.AdaptPML(
            losses.CrossBatchMemory(ContrastiveLoss(), 8, 100), {"loss.neg_margin": (0.2, 1.5)}
        ),
    ],
)
def test_a_hypergradient_leaves_no_trace_in_a_queue(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    loss = make()
    parts = Parts(model, loss, torch.optim.SGD(model.parameters(), lr=0.1))
    rows = torch.arange(0, len(IMAGES), 5)[:16]
    batch = torch.stack([IMAGES[int(row)][0] for row in rows]), IMAGES.labels[rows]
    parts.step(1, *batch)
    before = parts.snapshot()
    settings = training.HypergradientSettings(training.nca, IMAGES, batch_classes=4, per_class=2)
    moved = Hypergradient(settings).step(parts, loss, 0, batch, {}, Meter())
    assert moved != tuple(loss.phi.tolist())
    after = parts.snapshot()
    for name in ("model", "loss", "hidden"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_a_validation_that_is_no_pair_is_refused_in_fit_too() -> None:
    task = Task()
    loss_fn = task.loss(4, every=2, offsets=(0,))
    loss_fn.__dict__["validate"] = lambda: torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"validate\(\) must return \(outputs, targets\), got Tensor"):
        task.fit(4, None, loss_fn=loss_fn)  # type: ignore[arg-type]
