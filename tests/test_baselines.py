"""The control schemes: same interface as the controller, nothing learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ala_metric import ALALoss, PhiSpec, baselines, losses
from ala_metric.controller import Controller
from ala_metric.types import Scheme

from .fakes import FakeLoss, FakeMetric, validation_set

MIXED = (PhiSpec("a", 0.0, 1.0), PhiSpec("b", 0.5, 64.0, "multiplicative"))
SCHEMES: list[Any] = [
    baselines.Fixed,
    baselines.Uniform,
    baselines.RandomStatic,
    baselines.RandomWalk,
    Controller,
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_schemes_share_one_protocol(scheme: Any) -> None:
    made = scheme(MIXED)
    assert isinstance(made, Scheme)
    start = made.start([0.5, 8.0])
    assert len(start) == 2
    decision = made.step(start, torch.ones(2, 1), 1, 0.5)
    assert len(decision.phi) == len(decision.action) == 2
    made.drop()
    made.load_state_dict(made.state_dict())


def run(mode: Any, loss: Any, seed: int = 0, steps: int = 60) -> ALALoss:
    loss_fn = ALALoss(loss, FakeMetric([1.0, 2.0]), validation_set, 1000, every=1, mode=mode, seed=seed)
    for _ in range(steps):
        loss_fn(torch.ones(2, 2))
    return loss_fn


@pytest.mark.parametrize("mode", ["fixed", "uniform", "random_static"])
def test_static_schemes_never_act_but_keep_the_history(mode: str) -> None:
    loss_fn = run(mode, FakeLoss(3, low=-1.0, high=1.0))
    assert {record.action for record in loss_fn.history} == {(0.0, 0.0, 0.0)}
    assert len({record.phi for record in loss_fn.history}) == 1
    assert [record.reward for record in loss_fn.history[:3]] == [None, 1, 0]
    assert loss_fn.policy is None


def test_fixed_keeps_what_it_finds() -> None:
    assert set(run("fixed", FakeLoss(2, start=0.25)).phi.tolist()) == {0.25}


def test_uniform_weights_of_the_mixture_keep_their_sum() -> None:
    loss_fn = ALALoss(losses.DistanceMixtureLoss(), FakeMetric(), validation_set, 10, mode="uniform")
    torch.testing.assert_close(loss_fn.phi, torch.full((10,), 0.2))


def test_uniform_is_geometric_for_multiplicative_parameters_and_clips() -> None:
    spec = (PhiSpec("a", 0.5, 64.0, "multiplicative"), PhiSpec("b", 0.5, 3.0, "multiplicative"))
    assert baselines.Uniform(spec).start([2.0, 8.0]) == pytest.approx((4.0, 3.0))


def test_random_static_is_uniform_in_the_geometry_of_the_steps() -> None:
    draws = torch.tensor([baselines.RandomStatic(MIXED, seed).start([0.5, 8.0]) for seed in range(600)])
    shares = torch.stack([draws[:, 0], torch.log2(draws[:, 1] / 0.5) / 7.0], dim=1)
    assert shares.min() >= 0.0
    assert shares.max() <= 1.0
    # Mean and deviation of a uniform variable; 600 draws: standard errors .012 and .0075, four of them.
    assert (shares.mean(dim=0) - 0.5).abs().max() < 0.05
    assert (shares.std(dim=0) - 1 / math.sqrt(12)).abs().max() < 0.03


def test_random_walk_draws_the_three_actions_alike() -> None:
    loss_fn = run("random_walk", FakeLoss(10), steps=301)
    actions = [action for record in loss_fn.history for action in record.action]
    for value in (-0.1, 0.0, 0.1):
        # 3,000 draws of p = 1/3: standard error .0086, four of them.
        assert abs(actions.count(value) / len(actions) - 1 / 3) < 0.035
    assert all(record.entropy == pytest.approx(math.log(3)) for record in loss_fn.history)


def test_random_walk_stays_in_its_range() -> None:
    loss_fn = run("random_walk", FakeLoss(3, low=0.0, high=0.2, start=0.1))
    values = [value for record in loss_fn.history for value in record.phi]
    assert min(values) >= 0.0
    assert max(values) <= 0.2
    assert len(set(values)) > 2


@pytest.mark.parametrize("mode", ["random_static", "random_walk"])
def test_seeds_decide(mode: str) -> None:
    phis = [run(mode, FakeLoss(4), seed=seed).history for seed in (1, 1, 2)]
    assert phis[0] == phis[1] != phis[2]


def test_statistics_are_not_computed_for_a_baseline() -> None:
    loss = FakeLoss(2)
    loss.statistics = lambda *_: 1 / 0  # type: ignore[method-assign]
    assert len(run("random_walk", loss).history) == 59
