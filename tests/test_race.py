"""A race of loss parameters: finds a known optimum, repeats and resumes bit for bit, survives a bad arm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import ALALoss, CheckpointError, training
from ala_metric.controller import Critic, training_cost
from ala_metric.losses import DistanceMixtureLoss, FocalWeightingLoss
from ala_metric.metrics import ClassificationError, RecallAtK
from ala_metric.training.parts import Parts
from ala_metric.training.store import Store

from .fakes import FakeMetric
from .landscape import Height, Landscape, Task
from .test_training import IMAGES, Noisy, Stop, stop_at

MULTIPLICATIVE = {
    "optimum": (4.0, 40.0),
    "start": (0.6, 60.0),
    "low": 0.5,
    "high": 64.0,
    "rule": "multiplicative",
}
RUNGS = ((0.25, 4), (0.5, 3), (1.0, 1))
WIDE = ((0.25, 4), (0.5, 6), (1.0, 1))  # two free places: one for a hypergradient, one for the critic


# --- the known optimum


@pytest.mark.parametrize("task", [{}, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_the_optimum_of_two_parameters_is_found(task: dict[str, Any]) -> None:
    """Within 5 % of each range in at least 9 of 10 seeds, at a training cost of 3.6 runs."""
    near = 0
    for seed in range(10):
        made = Task(**task)
        result = made.fit(100, "race", seed=seed)
        near += max(made.landscape.distances(result.phi)) < 0.05
    assert near >= 9


def test_the_bandit_problem() -> None:
    """More is better; the winner has the parameter near its upper end."""
    found = []
    for seed in range(5):
        task = Task(optimum=(1.0,), start=(0.0,))
        found.append(task.fit(60, "race", seed=seed).phi[0])
    assert min(found) > 0.9


def test_the_winner_is_in_the_model_and_its_line_is_told() -> None:
    task = Task()
    result = task.fit(100, "race", seed=3)
    assert task.landscape.phi.tolist() == list(result.phi) == list(result.phi_history[-1][1])
    assert result.phi_history[0][0] == 0
    # The line's parameters, replayed in a plain run, give the same weight and losses.
    replay = Task()
    replay.landscape.set_phi(torch.tensor(result.phi_history[0][1], dtype=torch.float64))
    moves = dict(result.phi_history)

    def follow(step: int, loss: float) -> None:
        if step in moves:
            replay.landscape.set_phi(torch.tensor(moves[step], dtype=torch.float64))

    plain = replay.fit(100, None, on_step=follow)  # type: ignore[arg-type]
    assert plain.losses == result.losses
    assert torch.equal(replay.model.weight, task.model.weight)


# --- records and compute


def test_records_and_compute_by_hand() -> None:
    task = Task()
    result = task.fit(20, "race", race=training.RaceSettings(rungs=RUNGS), seed=1)
    assert [(r.start, r.end, len(r.arms)) for r in result.records] == [(0, 5, 4), (5, 10, 3), (10, 20, 1)]
    first = result.records[0]
    assert [arm.source for arm in first.arms] == ["start", "mutation", "prior", "prior"]
    assert sum(arm.lives for arm in first.arms) == 2  # two thirds of three
    assert [arm.source for arm in result.records[1].arms][2] == "critic"
    best = max(first.arms, key=lambda arm: arm.metric or 0.0)
    assert result.records[1].arms[2].parent == best.number
    rewards = [arm.reward for arm in first.arms]
    metrics = np.array([arm.metric for arm in first.arms])
    np.testing.assert_allclose(rewards, (metrics - metrics.mean()) / metrics.std(), rtol=1e-9)
    # 5 * 4 + 5 * 3 + 10 steps of 4 samples; 4 + 3 + 1 passes over 3 samples.
    assert result.compute == training.Meter(45, 180, 8, 24)
    assert result.compute.in_units_of(20) == pytest.approx((180 + 24 / 3) / 80)
    assert result.compute.in_units_of(20) == pytest.approx(training_cost(RUNGS) + 0.1)
    assert result.steps == 20 == len(result.losses)
    assert 0.0 < first.overhead < 1.0


def test_without_copies_it_is_plain_halving() -> None:
    settings = training.RaceSettings(rungs=RUNGS, copies=False)
    result = Task().fit(20, "race", race=settings)
    assert [sum(arm.lives for arm in r.arms) for r in result.records] == [3, 1, 1]
    assert len({phi for _, phi in result.phi_history}) == 1


def test_a_plain_fit_counts_its_compute_too() -> None:
    task = Task()
    loss_fn = task.loss(10, "paper", every=2, offsets=(0,))
    result = task.fit(10, "paper", loss_fn=loss_fn)
    # after steps 2, 4, 6, 8: the fifth controller step would come with the 11th call
    assert result.compute == training.Meter(10, 40, 4, 12)
    assert result.phi == tuple(task.landscape.phi.tolist())


# --- the same bits


def noisy_race(seed: int = 0, **keywords: Any) -> tuple[training.FitResult, list[Any]]:
    """A short race of a network that draws from every global stream, and all that it leaves behind."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    model = Noisy()
    loss_fn = ALALoss(
        DistanceMixtureLoss(),
        RecallAtK((1,), distance="cosine"),
        lambda: training.embed(model, [(IMAGES.images[:24].float() / 255, IMAGES.labels[:24])]),
        total_steps=12,
        mode="fixed",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    result = training.fit(
        model,
        loss_fn,
        IMAGES,
        total_steps=12,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12),
        batch_classes=5,
        per_class=3,
        seed=seed,
        mode="race",
        race=training.RaceSettings(
            rungs=WIDE,
            hypergradient=training.HypergradientSettings(
                training.nca, IMAGES, batch_classes=4, per_class=3, every=2
            ),
        ),
        **keywords,
    )
    left = [
        [tensor.tolist() for tensor in model.state_dict().values()],
        [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],  # noqa: NPY002
        result.losses,
        result.phi_history,
        result.records,
        result.compute,
    ]
    return result, left


@pytest.fixture(scope="module")
def uninterrupted() -> list[Any]:
    return noisy_race()[1]


def test_the_same_seed_gives_the_same_bits(uninterrupted: list[Any]) -> None:
    assert noisy_race()[1] == uninterrupted
    assert noisy_race(seed=1)[1] != uninterrupted


@pytest.mark.parametrize("stop", range(1, 37))  # 3 * 4 + 3 * 6 + 6 steps of all arms
def test_resume_is_bit_identical(stop: int, tmp_path: Path, uninterrupted: list[Any]) -> None:
    with pytest.raises(Stop):
        noisy_race(checkpoint=tmp_path / "c", checkpoint_every=1, on_step=stop_at(stop))
    result, left = noisy_race(checkpoint=tmp_path / "c", resume=True)
    # The exception came before the checkpoint of its step: at most one step is done again.
    assert result.resumed_at == max(stop - 1, 0)
    assert left == uninterrupted


def test_resuming_what_is_finished_does_nothing(tmp_path: Path, uninterrupted: list[Any]) -> None:
    noisy_race(checkpoint=tmp_path / "c")
    result, left = noisy_race(checkpoint=tmp_path / "c", resume=True)
    assert result.resumed_at == 36
    assert left == uninterrupted
    assert "model" in training.load_checkpoint(tmp_path / "c")


def test_a_snapshot_is_no_part_of_the_training() -> None:
    """Twins that start from one snapshot do not write into it: Adam keeps the tensors that it is given."""
    torch.manual_seed(0)
    model = training.SmallConvNet(dim=4, channels=(2, 2, 2))
    parts = Parts(model, torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.1))
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    parts.step(1, images, labels)
    snapshot = parts.snapshot()
    seen = []
    for _ in range(2):
        parts.restore(snapshot)
        parts.step(2, images, labels)
        seen.append([value.tolist() for value in model.state_dict().values()])
    assert seen[0] == seen[1]


class Ahead:
    """The processes of a run in which the other one has come to stage 1 only."""

    rank, size = 1, 2

    def everyone(self, number: int) -> list[int]:
        return [1, number]


def test_who_woke_up_ahead_goes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "c", 1, {"mode": "race"}, Ahead())  # type: ignore[arg-type]
    for stage, before in ((1, True), (2, False)):
        store.save({"stage": stage, "meter": {"training_steps": 10 * stage}}, before_exchange=before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.rank1", "c.rank1.before"]
    found = store.load()
    assert found is not None
    assert found["stage"] == 1
    store.save({"stage": 2, "meter": {"training_steps": 20}}, before_exchange=True)
    with pytest.raises(CheckpointError, match="has no checkpoint of stage 1, where another process is"):
        store.load()


def test_global_streams_stay_where_they_were() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    Task().fit(20, "race")
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


def test_a_checkpoint_of_another_race_is_refused(tmp_path: Path) -> None:
    Task().fit(20, "race", checkpoint=tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"has ends=\[1, 2, 4, 7, 12, 20\], this run has \[2, 4, 8, 14, 24, 40\]"
    ):
        Task().fit(40, "race", checkpoint=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match="has kind='Race', this run has 'Paired'"):
        Task().fit(20, "paired", checkpoint=tmp_path / "c", resume=True)
    Task().fit(20, None, checkpoint=tmp_path / "p")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not one of training.fit with children"):
        Task().fit(20, "race", checkpoint=tmp_path / "p", resume=True)


# --- arms that fail


class Cliff(Landscape):
    """Every step with the first parameter in the upper half of its range gives NaN."""

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = super().forward(outputs, labels)
        return value * float("nan") if self.phi[0] > 0.5 else value


def test_a_diverged_arm_costs_its_own_episode_only() -> None:
    task = Task()
    task.landscape = Cliff((0.45, 0.3), (0.1, 0.9))
    result = task.fit(100, "race", seed=0)
    first = result.records[0]
    failed = [arm for arm in first.arms if arm.failed]
    assert first.dropped == len(failed) > 0
    assert all(arm.phi[0] > 0.5 and arm.metric is None and arm.reward is None for arm in failed)
    assert not any(arm.lives for arm in failed)
    assert "the loss of step 1 is nan" in failed[0].failed
    assert result.phi[0] <= 0.5
    assert result.steps == 100


class Blind(Height):
    """No metric for an arm that has come far in the first rung."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        value = super().__call__(outputs, targets)
        return float("nan") if 4.0 < value < 5.0 else value


def test_an_arm_without_a_metric_is_dropped() -> None:
    task = Task()
    task.metric = Blind()
    result = task.fit(100, "race", seed=0, race=training.RaceSettings(rungs=((0.05, 20), (1.0, 1))))
    first = result.records[0]
    assert first.dropped == sum("the metric is nan" in arm.failed for arm in first.arms) > 0


def test_when_all_arms_fail_the_run_says_why() -> None:
    task = Task()
    task.landscape = Cliff((0.7, 0.3), (0.9, 0.9))
    with pytest.raises(FloatingPointError, match=r"every arm failed in stage 0.*the loss of step 1 is nan"):
        task.fit(20, "race", race=training.RaceSettings(rungs=((0.5, 1), (1.0, 1))))


class Broken(Landscape):
    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")


def test_an_error_that_is_no_divergence_is_raised() -> None:
    task = Task()
    task.landscape = Broken((0.7, 0.3), (0.9, 0.9))
    with pytest.raises(RuntimeError, match="a bug"):
        task.fit(20, "race")


def test_weights_that_were_not_kept_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy that lets more arms live than it said must not go on from the weights of the start."""
    monkeypatch.setattr(training.race.Race, "keeps", lambda self, stage: 1)
    with pytest.raises(RuntimeError, match=r"arm \d+ were not kept: more arms live than keeps\(\) says"):
        Task().fit(20, "race", race=training.RaceSettings(rungs=RUNGS, copies=False))


# --- critics and refusals


def test_a_critic_is_carried_to_another_run() -> None:
    critic = Critic(Task().landscape.phi_spec)
    Task().fit(40, "race", race=training.RaceSettings(critic=critic))
    seen = critic.observations
    assert seen > 20
    Task().fit(40, "race", race=training.RaceSettings(critic=critic))
    assert critic.observations == 2 * seen
    other = Task(**MULTIPLICATIVE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"made for phi_spec=.*additive.*this run has .*multiplicative"):
        other.fit(40, "race", race=training.RaceSettings(critic=critic))


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"mode": "evolve"}, ValueError, "mode must be None or one of .*got 'evolve'"),
        ({"mode": "race", "budget": 1.0}, ValueError, "budget must be above 1"),
        ({"mode": "race", "children": 2}, ValueError, "children .*mode 'paper' only; got 2"),
        ({"mode": None, "children": 2}, ValueError, "children=2 needs mode='paper', got mode=None"),
        ({"mode": "paper"}, ValueError, "mode='paper' needs a loss in mode 'paper', got one in mode 'fixed'"),
    ],
)
def test_bad_modes_are_refused(keywords: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Task().fit(20, **keywords)


def test_a_loss_that_waits_for_its_own_step_is_refused() -> None:
    task = Task()
    with pytest.raises(ValueError, match="needs step_on='forward', got 'optimizer'"):
        task.fit(20, "race", loss_fn=task.loss(20, step_on="optimizer"))


def test_a_race_needs_an_adaptive_loss() -> None:
    with pytest.raises(TypeError, match="mode='race' needs an ALALoss as loss_fn, got MSELoss"):
        Task().fit(20, "race", loss_fn=torch.nn.MSELoss())


@pytest.mark.parametrize(
    "rungs", [(), ((1.0, 2),), ((0.5, 2), (0.5, 1)), ((0.5, 0), (1.0, 1)), ((0.5, 4), (0.9, 1))]
)
def test_bad_rungs_are_refused(rungs: Any) -> None:
    with pytest.raises(ValueError, match="rung"):
        training.RaceSettings(rungs=rungs)


def test_the_metric_at_the_rungs_is_smooth() -> None:
    metric = training.smooth_metric(RecallAtK((1,), distance="cosine"))
    assert metric.name == "recall@1,2,4,8"
    assert training.smooth_metric(ClassificationError()).name == "mean_log_probability"
    mine = Height()
    assert training.smooth_metric(mine) is mine


@pytest.mark.parametrize("seed", range(3))
def test_mean_log_probability_by_hand(seed: int) -> None:
    logits = torch.randn(11, 3, generator=torch.Generator().manual_seed(seed))
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 0])
    log_p = np.log(np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum(1, keepdims=True))
    hand = np.mean([np.mean([log_p[i, c] for i in range(11) if targets[i] == c]) for c in (0, 2)])
    assert training.MeanLogProbability()(logits, targets) == pytest.approx(hand, rel=1e-12)


@pytest.mark.parametrize("loss", [DistanceMixtureLoss, FocalWeightingLoss])
def test_every_loss_has_its_cube(loss: Any) -> None:
    made = loss()
    groups = getattr(made, "phi_groups", ())
    assert sorted(index for group in groups for index in group) == list(
        range(len(made.phi_spec) if groups else 0)
    )


def test_a_start_outside_of_its_range_is_refused() -> None:
    task = Task()
    loss_fn = task.loss(20)
    task.landscape.phi.copy_(torch.tensor([0.5, 5.0]))  # past set_phi
    with pytest.raises(ValueError, match=r"loss\.phi\[1\] \('p1'\) must lie in \[0\.0, 1\.0\], got 5\.0"):
        task.fit(20, "race", loss_fn=loss_fn)


@pytest.mark.parametrize("budget", ["a", None, True, 1.0])
def test_a_budget_must_be_a_number(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"budget must be above 1 \(one training\), got"):
        Task().fit(20, "race", budget=budget)


@pytest.mark.parametrize("value", [None, "abc", torch.ones(2), {"a": 1}])
def test_a_metric_that_is_no_number_is_refused(value: Any) -> None:
    task = Task()
    task.metric = FakeMetric([value])
    with pytest.raises(TypeError, match="metric must return one number, got"):
        task.fit(20, "race")
