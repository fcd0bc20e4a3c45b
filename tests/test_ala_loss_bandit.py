"""The controller finds a known best action through ALALoss."""

from __future__ import annotations

import pytest
import torch

from ala_metric import ALALoss

from .fakes import FakeLoss, FakeMetric, validation_set

STEPS = 400


class Value(FakeMetric):
    """The value of one parameter: improves only when that parameter rises."""

    def __init__(self, loss: FakeLoss, which: int) -> None:
        super().__init__()
        self.loss, self.which = loss, which

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(self.loss.phi[self.which])


class Height(Value):
    """One up for every rise of the parameter, one down for anything else."""

    def __init__(self, loss: FakeLoss, which: int) -> None:
        super().__init__(loss, which)
        self.height, self.before = 0, float(loss.phi[which])

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        now = float(self.loss.phi[self.which])
        self.height += 1 if now > self.before else -1
        self.before = now
        return float(self.height)


def best_actions(metric: type[Value], n_params: int, every: int, seed: int) -> float:
    """Share of steps up of the parameter that counts, in the last fifth of the run."""
    loss = FakeLoss(n_params)
    which = n_params // 2
    offsets = (0,) if metric is Height else (0, 5)
    loss_fn = ALALoss(
        loss, metric(loss, which), validation_set, STEPS * every, every=every, seed=seed, offsets=offsets
    )
    embeddings = torch.ones(2, 2)
    for _ in range(STEPS * every + 1):
        loss_fn(embeddings)
    assert len(loss_fn.history) == STEPS
    last = loss_fn.history[-STEPS // 5 :]
    return sum(record.action[which] > 0 for record in last) / len(last)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n_params", [1, 2, 10])
def test_the_best_action_is_found(n_params: int, seed: int) -> None:
    assert best_actions(Value, n_params, every=1, seed=seed) > 0.9


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("metric", [Value, Height])
def test_the_best_action_is_found_with_longer_periods(metric: type[Value], seed: int) -> None:
    assert best_actions(metric, 2, every=10, seed=seed) > 0.9


def test_a_wall_masks_the_best_action() -> None:
    """Once the range ends the parameter stays near its best value."""
    loss = FakeLoss(1, low=0.0, high=2.0)
    loss_fn = ALALoss(loss, Value(loss, 0), validation_set, STEPS, every=1)
    for _ in range(STEPS):
        loss_fn(torch.ones(2, 2))
    late = [record.phi[0] for record in loss_fn.history[-STEPS // 5 :]]
    assert min(late) > 1.5
    assert max(late) <= 2.0
