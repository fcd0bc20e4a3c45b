"""ALALoss: transparent, counted exactly, resumable, and safe against failing metrics."""

from __future__ import annotations

import copy
import io
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn

from ala_metric import ALALoss, PhiSpec, losses, metrics
from ala_metric.controller import ControllerSettings, Policy
from ala_metric.training import embed

from .fakes import FakeLoss, FakeMetric, validation_set

EMBEDDINGS = torch.ones(4, 2)


def make(script: Any = (0.0,), n_params: int = 2, metric: Any = None, **kwargs: Any) -> ALALoss:
    kwargs = {"total_steps": 10_000, "every": 4, "offsets": (0,), "validate": validation_set} | kwargs
    loss = kwargs.pop("loss", None) or FakeLoss(n_params)
    return ALALoss(loss, metric or FakeMetric(script), **kwargs)


def call(loss_fn: ALALoss, times: int) -> None:
    for _ in range(times):
        loss_fn(EMBEDDINGS)


def weights(loss_fn: ALALoss) -> torch.Tensor:
    assert loss_fn.policy is not None
    return torch.cat([p.detach().flatten() for p in loss_fn.policy.parameters()])


class MovingMetric:
    """A metric that depends on the parameters, so that every action has consequences."""

    name, higher_is_better = "moving", True

    def __init__(self, loss: FakeLoss) -> None:
        self.loss = loss

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return math.sin(3.0 * float(self.loss.phi.sum()))


# Transparent


@pytest.mark.parametrize("how", ["plain", "triplets", "pairs", "references"])
def test_value_and_gradient_are_those_of_the_wrapped_loss(how: str) -> None:
    embeddings, labels = torch.randn(12, 5), torch.arange(12) % 3
    extra: dict[str, Any] = {}
    if how in ("triplets", "pairs"):
        from pytorch_metric_learning import miners

        miner = miners.TripletMarginMiner() if how == "triplets" else miners.MultiSimilarityMiner()
        extra["indices_tuple"] = miner(embeddings, labels)
    if how == "references":
        extra = {"ref_emb": torch.randn(7, 5), "ref_labels": torch.arange(7) % 3}
    results = []
    for wrap in (False, True):
        loss_fn: Any = losses.DistanceMixtureLoss()
        if wrap:
            loss_fn = make(loss=loss_fn)
        x = embeddings.clone().requires_grad_()
        value = loss_fn(x, labels, **extra)
        value.backward()
        results.append((value.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_it_is_a_pml_loss_with_the_wrapped_distance_and_parameters() -> None:
    from pytorch_metric_learning.losses import BaseMetricLossFunction
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    inner = losses.FocalWeightingLoss()
    loss_fn = make(loss=inner)
    assert isinstance(loss_fn, BaseMetricLossFunction)
    assert loss_fn.distance is inner.distance
    assert loss_fn.phi is inner.phi
    assert loss_fn.phi_spec == inner.phi_spec
    loss_fn.set_phi(torch.tensor([3.0, 9.0]))
    assert inner.phi.tolist() == [3.0, 9.0]
    assert loss_fn.statistics(torch.randn(6, 3), torch.arange(6) % 2).shape[0] == 2
    assert DistributedLossWrapper(loss_fn).loss is loss_fn


def test_a_loss_that_is_no_module_and_a_metric_that_is_one() -> None:
    class Plain:
        phi = torch.zeros(1)
        phi_spec = (PhiSpec("a", -9.0, 9.0),)

        def set_phi(self, phi: torch.Tensor) -> None:
            self.phi = phi

        def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.ones(1, 1)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum() + self.phi.sum()

    class ModuleMetric(nn.Linear):
        name, higher_is_better = "module", True

        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
            return 1.0

    loss_fn = make(loss=Plain(), metric=ModuleMetric(2, 2))
    call(loss_fn, 9)
    assert len(loss_fn.history) == 2
    assert list(loss_fn.state_dict()) == ["_extra_state"]
    assert not list(loss_fn.parameters())
    twin = make(loss=Plain())
    twin.load_state_dict(loss_fn.state_dict())
    assert twin.phi.tolist() == loss_fn.phi.tolist()


# Counted


def test_steps_come_on_entering_the_call_after_each_period() -> None:
    loss_fn = make(every=4, offsets=(0,))
    seen = []
    for _ in range(14):
        call(loss_fn, 1)
        seen.append(len(loss_fn.history))
    assert seen == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    assert [record.step for record in loss_fn.history] == [4, 8, 12]


def test_only_training_calls_with_gradients_count() -> None:
    loss_fn = make(every=2)
    with torch.no_grad():
        call(loss_fn, 9)
    loss_fn.eval()
    call(loss_fn, 9)
    assert float(loss_fn(EMBEDDINGS)) == float(loss_fn.loss(EMBEDDINGS))
    loss_fn.train()
    call(loss_fn, 2)
    assert loss_fn.history == []
    call(loss_fn, 1)
    assert len(loss_fn.history) == 1


def test_offsets_are_measured_within_the_iterations_after_the_action() -> None:
    phis, iterations = [], []
    loss = FakeLoss(1)
    loss_fn: ALALoss

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        iterations.append(loss_fn._iterations)
        phis.append(float(loss.phi))
        return validation_set()

    script = [3.0, 1.0, 2.0, 5.0]  # errors at iterations 5, 10, 15, 20
    metric = FakeMetric(script, higher_is_better=False)
    loss_fn = ALALoss(loss, metric, validate, total_steps=100, every=10, offsets=(0, 5), gamma=0.9, seed=1)
    call(loss_fn, 21)
    assert iterations == [5, 10, 15, 20]
    weight = 0.9**5
    expected = [(1.0 + 3.0 * weight) / (1 + weight), (5.0 + 2.0 * weight) / (1 + weight)]
    # Rounding of a division in float64.
    assert [record.error for record in loss_fn.history] == pytest.approx(expected, rel=1e-12)
    assert [record.metric for record in loss_fn.history] == [1.0, 5.0]
    assert [record.reward for record in loss_fn.history] == [None, -1]
    assert phis[0] == phis[1] == 0.0
    assert phis[2] == phis[3] == loss_fn.history[0].phi[0] == loss_fn.history[0].action[0]


@pytest.mark.parametrize(("higher", "rewards"), [(True, [None, 1, 0, -1]), (False, [None, -1, 0, 1])])
def test_reward_follows_the_direction_of_the_metric(higher: bool, rewards: list[int | None]) -> None:
    loss_fn = make(metric=FakeMetric([1.0, 2.0, 2.0, 1.5], higher_is_better=higher), every=1)
    call(loss_fn, 5)
    assert [record.reward for record in loss_fn.history] == rewards
    assert [record.metric for record in loss_fn.history] == [1.0, 2.0, 2.0, 1.5]


def test_it_stops_after_total_steps() -> None:
    metric = FakeMetric()
    loss_fn = make(metric=metric, every=4, offsets="all", total_steps=10)
    call(loss_fn, 30)
    assert [record.step for record in loss_fn.history] == [4, 8]
    assert metric.calls == 8  # iterations 9 and 10 can lead to no step and are not measured


def test_gradient_accumulation_counts_optimiser_steps() -> None:
    loss_fn = make(every=2, step_on="optimizer")
    for _ in range(4):
        call(loss_fn, 3)
        loss_fn.step()
    call(loss_fn, 10)
    assert [record.step for record in loss_fn.history] == [2, 4]
    with pytest.raises(RuntimeError, match="step_on"):
        make().step()


@pytest.mark.parametrize(
    ("offsets", "every", "used"), [((0, 5), 5, (0,)), ((5, 0, 5), 6, (0, 5)), ("all", 3, (0, 1, 2))]
)
def test_offsets_that_do_not_fit_are_left_out(offsets: Any, every: int, used: tuple[int, ...]) -> None:
    assert make(offsets=offsets, every=every).offsets == used


def test_without_the_last_iteration_the_step_still_has_an_error() -> None:
    with pytest.raises(ValueError, match="every"):
        make(offsets=(5,), every=5)
    loss_fn = make(metric=FakeMetric([2.0, 9.0]), offsets=(1,), every=3)
    call(loss_fn, 4)
    assert loss_fn.history[0].error == -2.0
    assert loss_fn.history[0].metric == 9.0


# Records and loggers


def test_records_are_read_by_attribute_and_by_key() -> None:
    loss_fn = make(every=1)
    call(loss_fn, 3)
    record = loss_fn.history[-1]
    names = ("step", "metric", "error", "reward", "action", "phi", "entropy", "seconds", "summary")
    assert record.keys() == names
    assert all(record[name] == getattr(record, name) for name in names)
    assert record.seconds > 0
    assert record.phi == tuple(loss_fn.phi.tolist())
    with pytest.raises(KeyError):
        record["keys"]
    with pytest.raises(AttributeError):
        record.step = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["callable", "protocol"])
def test_logger_gets_one_dict_per_step(kind: str) -> None:
    class Keeper(list):  # type: ignore[type-arg]
        def log(self, record: dict[str, Any]) -> None:
            self.append(record)

    keeper = Keeper()
    loss_fn = make(every=2, logger=keeper.append if kind == "callable" else keeper)
    call(loss_fn, 7)
    assert keeper == [dict(record) for record in loss_fn.history]
    assert len(keeper) == 3


# Failures


def test_nan_drops_the_episode_and_takes_no_action() -> None:
    loss_fn = make([1.0, math.nan, 2.0, 3.0], every=1, settings=ControllerSettings(warm_up=1))
    call(loss_fn, 5)
    assert loss_fn.dropped == 1
    assert [record.reward for record in loss_fn.history] == [None, None, None, 1]
    dropped = loss_fn.history[1]
    assert dropped.phi == loss_fn.history[0].phi
    assert dropped.action == (0.0, 0.0)
    assert dropped.entropy is None
    assert math.isnan(dropped.metric)
    assert len(loss_fn.scheme.learner.replay) == 1  # only the action between 2 and 3 has a reward


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_metrics_are_dropped_too(value: float) -> None:
    loss_fn = make([1.0, value, 2.0], every=1)
    call(loss_fn, 4)
    assert loss_fn.dropped == 1


def test_nan_between_controller_steps_and_nan_statistics_are_dropped() -> None:
    loss_fn = make([1.0, 1.0, math.nan, 1.0], every=10, offsets=(0, 5))
    call(loss_fn, 21)
    assert loss_fn.dropped == 1
    loss = FakeLoss(1)
    loss.statistics = lambda outputs, targets: torch.full((1, 1), math.nan)  # type: ignore[method-assign]
    loss_fn = make(loss=loss, every=1)
    call(loss_fn, 3)
    assert loss_fn.dropped == 2
    assert weights(loss_fn).isfinite().all()


class Failing:
    """Raises the second time it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            raise OSError("disk full")


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("step_on", ["forward", "optimizer"])
def test_a_step_is_not_taken_twice_when_the_logger_raises(step_on: Any, resumed: bool) -> None:
    def run(logger: Any) -> ALALoss:
        def fresh() -> ALALoss:
            loss = FakeLoss(2)
            return make(loss=loss, metric=MovingMetric(loss), every=2, step_on=step_on, logger=logger)

        loss_fn, steps = fresh(), 0
        while steps < 9:
            steps += 1
            try:
                if step_on == "optimizer":
                    loss_fn.step()
                else:
                    call(loss_fn, 1)
            except OSError:
                steps -= step_on == "forward"  # no loss was computed
                if resumed:
                    state, loss_fn = loss_fn.state_dict(), fresh()
                    loss_fn.load_state_dict(state)
        return loss_fn

    failing, expected = run(Failing()), run(None)
    assert [record.step for record in failing.history] == [2, 4, 6, 8]
    assert_same_state(failing.state_dict(), expected.state_dict())


@pytest.mark.parametrize("failing", [2, 5, 7])
def test_calls_whose_loss_raises_are_not_counted(failing: int) -> None:
    class OutOfMemory(FakeLoss):
        calls = 0

        def forward(self, embeddings: torch.Tensor, labels: Any = None) -> torch.Tensor:
            self.calls += 1
            if failing <= self.calls < failing + 2:
                raise RuntimeError("CUDA out of memory")
            return super().forward(embeddings, labels)

    def run(loss: FakeLoss, calls: int) -> ALALoss:
        loss_fn = make(loss=loss, metric=MovingMetric(loss), every=3, offsets=(0, 1))
        for _ in range(calls):
            try:
                call(loss_fn, 1)
            except RuntimeError:
                continue
        return loss_fn

    assert_same_state(run(OutOfMemory(2), 12).state_dict(), run(FakeLoss(2), 10).state_dict())


def test_a_metric_that_refuses_diverged_outputs_tells_of_divergence() -> None:
    loss_fn = make([ValueError("embeddings must be finite")], every=1)
    call(loss_fn, 1)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        call(loss_fn, 1)
    loss_fn.__dict__["validate"] = lambda: (torch.full((4, 2), math.inf), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(FloatingPointError, match="the validation outputs are not finite"):
        call(loss_fn, 1)


@pytest.mark.parametrize("mode", ["paper", "fixed", "random_walk"])
@pytest.mark.parametrize("where", ["metric", "validate", "statistics"])
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_an_error_is_raised_with_the_state_unchanged(mode: str, where: str, failing: int) -> None:
    if where == "statistics" and (mode != "paper" or failing % 2 == 0):
        return  # looked at by the controller on its own steps only
    state = {"calls": 0, "armed": True}

    def trouble(value: Any) -> Any:
        if state["armed"] and state["calls"] == failing:
            torch.rand(1)
            raise OSError("no such luck")
        return value

    class Metric(FakeMetric):
        def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
            if where == "metric":
                trouble(None)
            return 1.0 / (1 + state["calls"])

    loss = FakeLoss(2)
    statistics = loss.statistics
    loss.statistics = lambda *a: trouble(statistics(*a)) if where == "statistics" else statistics(*a)  # type: ignore
    loss_fn = make(
        loss=loss,
        metric=Metric(),
        mode=mode,
        every=6,
        offsets=(0, 3),
        validate=lambda: trouble(validation_set()) if where == "validate" else validation_set(),
    )
    while True:
        before = copy.deepcopy(loss_fn.state_dict())
        stream = torch.get_rng_state()
        try:
            call(loss_fn, 1)
        except OSError:
            break
        state["calls"] = (loss_fn._iterations - 1) // 3
        assert loss_fn._iterations < 20
    assert_same_state(loss_fn.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), stream)
    state["armed"] = False
    call(loss_fn, 12)
    assert loss_fn.history[-1].step >= 12


def assert_same_state(a: Any, b: Any) -> None:
    """Equal bit for bit, but for the wall-clock time."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key != "seconds":
                assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# Reproducible


def test_same_seed_twice_gives_the_same_bits() -> None:
    runs = []
    for seed in (3, 3, 4):
        loss = FakeLoss(3)
        loss_fn = make(loss=loss, metric=MovingMetric(loss), every=1, seed=seed)
        call(loss_fn, 60)
        runs.append(loss_fn)
    assert runs[0].history == runs[1].history != runs[2].history
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert {record.reward for record in runs[0].history} == {None, -1, 0, 1}


@pytest.mark.parametrize("mode", ["paper", "fixed", "uniform", "random_walk", "random_static"])
def test_the_users_random_streams_do_not_move(mode: str) -> None:
    def noisy() -> tuple[torch.Tensor, torch.Tensor]:
        random.random()
        np.random.rand()  # noqa: NPY002
        return torch.rand(4, 2), torch.tensor([0, 0, 1, 1])

    def draws(adapt: bool) -> list[float]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        loss_fn: Any = make(validate=noisy, mode=mode, every=1) if adapt else FakeLoss(2)
        out = []
        for _ in range(20):
            loss_fn(EMBEDDINGS)
            out += [random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: NPY002
        return out

    assert draws(True) == draws(False)


def test_validation_runs_without_gradients() -> None:
    enabled = []
    loss_fn = make(validate=lambda: enabled.append(torch.is_grad_enabled()) or validation_set(), every=1)
    call(loss_fn, 3)
    assert enabled == [False, False]
    assert torch.is_grad_enabled()


SCHEMES = ["paper", "fixed", "uniform", "random_walk", "random_static"]


@pytest.mark.parametrize(
    ("mode", "stop"), [("paper", stop) for stop in range(61)] + [(mode, 31) for mode in SCHEMES]
)
def test_stop_and_resume_is_bit_identical(mode: str, stop: int) -> None:
    def fresh(seed: int = 5) -> ALALoss:
        loss = FakeLoss(2, start=1.0, low=0.5, high=3.0, rule="multiplicative")
        settings = ControllerSettings(warm_up=3)
        return make(
            loss=loss,
            metric=MovingMetric(loss),
            every=3,
            offsets=(0, 2),
            total_steps=55,
            mode=mode,
            seed=seed,
            settings=settings,
        )

    straight = fresh()
    call(straight, 60)
    first = fresh()
    call(first, stop)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = fresh(seed=5 if mode != "paper" else 77)  # the generator's state comes from the file
    second.load_state_dict(torch.load(buffer, weights_only=True))
    call(second, 60 - stop)
    assert second.history == straight.history
    assert_same_state(second.state_dict(), straight.state_dict())


def test_deepcopy_goes_its_own_way() -> None:
    loss_fn = make(every=1)
    call(loss_fn, 30)
    twin = copy.deepcopy(loss_fn)
    call(loss_fn, 30)
    assert len(twin.history) == 29
    call(twin, 30)
    assert twin.history == loss_fn.history
    assert twin.phi is not loss_fn.phi


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n_params": 3}, "n_params=2.*3"),
        ({"mode": "fixed"}, "mode='paper'.*'fixed'"),
        ({"beta": 0.2}, "beta=0.1.*0.2"),
    ],
)
def test_a_state_of_another_loss_is_refused(other: dict[str, Any], words: str) -> None:
    state = make().state_dict()
    target = make(**other)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=words):
        target.load_state_dict(state)
    assert_same_state(target.state_dict(), before)
    state["_extra_state"] = {"mode": "paper"}
    with pytest.raises(ValueError, match="not the state"):
        make().load_state_dict(state)


# Policies


def test_a_policy_is_handed_on_and_frozen() -> None:
    teacher = make(every=1, settings=ControllerSettings(warm_up=1))
    call(teacher, 40)
    pupil = make(every=1, n_params=7, policy=teacher.policy, freeze=True, seed=9)
    before = weights(teacher)
    call(pupil, 40)
    assert torch.equal(weights(pupil), before)
    assert len({record.action for record in pupil.history}) > 1
    learner = make([float(i % 2) for i in range(41)], every=1, n_params=7, policy=teacher.policy)
    call(learner, 41)
    assert not torch.equal(weights(learner), before)
    assert torch.equal(weights(teacher), before)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(statistics_width=5), "5.*1"),
        (Policy(beta=0.3), "0.3.*0.1"),
        (Policy(identities=9), "9.*2"),
    ],
)
def test_a_policy_of_another_task_is_refused_at_once(policy: Policy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(policy=policy)


def test_a_policy_is_refused_by_the_declared_width_without_validating() -> None:
    loss = FakeLoss(2, width=2)
    loss.statistics_width = 2  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"1 statistics.*2"):
        make(loss=loss, policy=Policy(), validate=lambda: 1 / 0)


def test_the_policy_takes_the_width_of_the_first_statistics() -> None:
    loss_fn = make(loss=FakeLoss(2, width=3), every=1)
    assert loss_fn.policy is not None
    assert loss_fn.policy.statistics_width == 1
    call(loss_fn, 2)
    assert loss_fn.policy.statistics_width == 3
    loss_fn.loss.width = 2
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2, 2\]"):
        call(loss_fn, 1)


def test_identity_is_asked_of_the_loss_and_may_be_overruled() -> None:
    loss = FakeLoss(4)
    loss.parameter_identity = True  # type: ignore[assignment]
    policies = make(loss=loss).policy, make(loss=loss, settings=ControllerSettings(identity=False)).policy
    assert [policy.identities for policy in policies if policy] == [4, 0]
    with pytest.raises(ValueError, match="4.*2"):
        make(policy=policies[0])


# Arguments


def test_a_metric_without_direction_is_named() -> None:
    def recall(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return 0.0

    with pytest.raises(TypeError, match=r"higher_is_better.*recall"):
        make(metric=recall)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"loss": nn.MSELoss()}, TypeError, "MSELoss"),
        ({"metric": metrics.RecallAtK}, TypeError, r"must be an object, got the class RecallAtK"),
        ({"validate": None}, TypeError, "validate"),
        ({"logger": 3}, TypeError, "logger"),
        ({"policy": "file.safetensors"}, TypeError, "policy"),
        ({"mode": "magic"}, ValueError, "mode.*magic"),
        ({"mode": "paired"}, ValueError, "training.fit"),
        ({"mode": "race"}, ValueError, "training.fit"),
        ({"mode": "fixed", "policy": Policy()}, ValueError, "policy"),
        ({"step_on": "epoch"}, ValueError, "step_on"),
        ({"total_steps": 0}, ValueError, "total_steps"),
        ({"every": 2.5}, ValueError, "every"),
        ({"beta": math.nan}, ValueError, "beta"),
        ({"gamma": 0.0}, ValueError, "gamma"),
        ({"offsets": (-1,)}, ValueError, "offsets"),
        ({"offsets": "last"}, ValueError, "offsets"),
        ({"seed": 1.5}, TypeError, "seed"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(**change)


@pytest.mark.parametrize("around", [lambda loss: loss, lambda loss: nn.Sequential(loss)])
def test_a_loss_that_adapts_already_is_refused(around: Any) -> None:
    class Holder(FakeLoss):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    for loss in (make(), Holder(around(make()))):
        with pytest.raises(TypeError, match="an ALALoss already"):
            make(loss=loss)


def test_phi_of_another_size_is_read_through_phi_vector() -> None:
    from ala_metric import classification

    inner = classification.AdaptiveClassificationLoss(5)
    logits, targets = torch.randn(40, 5), torch.arange(40) % 5
    loss_fn = make(
        loss=inner,
        metric=metrics.ClassificationError(),
        every=1,
        validate=lambda: (logits, targets),
        settings=ControllerSettings(warm_up=1),
    )
    for _ in range(20):
        loss_fn(logits, targets)
    assert len(loss_fn.history[-1].phi) == 5
    assert inner.phi.shape == (5, 5)
    assert inner.phi_vector.tolist() == list(loss_fn.history[-1].phi)
    assert min(inner.phi_vector) >= 0.05 - 1e-6  # float32 of the bound


# In a plain loop


@pytest.mark.parametrize("mode", ["paper", "random_static"])
def test_a_plain_loop_adapts_and_resumes(mode: str) -> None:
    """Model, optimiser and loss together, stopped in the middle: the same bits at the end."""
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 4

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, ALALoss]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        loss_fn = ALALoss(
            losses.DistanceMixtureLoss(),
            metric=metrics.RecallAtK((1, 3)),
            validate=lambda: embed(model, [(data[:32], labels[:32])]),
            total_steps=40,
            every=5,
            mode=mode,
        )
        return model, optimizer, loss_fn

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: ALALoss, steps: range) -> None:
        for step in steps:
            rows = torch.arange(32) + step % 33
            optimizer.zero_grad()
            loss_fn(model(data[rows]), labels[rows]).backward()
            optimizer.step()

    straight = fresh()
    train(*straight, range(40))
    assert len(straight[2].history) == 7
    if mode == "paper":
        assert len({record.phi for record in straight[2].history}) > 1
    first = fresh()
    train(*first, range(23))
    second = fresh()
    for target, source in zip(second, first):
        target.load_state_dict(source.state_dict())  # type: ignore[attr-defined]
    train(*second, range(23, 40))
    assert second[2].history == straight[2].history
    assert_same_state(second[0].state_dict(), straight[0].state_dict())


@pytest.mark.parametrize(
    ("wrong", "found"), [(torch.ones(4, 2), "Tensor"), ((torch.ones(4),) * 3, "3 values"), (None, "NoneType")]
)
def test_validate_must_return_a_pair(wrong: Any, found: str) -> None:
    loss_fn = make(validate=lambda: wrong, every=2)
    with pytest.raises(TypeError, match=rf"validate\(\) must return \(outputs, targets\), got {found}"):
        call(loss_fn, 3)


def test_a_loss_without_parameters_is_told_of_adapt_pml() -> None:
    with pytest.raises(TypeError, match=r"got NTXentLoss; losses.AdaptPML\(loss\) makes one"):
        ALALoss(NTXentLoss(), metrics.RecallAtK((1,)), _unused, 10)
    with pytest.raises(TypeError, match="returning .outputs, targets., got tuple"):
        ALALoss(losses.DistanceMixtureLoss(), metrics.RecallAtK((1,)), (torch.eye(2), 1), 10)


def _unused() -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("rule", "low", "high", "start"),
    [("additive", 0.0, 1.0, 5.0), ("multiplicative", 0.5, 64.0, 0.0), ("additive", 0.0, 1.0, math.nan)],
)
def test_parameters_outside_of_their_range_are_refused(
    rule: str, low: float, high: float, start: float
) -> None:
    loss = FakeLoss(low=low, high=high, start=start, rule=rule)
    with pytest.raises(ValueError, match=rf"loss.phi\[0\] \('p0'\) must lie in \[{low}, {high}\], got"):
        ALALoss(loss, FakeMetric(), validation_set, total_steps=10)


@pytest.mark.parametrize("found", [None, "abc", torch.ones(2), {"a": 1}])
def test_a_metric_must_return_one_number(found: object) -> None:
    metric = FakeMetric()
    metric.script = [found]  # type: ignore[list-item]
    loss = ALALoss(FakeLoss(), metric, validation_set, total_steps=10, every=1)
    rows = torch.ones(2, 2)
    loss(rows)
    with pytest.raises(TypeError, match="metric must return one number, got"):
        loss(rows)
    assert loss.history == []


@pytest.mark.parametrize(
    ("statistics", "said"),
    [([[1.0]], "statistics must be a tensor, got list"), (torch.ones(1, 1) * 1j, "statistics must be real")],
)
def test_statistics_must_be_a_tensor_of_real_numbers(statistics: object, said: str) -> None:
    wrapped = FakeLoss()
    wrapped.statistics = lambda outputs, targets: statistics  # type: ignore[assignment,method-assign]
    loss = ALALoss(wrapped, FakeMetric(), validation_set, total_steps=10, every=1)
    loss(torch.ones(2, 2))
    with pytest.raises(TypeError, match=said):
        loss(torch.ones(2, 2))


def test_settings_must_be_settings() -> None:
    with pytest.raises(TypeError, match="settings must be ControllerSettings, got int"):
        ALALoss(FakeLoss(), FakeMetric(), validation_set, total_steps=10, settings=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [{"history": [{}]}, {"errors": None}, {"iterations": "x"}, {"scheme": {}}, {"seconds": None}],
)
def test_a_damaged_state_changes_nothing(damage: dict[str, object]) -> None:
    def trained(calls: int) -> ALALoss:
        loss = ALALoss(FakeLoss(), FakeMetric((0.1, 0.3, 0.2)), validation_set, total_steps=40, every=2)
        for _ in range(calls):
            loss(torch.ones(2, 2))
        return loss

    loss, other = trained(9), trained(21)
    before = loss.get_extra_state()
    with pytest.raises(ValueError, match="the state of an ALALoss is damaged"):
        loss.set_extra_state(other.get_extra_state() | damage)
    assert str(loss.get_extra_state()) == str(before)
