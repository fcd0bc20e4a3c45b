"""The critic against ridge regression in closed form, proposals inside their ranges, selection by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ala_metric import CheckpointError, PhiSpec
from ala_metric.controller import (
    Critic,
    Policy,
    from_unit,
    load_critic,
    load_policy,
    mutation,
    prior_draw,
    ranking,
    relative_rewards,
    rungs_for,
    save_critic,
    save_policy,
    survivors,
    to_unit,
    training_cost,
)

SPEC = (PhiSpec("a", -1.0, 3.0), PhiSpec("b", 0.5, 64.0, "multiplicative"), PhiSpec("c", 0.2, 1.0))


def draws(count: int, seed: int = 0) -> list[tuple[float, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [prior_draw(SPEC, (), generator) for _ in range(count)]


# --- unit cube


def test_the_unit_cube_by_hand() -> None:
    units = to_unit(SPEC, (0.0, 0.5 * math.sqrt(128), 1.0))
    # float64 rounding of one logarithm and one division
    np.testing.assert_allclose(units, [0.25, 0.5, 1.0], rtol=1e-14)
    assert from_unit(SPEC, torch.tensor([0.5, 0.0, 2.0])) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize("phi", draws(5))
def test_the_unit_cube_and_back(phi: tuple[float, ...]) -> None:
    np.testing.assert_allclose(from_unit(SPEC, to_unit(SPEC, phi)), phi, rtol=1e-12)


def test_a_wrong_number_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        to_unit(SPEC, (0.0, 1.0))


# --- proposals


@pytest.mark.parametrize("radius", [0.01, 0.2, 30.0])
def test_mutations_stay_inside_and_move(radius: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for corner in ((-1.0, 0.5, 0.05), (3.0, 64.0, 1.0), (1.0, 8.0, 0.5)):
        for _ in range(50):
            found = mutation(SPEC, corner, generator, radius)
            assert found != corner
            assert all(spec.low <= value <= spec.high for spec, value in zip(SPEC, found))


def test_mutations_have_their_radius_in_the_cube() -> None:
    generator = torch.Generator().manual_seed(2)
    middle = from_unit(SPEC, torch.full((3,), 0.5))
    steps = torch.stack([to_unit(SPEC, mutation(SPEC, middle, generator, 0.05)) - 0.5 for _ in range(2000)])
    moved = steps[steps.abs() > 1e-12]
    # Each moves with .3, and one of three surely: 1/3 + 2/3 * .3 = .533 of 6,000; sd of the share is .0065.
    assert abs(len(moved) / steps.numel() - 0.5333) < 0.03
    assert abs(float(moved.std()) - 0.05) < 0.004  # sd of the estimate: .05 / sqrt(2 * 3200) = .0006


def test_prior_draws_are_uniform_in_the_cube() -> None:
    units = torch.stack([to_unit(SPEC, phi) for phi in draws(2000)])
    np.testing.assert_allclose(units.mean(0), 0.5, atol=0.03)  # sd of the mean: .29 / sqrt(2000) = .0065
    np.testing.assert_allclose(units.std(0), 1 / math.sqrt(12), atol=0.02)


def test_ranges_over_a_decade_are_drawn_in_the_logarithm() -> None:
    """Weights of classes; a range from 0, or of less than a decade, has no such scale."""
    spec = (PhiSpec("weight", 0.05, 1.0), PhiSpec("narrow", 0.5, 1.0), PhiSpec("zero", 0.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([prior_draw(spec, (), generator) for _ in range(2000)])
    logarithm = found[:, 0].log()
    np.testing.assert_allclose(logarithm.mean(), math.log(0.05) / 2, atol=0.1)  # sd of the mean: .02
    np.testing.assert_allclose(logarithm.std(), -math.log(0.05) / math.sqrt(12), atol=0.06)
    np.testing.assert_allclose(found[:, 1:].mean(0), [0.75, 0.5], atol=0.03)
    assert found[:, 0].min() >= 0.05


def test_prior_draws_take_one_of_each_group() -> None:
    spec = tuple(PhiSpec(f"p{i}", 0.0, 1.0) for i in range(5))
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for _ in range(100):
        found = prior_draw(spec, ((0, 1), (3, 4)), generator)
        assert sum(value > 0 for value in found[:2]) == 1
        assert sum(value > 0 for value in found[3:]) == 1
        assert all(value == 0.0 or 0.25 <= value <= 1.0 for i, value in enumerate(found) if i != 2)
        seen.add(tuple(value > 0 for value in found))
    assert len(seen) == 4


# --- critic


def closed_form(rungs: list[tuple[list[tuple[float, ...]], list[float]]], critic: Critic) -> np.ndarray:
    """Ridge with decaying weights, by scikit-learn, on rewards brought to one scale."""
    rows: list[np.ndarray] = []
    values: list[np.ndarray] = []
    weights = np.zeros(0)
    coefficients = np.zeros(0)
    for phis, rewards in rungs:
        x = np.stack([features(phi) for phi in phis])
        r = np.array(rewards)
        if rows:
            expected = x @ coefficients
            r = expected.mean() + expected.std() * r
        rows, values = [*rows, x], [*values, r]
        weights = np.concatenate([weights * critic.decay, np.ones(len(r))])
        noise = critic.first_noise
        X, y = np.concatenate(rows), np.concatenate(values)
        for _ in range(6):
            model = Ridge(alpha=noise**2, fit_intercept=False, solver="cholesky").fit(X, y, weights)
            coefficients = model.coef_
            gram = X.T @ (weights[:, None] * X)
            used = np.trace(gram @ np.linalg.inv(gram + noise**2 * np.eye(len(gram))))
            residual = float(weights @ (y - X @ coefficients) ** 2)
            last, noise = (
                noise,
                math.sqrt((4 * critic.first_noise**2 + residual) / (4 + weights.sum() - used)),
            )
        # the noise after five updates belongs to the coefficients
        coefficients = Ridge(alpha=last**2, fit_intercept=False, solver="cholesky").fit(X, y, weights).coef_
    return coefficients


def features(phi: tuple[float, ...]) -> np.ndarray:
    u = 2 * to_unit(SPEC, phi).numpy() - 1
    return np.array([1, *u, *(u**2), u[0] * u[1], u[0] * u[2], u[1] * u[2]])


@pytest.mark.parametrize("rungs", [1, 2, 3])
def test_the_weights_are_those_of_ridge_regression(rungs: int) -> None:
    rng = np.random.default_rng(4)
    critic = Critic(SPEC)
    seen = []
    for rung in range(rungs):
        phis = draws(11 - 3 * rung, seed=rung)
        rewards = rng.normal(size=len(phis)).tolist()
        seen.append((phis, rewards))
        critic.observe(phis, rewards)
    np.testing.assert_allclose(critic.weights(), closed_form(seen, critic), rtol=1e-8, atol=1e-10)


def test_unknown_rewards_are_left_out() -> None:
    phis = draws(5)
    whole, part = Critic(SPEC), Critic(SPEC)
    whole.observe(phis[:4], [1.0, -1.0, 0.5, 0.2])
    part.observe(phis, [1.0, -1.0, 0.5, 0.2, None])
    part.observe(phis, [None] * 5)
    assert torch.equal(whole.weights(), part.weights())


def test_thompson_draws_have_the_covariance_of_the_posterior() -> None:
    spec = (PhiSpec("a", 0.0, 1.0),)
    critic = Critic(spec, quadratic=False)
    critic.observe([(0.2,), (0.4,), (0.9,)], [0.3, -0.5, 0.2])
    # Which of two candidates wins depends on the sign of the slope alone: P = Phi(mean / sd).
    covariance = critic.noise**2 * torch.linalg.inv(critic.moments + critic.noise**2 * torch.eye(2))
    z = float(critic.weights()[1] / covariance[1, 1].sqrt())
    share = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    generator = torch.Generator().manual_seed(5)
    wins = sum(critic.choose([(0.0,), (1.0,)], generator) for _ in range(2000)) / 2000
    assert 0.05 < share < 0.995
    assert abs(wins - share) < 0.04  # 3.6 sd of a share of 2,000 at worst


def test_a_peak_is_found() -> None:
    critic = Critic(SPEC)
    target = torch.tensor([0.7, 0.3, 0.5], dtype=torch.float64)
    phis = draws(30)
    critic.observe(phis, relative_rewards([-float((to_unit(SPEC, p) - target).square().sum()) for p in phis]))
    candidates = draws(200, seed=9)
    best = min(candidates, key=lambda p: float((to_unit(SPEC, p) - target).norm()))
    predicted = critic.predict(candidates)
    assert predicted[candidates.index(best)] > np.quantile(predicted, 0.97)


def test_more_features_than_observations() -> None:
    spec = tuple(PhiSpec(f"w_{i}", 0.05, 1.0) for i in range(40))
    critic = Critic(spec)  # 81 features
    generator = torch.Generator().manual_seed(0)
    for rows in (20, 10, 6, 4, 2):  # the rungs of a race: old rewards decay faster than new ones come
        phis = [prior_draw(spec, (), generator) for _ in range(rows)]
        critic.observe(phis, relative_rewards([sum(phi) for phi in phis]))
        assert 0.0 < critic.noise < 1.0
    assert critic.choose(phis, generator) in (0, 1)


def test_a_critic_resumes_bit_for_bit_and_refuses_another_task() -> None:
    critic, twin = Critic(SPEC), Critic(SPEC)
    critic.observe(draws(6), [0.1, -1.0, 2.0, 0.0, 0.3, -0.4])
    twin.load_state_dict(critic.state_dict())
    for one in (critic, twin):
        one.observe(draws(4, seed=7), [1.0, -1.0, 0.2, -0.2])
    assert torch.equal(critic.weights(), twin.weights())
    with pytest.raises(ValueError, match=r"made for phi_spec=\[\['a', -1.0.*this run has \[\['x', 0.0"):
        Critic((PhiSpec("x", 0.0, 1.0),)).load_state_dict(critic.state_dict())
    with pytest.raises(ValueError, match="made for quadratic=True, this run has False"):
        Critic(SPEC, quadratic=False).load_state_dict(critic.state_dict())


def test_a_critic_travels_by_file(tmp_path: Path) -> None:
    critic = Critic(SPEC, quadratic=False, noise=0.4, decay=0.9)
    critic.observe(draws(6), [0.1, -1.0, 2.0, 0.0, 0.3, -0.4])
    save_critic(tmp_path / "critic", critic)
    twin = load_critic(tmp_path / "critic")
    assert twin.task() == critic.task()
    assert twin.state_dict().keys() == critic.state_dict().keys()
    assert torch.equal(twin.weights(), critic.weights())
    assert (twin.noise, twin.observations) == (critic.noise, 6)


def test_a_damaged_or_strange_critic_file_is_refused(tmp_path: Path) -> None:
    save_critic(tmp_path / "critic", Critic(SPEC))
    data = (tmp_path / "critic").read_bytes()
    for place in range(0, len(data), 37):
        (tmp_path / "bad").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError):
            load_critic(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(data[:-1])
    with pytest.raises(CheckpointError):
        load_critic(tmp_path / "bad")
    save_policy(tmp_path / "policy", Policy())
    with pytest.raises(CheckpointError, match="not a critic file"):
        load_critic(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="not a policy file"):
        load_policy(tmp_path / "critic")
    broken = Critic(SPEC)
    broken.targets[0] = math.nan
    with pytest.raises(ValueError, match="critic has weights that are not finite"):
        save_critic(tmp_path / "critic", broken)
    assert (tmp_path / "critic").read_bytes() == data
    with pytest.raises(TypeError, match="critic must be a Critic, got Policy"):
        save_critic(tmp_path / "critic", Policy())  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"noise": 0.0}, {"decay": 0.0}, {"decay": 1.1}, {"noise": float("nan")}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Critic(SPEC, **bad)


# --- selection


def test_rewards_by_hand() -> None:
    assert relative_rewards([1.0, 2.0, 3.0]) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert relative_rewards([None, float("inf"), 5.0]) == [None, None, 0.0]
    assert relative_rewards([]) == []
    assert ranking([float("nan"), 1.0, 2.0, 2.0, None]) == [2, 3, 1]


def test_two_thirds_survive() -> None:
    assert [survivors(n) for n in range(1, 8)] == [1, 2, 2, 3, 4, 4, 5]


@pytest.mark.parametrize("budget", [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 6.0, 10.0])
def test_a_schedule_stays_within_its_budget(budget: float) -> None:
    rungs = rungs_for(budget)
    cost = training_cost(rungs)
    assert rungs[-1] == (1.0, 1)
    assert 0.75 * budget <= cost <= 1.04 * budget
    rows = [row for _, row in rungs]
    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("budget", [1.0, 0.0, float("nan"), float("inf")])
def test_a_budget_without_room_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget must be above 1"):
        rungs_for(budget)
