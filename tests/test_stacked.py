"""Arms of a stage that train at once: the numbers of arms that train in turn, to rounding."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.miners import DistanceWeightedMiner, TripletMarginMiner
from torch import nn, optim

from ala_metric import ALALoss, training
from ala_metric.classification import AdaptiveClassificationLoss
from ala_metric.losses import DistanceMixtureLoss, FocalWeightingLoss
from ala_metric.metrics import ClassificationError, RecallAtK
from ala_metric.training.parts import Parts
from ala_metric.training.stacked import ELEMENTWISE, Stacked

from .landscape import Task
from .test_race import WIDE, Cliff
from .test_training import IMAGES, Noisy, Stop, stop_at

HELD = (IMAGES.images.double() / 255, IMAGES.labels)


class Doubles:
    """The images in float64."""

    labels = IMAGES.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return HELD[0][index], int(self.labels[index])


def convolutions() -> nn.Module:
    return training.SmallConvNet(dim=8, channels=(3, 4, 5))


def perceptron(outputs: int = 8) -> nn.Module:
    """No bias before BatchNorm: its gradient is rounding alone, which Adam would blow up."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(7, outputs),
    )


def frozen() -> nn.Module:
    """One layer is in eval mode and does not learn, one weight has two names."""
    model = nn.Sequential(perceptron(8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[3].weight = model[2].weight
    model[1].requires_grad_(False)
    return model


def adam(weights: Any) -> optim.Optimizer:
    return optim.Adam(weights, lr=1e-2)


class Drifting(nn.Module):
    """A miner with a state of its own: takes negatives nearer than a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> Any:
        distances = torch.cdist(outputs.detach(), outputs.detach())
        self.mean.lerp_(distances.mean(), 0.3)
        equal = labels[:, None] == labels
        first, positive = (equal & ~torch.eye(len(labels), dtype=torch.bool)).nonzero(as_tuple=True)
        second, negative = (~equal & (distances < self.mean)).nonzero(as_tuple=True)
        return first, positive, second, negative


def trained(
    vectorised: bool,
    make: Callable[[], nn.Module] = perceptron,
    loss: Callable[[], Any] = DistanceMixtureLoss,
    optimizer: Callable[[Any], optim.Optimizer] = adam,
    miner: Any = None,
    mode: Any = "race",
    moving: bool = True,
    scheduled: bool = False,
    dataset: Any = None,
    dtype: torch.dtype = torch.float64,
    **keywords: Any,
) -> tuple[training.FitResult, nn.Module, list[float]]:
    """A short race or a few forks in float64; the result, the model, and the losses of all arms."""
    losses: list[float] = []
    keywords.setdefault("on_step", lambda step, loss: losses.append(loss))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    model = make().to(dtype)
    for part in model.modules():  # stays in eval mode
        if isinstance(part, nn.BatchNorm1d) and not part.weight.requires_grad:
            part.eval()
    adaptive = loss()
    classes = isinstance(adaptive, AdaptiveClassificationLoss)
    loss_fn = ALALoss(
        adaptive,
        ClassificationError() if classes else RecallAtK((1,), distance="cosine"),
        lambda: training.embed(model, [(HELD[0].to(dtype), HELD[1])]),
        total_steps=12,
        mode="fixed",
    )
    how = optimizer(model.parameters())
    surrogate = training.balanced_cross_entropy if classes else training.nca
    hypergradient = training.HypergradientSettings(
        surrogate, Doubles(), batch_classes=4, per_class=3, every=2
    )
    result = training.fit(
        model,
        loss_fn,
        dataset or Doubles(),
        total_steps=12,
        optimizer=how,
        scheduler=optim.lr_scheduler.OneCycleLR(how, 1e-2, total_steps=12) if scheduled else None,
        miner=miner() if miner is Drifting else miner,
        batch_classes=5,
        per_class=3,
        mode=mode,
        race=training.RaceSettings(rungs=WIDE, hypergradient=hypergradient if moving else None)
        if mode == "race"
        else None,
        paired=training.PairedSettings(forks=3, draws=3, branches=3) if mode == "paired" else None,
        vectorised=vectorised,
        **keywords,
    )
    return result, model, losses


def same(one: Any, other: Any) -> None:
    """All that two runs leave behind, to rounding of float64 over a dozen steps."""
    moved = any(arm.source == "hypergradient" for record in one[0].records for arm in record.arms)
    # phi is float32: what moves it rounds to 6e-8
    np.testing.assert_allclose(sorted(one[2]), sorted(other[2]), rtol=1e-6 if moved else 1e-10)
    (first, model, _), (second, again, _) = one, other
    assert [r.validation for r in first.records] == [r.validation for r in second.records]
    for stage, repeated in zip(first.records, second.records, strict=True):
        assert [(a.number, a.parent, a.source, a.lives, a.failed) for a in stage.arms] == [
            (a.number, a.parent, a.source, a.lives, a.failed) for a in repeated.arms
        ]
        for a, b in zip(stage.arms, repeated.arms):
            np.testing.assert_allclose(a.phi, b.phi, rtol=1e-7)  # phi is float32; hypergradients move it
    assert first.compute == second.compute
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-10)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"make": convolutions, "loss": FocalWeightingLoss},
        {"make": frozen, "moving": False},
        {"make": lambda: perceptron(12), "loss": lambda: AdaptiveClassificationLoss(12)},
        {"mode": "paired"},
        {"miner": TripletMarginMiner(type_of_triplets="semihard")},
        {"miner": DistanceWeightedMiner()},
        {"miner": Drifting, "moving": False},
        {"scheduled": True},
    ],
    ids=[
        "perceptron",
        "convolutions",
        "frozen",
        "classes",
        "paired",
        "semihard",
        "draws",
        "state",
        "schedule",
    ],
)
def test_as_in_turn(task: dict[str, Any]) -> None:
    same(trained(False, **task), trained(True, **task))


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_every_optimizer_steps_as_in_turn(kind: Any) -> None:
    options: list[dict[str, Any]] = [{}]
    if kind is optim.SGD:
        options = [{"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}]
    if kind is optim.Adam:
        options.append({"amsgrad": True, "maximize": True})
    for how in options:
        task = {"optimizer": lambda weights, how=how: kind(weights, lr=1e-2, **how), "moving": False}
        same(trained(False, **task), trained(True, **task))


def test_a_weight_without_dimensions() -> None:
    """The one weight of the landscape, with Adam, whose counters have its shape."""
    found = []
    for vectorised in (False, True):
        task = Task()
        task.optimizer = adam(task.model.parameters())
        result = task.fit(40, "race", vectorised=vectorised)
        found.append((result.losses, result.phi_history, result.records, result.compute))
    assert found[0] == found[1]


# --- the same bits, and arms that fail


def noisy(**keywords: Any) -> list[Any]:
    """A vectorised race of a network that draws from every global stream, and all that it leaves behind."""
    result, model, _ = trained(
        True,
        make=Noisy,
        scheduled=True,
        dataset=IMAGES,
        dtype=torch.float32,
        **keywords,
    )
    return [
        [tensor.tolist() for tensor in model.state_dict().values()],
        [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],  # noqa: NPY002
        result.losses,
        result.phi_history,
        result.records,
        result.compute,
    ]


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    uninterrupted = noisy(moving=False)
    for stop in (1, 4, 5, 9, 12, 13, 20, 30, 31, 36):  # inside steps of a stack, and between them
        file = tmp_path / str(stop)
        with pytest.raises(Stop):
            noisy(moving=False, checkpoint=file, checkpoint_every=1, on_step=stop_at(stop))
        assert noisy(moving=False, checkpoint=file, resume=True) == uninterrupted


def test_what_began_in_turn_can_end_at_once(tmp_path: Path) -> None:
    """Arms that stand at different steps."""
    with pytest.raises(Stop):
        trained(False, checkpoint=tmp_path / "c", checkpoint_every=1, on_step=stop_at(5))
    whole, rest = trained(False), trained(True, checkpoint=tmp_path / "c", resume=True)
    assert len(rest[2]) == len(whole[2]) - 4  # the checkpoint before the fifth step
    same((*whole[:2], []), (*rest[:2], []))


def test_a_diverged_arm_costs_its_own_episode_only() -> None:
    found = []
    for vectorised in (False, True):
        task = Task()
        task.landscape = Cliff((0.45, 0.3), (0.1, 0.9))
        result = task.fit(40, "race", seed=0, vectorised=vectorised)
        assert result.records[0].dropped > 0
        found.append((result.losses, result.phi_history, result.records, result.compute))
    assert found[0] == found[1]
    task = Task()
    task.landscape = Cliff((0.7, 0.3), (0.9, 0.9))
    with pytest.raises(FloatingPointError, match=r"every arm failed in stage 0.*the loss of step 1 is nan"):
        task.fit(
            20, "race", race=training.RaceSettings(rungs=((0.5, 2), (1.0, 1)), mutated=1.0), vectorised=True
        )


def test_infinite_weights_of_one_arm_leave_the_others_alone() -> None:
    """One of three begins with NaN in every weight: it is dropped, the others step as without it."""
    torch.manual_seed(0)
    model = nn.Sequential(convolutions(), nn.ReLU(), nn.Linear(8, 8)).double()
    loss = DistanceMixtureLoss()
    parts = Parts(model, loss, optim.AdamW(model.parameters(), lr=1e-2))
    parts.step(1, HELD[0][:20], HELD[1][:20])
    good = parts.snapshot()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    bad = parts.snapshot()
    parts.restore(good)
    phi = tuple(loss.phi.tolist())
    for number in (2, 3):
        parts.step(number, HELD[0][20:40], HELD[1][20:40])
    expected = parts.snapshot()
    with Stacked(parts, [good, bad, good], [phi] * 3) as stack:
        values = stack.step(2, HELD[0][20:40], HELD[1][20:40])
        assert [isinstance(value, Exception) for value in values] == [False, True, False]
        assert len(stack.step(3, HELD[0][20:40], HELD[1][20:40])) == 2
    for index in (0, 1):
        found = stack.snapshot(index)
        for part in ("model", "optimizer"):
            torch.testing.assert_close(
                dict(found[part]).get("state", dict(found[part])),
                dict(expected[part]).get("state", dict(expected[part])),
                rtol=1e-10,  # rounding of float64
                atol=1e-12,
            )
    assert all(
        weight is own for weight, own in zip(parts.optimizer.param_groups[0]["params"], model.parameters())
    )


# --- refusals


@pytest.mark.parametrize(
    ("task", "error", "match"),
    [
        (
            {"mode": None},
            ValueError,
            "'paired' without a mesh, got mode=None",
        ),
        ({"optimizer": optim.LBFGS}, ValueError, "needs an elementwise optimizer .*got LBFGS"),
        (
            {"optimizer": lambda weights: adam([*weights, nn.Parameter(torch.zeros(1))])},
            ValueError,
            "the optimizer has others as well",
        ),
        (
            {"make": lambda: nn.Sequential(perceptron(), nn.BatchNorm1d(8, momentum=None))},
            RuntimeError,
            "the network does not run under torch.func.vmap, train with vectorised=False",
        ),
    ],
    ids=["no children", "LBFGS", "other weights", "item"],
)
def test_what_cannot_be_stacked_is_refused(task: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        trained(True, **task)


def test_hooks_of_the_optimizer_are_refused() -> None:
    def hooked(weights: Any) -> optim.Optimizer:
        made = adam(weights)
        made.register_step_pre_hook(lambda *_: None)
        return made

    with pytest.raises(ValueError, match="an optimizer with step hooks cannot be used"):
        trained(True, optimizer=hooked)


def test_an_error_that_is_no_divergence_is_raised() -> None:
    class Broken(DistanceMixtureLoss):
        def forward(self, *args: Any) -> Any:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        trained(True, loss=Broken)
