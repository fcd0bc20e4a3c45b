"""The controller against hand-computed values of Eq. 3 to 5 and of its state."""

from __future__ import annotations

import copy
import io
import math
import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import PhiSpec
from ala_metric.controller import (
    MANY,
    Controller,
    ControllerSettings,
    Episode,
    Learner,
    ManyController,
    Policy,
    StateHistory,
    discounted_mean,
    range_coordinate,
    sign_reward,
)
from ala_metric.controller.many import ColumnHistory

SPEC = (PhiSpec("a", 0.0, 1.0), PhiSpec("b", 0.5, 64.0, "multiplicative"))


def drive(controller: Controller, steps: int, start: int = 0, phi: tuple[float, ...] = (0.5, 4.0)):
    """Steps of a controller on statistics and rewards that depend on the step number only."""
    trace = []
    for t in range(start, start + steps):
        statistics = torch.tensor([[1.0 + t % 3], [2.0 + t % 5]])
        reward = None if t == 0 else (t * 7) % 3 - 1
        decision = controller.step(phi, statistics, reward, t / 100)
        phi = decision.phi
        trace.append(decision)
    return trace


def weights(controller: Controller) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in controller.policy.parameters()])


# Eq. 4


def test_discounted_mean_by_hand() -> None:
    # (0.9^0 * 1 + 0.9^5 * 2) / (0.9^0 + 0.9^5)
    expected = (1.0 + 0.59049 * 2.0) / 1.59049
    assert discounted_mean([1.0, 2.0], [0, 5], 0.9) == pytest.approx(expected, rel=1e-14)


def test_discounted_mean_is_normalised_and_survives_large_offsets() -> None:
    assert discounted_mean([3.0] * 4, range(4), 0.5) == pytest.approx(3.0, rel=1e-15)
    assert discounted_mean([3.0, 5.0], [10**6, 10**6], 0.5) == 4.0  # 0.5 ** 1e6 underflows to 0
    assert discounted_mean([1.0, 4.0], [0, 1], 1.0) == 2.5


def test_discounted_mean_of_nan_is_nan() -> None:
    assert math.isnan(discounted_mean([1.0, math.nan], [0, 5], 0.9))


@pytest.mark.parametrize(
    ("errors", "offsets", "gamma"),
    [
        ([], [], 0.9),
        ([1.0], [0, 1], 0.9),
        ([1.0], [-1], 0.9),
        ([1.0], [0.5], 0.9),
        ([1.0], [0], 0.0),
        ([1.0], [0], 1.1),
        ([1.0], [0], math.nan),
    ],
)
def test_discounted_mean_refuses(errors: list[float], offsets: list[float], gamma: float) -> None:
    with pytest.raises(ValueError, match=r"errors|offsets|gamma"):
        discounted_mean(errors, offsets, gamma)


@pytest.mark.parametrize("gamma", ["a", None, True, 1j])
def test_gamma_must_be_a_number(gamma: Any) -> None:
    with pytest.raises(TypeError, match=r"gamma must be a number in \(0, 1\], got"):
        discounted_mean([1.0], [0], gamma)
    assert discounted_mean([1.0, 4.0], np.array([0, 1]), np.float32(1.0)) == 2.5


@pytest.mark.parametrize("offset", ["a", None, math.nan, math.inf, True])
def test_an_offset_must_be_a_number(offset: Any) -> None:
    with pytest.raises(ValueError, match=r"offsets must be integers >= 0, got"):
        discounted_mean([1.0], [offset], 0.9)


# Eq. 5


@pytest.mark.parametrize(("before", "after", "reward"), [(2, 1, 1), (1, 1, 0), (1, 2, -1), (math.inf, 1, 1)])
def test_sign_reward(before: float, after: float, reward: int) -> None:
    assert sign_reward(before, after) == reward


@pytest.mark.parametrize("pair", [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf)])
def test_unknown_errors_have_no_reward(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="NaN"):
        sign_reward(*pair)


# State


def test_state_by_hand() -> None:
    history = StateHistory(SPEC, statistics_width=1, identity=True)
    for values in ([1.0, 10.0], [2.0, 20.0], [6.0, 30.0]):
        history.observe(torch.tensor(values)[:, None])
    state = history.encode([0.25, 8.0], progress=0.3)
    assert state.shape == (2, 15)
    # Running means 3 and 20; eight unknown steps repeat the oldest statistic.
    past = torch.tensor([[1 / 3] * 8 + [2 / 3, 2.0], [0.5] * 8 + [1.0, 1.5]])
    # EMA: 1 -> 0.9 * 1 + 0.1 * 2 = 1.1, then change = (6 - 1.1) / 1.1; 10 -> 11, change = 19 / 11
    change = torch.tensor([[4.9 / 1.1], [19 / 11]])
    # 0.25 in [0, 1] -> -0.5; log2(8 / 0.5) = 4 of 7 octaves -> 1/7
    rest = torch.tensor([[-0.5, 0.3, 1.0, 0.0], [1 / 7, 0.3, 0.0, 1.0]])
    expected = torch.cat([past, change, rest], dim=1)
    torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)  # float32 rounding


def test_state_keeps_ten_steps_oldest_first() -> None:
    history = StateHistory(SPEC[:1], statistics_width=2, standardized=True)
    for t in range(13):
        history.observe(torch.tensor([[t / 10, -t / 10]]))
    past = history.encode([0.5], 0.0)[0, :20].reshape(10, 2)
    torch.testing.assert_close(past[:, 0], torch.arange(3, 13) / 10)
    torch.testing.assert_close(past[:, 1], -torch.arange(3, 13) / 10)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_state_does_not_depend_on_scale(scale: float) -> None:
    plain, scaled = (StateHistory(SPEC, 1) for _ in range(2))
    wide = StateHistory((PhiSpec("a", 0.0, 50.0), PhiSpec("b", 5.0, 640.0, "multiplicative")), 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(15):
        values = torch.rand(2, 1, generator=generator, dtype=torch.float64)
        plain.observe(values)
        scaled.observe(scale * values)
        wide.observe(values)
    expected = plain.encode([0.5, 8.0], 0.1)
    torch.testing.assert_close(scaled.encode([0.5, 8.0], 0.1), expected)
    torch.testing.assert_close(wide.encode([25.0, 80.0], 0.1), expected)


def test_statistics_of_zero_and_of_a_jump_stay_bounded() -> None:
    history = StateHistory(SPEC[:1], 1)
    history.observe(torch.zeros(1, 1))
    assert torch.equal(history.encode([0.5], 0.0)[0, :11], torch.zeros(11))
    history.observe(torch.full((1, 1), 1e-30))
    history.observe(torch.full((1, 1), 1e30))
    assert history.encode([0.5], 0.0).abs().max() <= 10.0


@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(3, 1), torch.full((2, 1), math.nan)])
def test_bad_statistics_are_refused_before_anything_changes(bad: torch.Tensor) -> None:
    history = StateHistory(SPEC, 1)
    history.observe(torch.ones(2, 1))
    before = history.encode([0.5, 4.0], 0.0)
    with pytest.raises(ValueError, match="statistics"):
        history.observe(bad)
    assert torch.equal(history.encode([0.5, 4.0], 0.0), before)


@pytest.mark.parametrize("history", [StateHistory(SPEC, 1), ColumnHistory(2, 1, False)])
def test_statistics_that_are_no_real_tensor_are_refused(history: Any) -> None:
    with pytest.raises(TypeError, match=r"statistics must be real, got torch\.complex64"):
        history.observe(torch.ones(2, 1, dtype=torch.complex64))
    with pytest.raises(TypeError, match="statistics must be a tensor, got list"):
        history.observe([[1.0], [2.0]])
    assert history.count == 0


def test_range_coordinate_ends() -> None:
    assert [range_coordinate(SPEC[1], v) for v in (0.5, 64.0)] == [-1.0, 1.0]


# Policy, masks, learning


def test_masked_actions_have_no_probability() -> None:
    policy = Policy(generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([[True, True, False], [False, True, False]])
    table = policy.log_probabilities(torch.ones(2, 13), allowed)
    torch.testing.assert_close(table.exp().sum(dim=1), torch.ones(2))
    assert table[0, 2] == -math.inf
    assert table[1].exp().tolist() == [0.0, 1.0, 0.0]


def test_new_policy_is_nearly_uniform_and_shared() -> None:
    controller = Controller(SPEC, seed=3)
    entropy = drive(controller, 1)[0].entropy
    assert entropy == pytest.approx(math.log(3), abs=0.05)  # the last layer starts at 0.01
    assert sum(p.numel() for p in controller.policy.parameters()) == 13 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3


def test_reinforce_gradient_by_hand() -> None:
    """The last bias moves against the gradient that Eq. 3 gives by finite differences."""
    generator = torch.Generator().manual_seed(0)
    learner = Learner(Policy(generator=generator), ControllerSettings(warm_up=1, batch_size=1), generator)
    learner.optimizer = torch.optim.SGD(learner.policy.parameters(), lr=1.0)
    states, allowed = torch.ones(2, 13), torch.ones(2, 3, dtype=torch.bool)
    choice = torch.tensor([2, 0])
    table = learner.policy.log_probabilities(states, allowed).detach().double()
    old = table[[0, 1], choice] - math.log(5.0)  # new / old = 5, clipped at 2
    learner.baseline = 0.25
    learner.replay.append(Episode(states, allowed, choice, old.float(), torch.tensor(1.0)))
    before = learner.policy.biases[2].detach().double().clone()
    learner._gradient_step()
    onehot = torch.eye(3, dtype=torch.float64)[choice]
    # d log pi / d bias = onehot - pi; averaged over the two parameters
    expected = (1.0 - 0.25) * 2.0 * (onehot - table.exp()).mean(dim=0)
    step = learner.policy.biases[2].detach().double() - before
    torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-6)  # float32 forward and update


def test_baseline_is_a_moving_average() -> None:
    controller = Controller(SPEC, seed=0)
    for reward in (None, 1, -1, 0):
        controller.step([0.5, 4.0], torch.ones(2, 1), reward, 0.0)
    assert controller.learner.baseline == pytest.approx(0.9 * (0.9 * 1 - 0.1) + 0.0)


def test_no_learning_without_reward_or_after_drop() -> None:
    controller = Controller(SPEC, seed=0, settings=ControllerSettings(warm_up=1))
    before = weights(controller)
    controller.step([0.5, 4.0], torch.ones(2, 1), 1, 0.0)  # nothing pending: a reward of nothing
    controller.step([0.5, 4.0], torch.ones(2, 1), None, 0.0)
    controller.drop()
    controller.step([0.5, 4.0], torch.ones(2, 1), 1, 0.0)
    assert len(controller.learner.replay) == 0
    assert torch.equal(weights(controller), before)
    controller.step([0.5, 4.0], torch.ones(2, 1), -1, 0.0)
    controller.step([0.5, 4.0], torch.ones(2, 1), 1, 0.0)
    assert len(controller.learner.replay) == 2
    assert not torch.equal(weights(controller), before)


def test_reward_must_be_finite() -> None:
    controller = Controller(SPEC)
    controller.step([0.5, 4.0], torch.ones(2, 1), None, 0.0)
    with pytest.raises(ValueError, match="reward"):
        controller.step([0.5, 4.0], torch.ones(2, 1), math.nan, 0.0)


def test_actions_never_leave_the_range_and_match_their_rule() -> None:
    spec = (PhiSpec("a", 0.0, 0.3), PhiSpec("b", 0.5, 0.6, "multiplicative"))
    controller, phi = Controller(spec, seed=5), (0.1, 0.55)
    for t in range(150):
        decision = controller.step(phi, torch.ones(2, 1), (t % 3) - 1, t / 150)
        assert 0.0 <= decision.phi[0] <= 0.3
        assert 0.5 <= decision.phi[1] <= 0.6
        assert decision.phi[0] == pytest.approx(phi[0] + decision.action[0], abs=1e-12)
        assert decision.phi[1] == pytest.approx(phi[1] * math.exp(decision.action[1]), abs=1e-12)
        assert 0.0 <= decision.entropy <= math.log(3) + 1e-6
        phi = decision.phi
    assert len(set(phi)) == 2


def test_replay_is_bounded() -> None:
    controller = Controller(SPEC, settings=ControllerSettings(replay_capacity=5, warm_up=1))
    drive(controller, 12)
    assert len(controller.learner.replay) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warm_up": 0}, "warm_up must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
        ({"replay_capacity": 8}, "replay_capacity must be .* at least warm_up=16, .* got 8"),
        ({"replay_capacity": 1, "warm_up": 1}, "replay_capacity must be at least 2 .* got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"weight_clip": -2.0}, "weight_clip must be positive, got -2.0"),
        ({"weight_clip": math.nan}, "weight_clip must be positive, got nan"),
        ({"baseline_decay": 1.0}, r"baseline_decay must be in \[0, 1\), got 1.0"),
        ({"baseline_decay": -0.1}, r"baseline_decay must be in \[0, 1\), got -0.1"),
    ],
)
def test_settings_that_never_learn_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ControllerSettings(**change)


@pytest.mark.parametrize("bias", [[200.0, 0.0, 0.0], [-200.0, -300.0, -300.0], [0.0, 0.0, 500.0]])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_thousands_of_parameters_survive_large_logits(bias: list[float], start: float) -> None:
    policy = Policy(1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.biases[2].copy_(torch.tensor(bias))
    count = MANY + 1
    many = ManyController([PhiSpec("a", 0.0, 1.0)] * count, 1, policy=policy, freeze=True)
    action = many.step(torch.full((count,), start), torch.ones(count, 1), None, 0.5).action
    left = {way: bias[way + 1] for way in (-1, 0, 1) if 0.0 <= start + 0.1 * way <= 1.0}
    likely = {way for way, value in left.items() if value == max(left.values())}
    assert set(torch.as_tensor(action).sign().tolist()) == likely


# Reproducibility


def test_same_seed_same_bits_other_seed_others() -> None:
    runs = [Controller(SPEC, seed=seed) for seed in (7, 7, 8)]
    traces = [drive(run, 60) for run in runs]
    assert traces[0] == traces[1] != traces[2]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_no_global_random_stream_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    drive(Controller(SPEC, seed=0), 30)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("context", ["no_grad", "inference", "autocast", "double"])
def test_ambient_modes_change_nothing(context: str) -> None:
    expected_run = Controller(SPEC, seed=2)
    expected = drive(expected_run, 40)
    run = Controller(SPEC, seed=2)
    if context == "double":
        torch.set_default_dtype(torch.float64)
        try:
            trace = drive(run, 40)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        ambient = {
            "no_grad": torch.no_grad(),
            "inference": torch.inference_mode(),
            "autocast": torch.autocast("cpu", torch.bfloat16),
        }[context]
        with ambient:
            trace = drive(run, 40)
    assert trace == expected
    assert torch.equal(weights(run), weights(expected_run))


@pytest.mark.parametrize("stop", [0, 1, 2, 17, 39])
@pytest.mark.parametrize("via", ["state_dict", "deepcopy", "pickle"])
def test_stop_and_go_on_is_bit_identical(stop: int, via: str) -> None:
    straight = Controller(SPEC, seed=4)
    expected = drive(straight, 40)
    first = Controller(SPEC, seed=4)
    head = drive(first, stop)
    if via == "deepcopy":
        second = copy.deepcopy(first)
    elif via == "pickle":
        second = pickle.loads(pickle.dumps(first))
    else:
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        buffer.seek(0)
        second = Controller(SPEC, seed=99)
        second.load_state_dict(torch.load(buffer, weights_only=True))
    drive(first, 5, start=stop)  # the original goes its own way: nothing is shared
    tail = drive(second, 40 - stop, start=stop, phi=head[-1].phi if head else (0.5, 4.0))
    assert head + tail == expected
    assert torch.equal(weights(second), weights(straight))


# Policies


def test_freeze_acts_without_learning() -> None:
    controller = Controller(SPEC, seed=0, freeze=True)
    before = weights(controller)
    trace = drive(controller, 60)
    assert torch.equal(weights(controller), before)
    assert len({decision.action for decision in trace}) > 1


def test_a_policy_is_copied_and_fits_any_number_of_parameters() -> None:
    teacher = Controller(SPEC, seed=0)
    drive(teacher, 40)
    before = weights(teacher)
    many = tuple(PhiSpec(f"p{i}", -1.0, 1.0) for i in range(23))
    pupil = Controller(many, seed=1, policy=teacher.policy)
    assert torch.equal(weights(pupil), before)
    for t in range(40):
        pupil.step([0.0] * 23, torch.ones(23, 1), t % 2, 0.0)
    assert torch.equal(weights(teacher), before)
    assert not torch.equal(weights(pupil), before)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(statistics_width=3), ("3", "1")),
        (Policy(beta=0.2), ("0.2", "0.1")),
        (Policy(identities=7), ("7", "2")),
    ],
)
def test_a_policy_of_another_task_is_refused_with_both_values(policy: Policy, words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{words[0]}.*{words[1]}"):
        Controller(SPEC, policy=policy)


def test_a_policy_with_identities_fits_its_own_number() -> None:
    teacher = Controller(SPEC, seed=0, settings=ControllerSettings(identity=True))
    assert teacher.policy.identities == 2
    pupil = Controller(SPEC, policy=teacher.policy)
    assert drive(pupil, 1)[0].entropy > 0


def test_children_may_share_a_learner() -> None:
    parent, child = Controller(SPEC, seed=0), Controller(SPEC, seed=1)
    child.learner = parent.learner
    drive(parent, 10)
    drive(child, 10)
    assert len(parent.learner.replay) == 18


def test_importing_the_controller_needs_no_pml() -> None:
    code = "import sys, ala_metric.controller as c; sys.exit('pytorch_metric_learning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
