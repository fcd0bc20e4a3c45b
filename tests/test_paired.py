"""Paired forks and the paper's children: bandits, ties, resume, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import nn

from ala_metric import ALALoss, training
from ala_metric.classification import AdaptiveClassificationLoss
from ala_metric.controller import Controller, ControllerSettings, Policy
from ala_metric.losses import DistanceMixtureLoss, FocalWeightingLoss
from ala_metric.metrics import BalancedError, RecallAtK
from ala_metric.training.hypergradient import Hypergradient
from ala_metric.training.paired import schedule
from ala_metric.training.parts import Parts

from .landscape import Height, Landscape, Task
from .test_race import Cliff
from .test_training import IMAGES, Stop, stop_at


def bits(task: Task, result: training.FitResult) -> list[Any]:
    return [task.model.weight.item(), result.losses, result.phi_history, result.records, result.compute]


# --- bandits


@pytest.mark.parametrize("proposals", [("random",), ("critic",), ("policy", "random")])
@pytest.mark.parametrize("seed", range(2))
def test_more_is_better(proposals: Any, seed: int) -> None:
    task = Task(optimum=(1.0, 0.5), start=(0.0, 0.5))
    settings = training.PairedSettings(forks=60, draws=0, proposals=proposals)
    result = task.fit(120, "paired", paired=settings, seed=seed)
    assert result.phi[0] > 0.85


class Steps(Landscape):
    """Without an end: the speed is the parameter itself, so that one action stays the best for ever."""

    def speed(self) -> float:
        return float(self.phi[0])


def test_the_policy_learns_the_best_action_from_its_siblings() -> None:
    task = Task()
    task.landscape = Steps((0.0, 0.0), (0.0, 0.0), low=-1000.0, high=1000.0)
    settings = training.PairedSettings(forks=300, draws=0, branches=3, proposals=("policy",))
    result = task.fit(300, "paired", paired=settings)
    acts = [
        np.sign(round(arm.phi[0] - record.arms[0].phi[0], 6))
        for record in result.records[-60:]
        for arm in record.arms[1:]
    ]
    assert np.mean(np.array(acts) == 1.0) > 0.7  # a third by chance: 120 draws have an sd of .04


# --- forks


def test_a_fork_by_hand() -> None:
    task = Task()
    settings = training.PairedSettings(forks=3, draws=0, horizon=0.5, proposals=("random",))
    result = task.fit(12, "paired", paired=settings)
    assert [(r.start, r.end, len(r.arms)) for r in result.records] == [
        (0, 4, 1),
        (4, 6, 2),
        (6, 8, 1),
        (8, 10, 2),
        (10, 12, 1),
    ]
    for record in result.records:
        if len(record.arms) == 2:
            stay, act = record.arms
            assert (stay.source, act.source) == ("stay", "random")
            assert stay.phi != act.phi
            assert stay.parent == act.parent
            assert stay.reward == pytest.approx(-act.reward)
            assert stay.lives == (stay.metric >= act.metric)
    # 4 + 2 * 2 + 2 + 2 * 2 + 2 steps; two forks of two passes and the end
    assert result.compute == training.Meter(16, 64, 5, 15)


def test_the_cost_is_what_the_settings_say() -> None:
    settings = training.PairedSettings(forks=20, draws=4, branches=3, horizon=0.5, proposals=("random",))
    result = Task().fit(200, "paired", paired=settings)
    # four draws in the first interval, and a fork of 5 steps in each of the others
    assert result.compute.training_steps == 200 + 4 * 10 + 19 * 2 * 5


def test_draws_open_the_run() -> None:
    """The best of them meet again in the first fork; which is where the second place may still win."""
    task = Task()
    settings = training.PairedSettings(forks=4, draws=5, branches=3, proposals=("prior",))
    result = task.fit(20, "paired", paired=settings)
    first, second, third, _ = result.records
    assert [arm.source for arm in first.arms] == ["start"] + ["prior"] * 5
    best = sorted(first.arms, key=lambda arm: arm.metric, reverse=True)[:3]
    assert [arm.phi for arm in second.arms] == [arm.phi for arm in best]
    assert [arm.parent for arm in second.arms] == [arm.number for arm in best]
    assert [arm.lives for arm in first.arms] == [arm in best for arm in first.arms]
    assert [arm.source for arm in third.arms] == ["stay", "prior", "prior"]
    assert third.arms[0].phi == max(second.arms, key=lambda arm: arm.metric).phi
    assert len({arm.phi for arm in (*first.arms, *third.arms[1:])}) == 8


class Flat(Height):
    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return 1.0


def test_ties_keep_the_branch_without_an_action() -> None:
    task = Task()
    task.metric = Flat()
    result = task.fit(40, "paired", paired=training.PairedSettings(draws=0, proposals=("random",)))
    assert result.phi == (0.1, 0.9)
    assert [phi for _, phi in result.phi_history] == [(0.1, 0.9)]


def test_a_diverged_branch_is_dropped() -> None:
    task = Task()
    task.landscape = Cliff((0.45, 0.3), (0.4, 0.9))
    result = task.fit(60, "paired", paired=training.PairedSettings(forks=30, draws=0, proposals=("random",)))
    assert sum(record.dropped for record in result.records) > 0
    assert result.phi[0] <= 0.5
    assert result.steps == 60


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8, 11, 12, 13, 17, 20, 21])
def test_resume_of_forks_is_bit_identical(stop: int, tmp_path: Path) -> None:
    settings = training.PairedSettings(
        forks=6, draws=2, horizon=0.5, proposals=("policy", "random", "critic")
    )
    whole = Task()
    expected = bits(whole, whole.fit(12, "paired", paired=settings))
    options: dict[str, Any] = {"paired": settings, "checkpoint": tmp_path / "c"}
    with pytest.raises(Stop):
        Task().fit(12, "paired", checkpoint_every=1, on_step=stop_at(min(stop, 17)), **options)
    task = Task()
    assert bits(task, task.fit(12, "paired", resume=True, **options)) == expected


# --- policies of other tasks


@pytest.mark.parametrize("total", [1, 3, 9])
def test_a_short_run_has_no_stage_without_steps(total: int) -> None:
    ends, rows = schedule(training.PairedSettings(forks=20), total)
    assert ends == tuple(range(1, total + 1))
    assert rows == (7, *[2] * (total - 1))
    assert Task().fit(total, "paired", paired=training.PairedSettings(forks=20)).steps == total


def test_a_policy_of_another_task_is_refused_with_both_values() -> None:
    settings = training.PairedSettings(policy=Policy(statistics_width=2))
    with pytest.raises(ValueError, match="the policy sees 2 statistics per parameter, the loss gives 1"):
        Task().fit(12, "paired", paired=settings)
    settings = training.PairedSettings(policy=Policy(identities=7), beta=0.1)
    with pytest.raises(ValueError, match="tells 7 parameters apart, the loss has 2"):
        Task().fit(12, "paired", paired=settings)
    settings = training.PairedSettings(policy=Policy(beta=0.2), beta=0.1)
    with pytest.raises(ValueError, match=r"made for beta=0\.2, this run has beta=0\.1"):
        Task().fit(12, "paired", paired=settings)


def test_a_policy_without_identities_fits_any_number_of_parameters() -> None:
    settings = training.PairedSettings(policy=Policy(), freeze=True, forks=4, proposals=("policy",))
    assert Task().fit(12, "paired", paired=settings).steps == 12


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"forks": 1}, "forks and branches must be at least 2, got 1"),
        ({"draws": -1}, "draws must not be negative, got -1"),
        ({"branches": 1}, "at least 2, got 20 and 1"),
        ({"horizon": 0.0}, r"horizon must be in \(0, 1\], got 0.0"),
        ({"proposals": ("luck",)}, r"proposals must be some of .*got \('luck',\)"),
        ({"proposals": ("hypergradient",)}, "needs hypergradient settings"),
        ({"policy": Policy(), "proposals": ("random",)}, "a policy needs 'policy'"),
    ],
)
def test_bad_forks_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        training.PairedSettings(**options)


# --- the paper's children


class Value(Height):
    """The parameter itself, as in the bandit of one loss."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(self.landscape.phi[0])


def paper(
    children: int, steps: int, seed: int = 0, **keywords: Any
) -> tuple[Task, ALALoss, training.FitResult]:
    task = Task()
    task.landscape = Landscape((0.0,), (0.0,), low=-1000.0, high=1000.0)
    task.metric = Value(task.landscape)
    loss_fn = task.loss(steps, "paper", every=1, seed=seed)
    return task, loss_fn, task.fit(steps, "paper", loss_fn=loss_fn, children=children, **keywords)


def test_children_learn_the_bandit_together() -> None:
    """Four children share the episodes: each needs a fraction of the steps that one alone needs."""
    _, loss_fn, _ = paper(4, 110)
    late = [record.action[0] for record in loss_fn.history[-25:]]
    assert np.mean(np.array(late) == 0.1) > 0.8
    assert len(loss_fn.learner.replay) == 256  # 4 * 108 rewards went through one memory


def test_one_child_of_many_costs_what_one_alone_costs() -> None:
    settings = ControllerSettings(warm_up=4)
    results = []
    for children in (1, 2):
        task = Task()
        loss_fn = task.loss(30, "paper", every=3, settings=settings, freeze=True)
        results.append((task.fit(30, "paper", loss_fn=loss_fn, children=children), loss_fn))
    alone, both = results
    assert both[0].compute.training_steps == 2 * alone[0].compute.training_steps
    assert len(both[1].history) == len(alone[1].history) == 9


def test_children_by_hand() -> None:
    """Algorithm 1 for a metric that is the parameter: all act by one policy, then it learns from all."""
    children, steps = 3, 25
    settings = ControllerSettings(warm_up=4)
    task = Task()
    task.landscape = Landscape((0.0,), (0.0,), low=-1000.0, high=1000.0)
    task.metric = Value(task.landscape)
    loss_fn = task.loss(steps, "paper", every=1, seed=5, settings=settings)
    result = task.fit(steps, "paper", loss_fn=loss_fn, children=children)

    lines = [Controller(loss_fn.phi_spec, seed=5, settings=settings) for _ in range(children)]
    learner = lines[0].learner
    for line in lines:
        line.learner = learner
    phis, metrics = [[0.0] for _ in lines], [[0.0] for _ in lines]
    for step in range(1, steps):
        for line, phi, seen in zip(lines, phis, metrics):
            reward = float(np.sign(phi[-1] - seen[-1])) if step > 1 else None
            seen.append(phi[-1])
            episode = line.observe(torch.tensor([[phi[-1] + 1.0]], dtype=torch.float64), reward)
            if episode is not None:
                learner.learn(episode)
        for child, (line, phi) in enumerate(zip(lines, phis)):
            number = step * children + child
            stream = torch.Generator().manual_seed(
                int(np.random.SeedSequence((5, number)).generate_state(1)[0])
            )
            phi.extend(line.act(phi[-1:], step / steps, stream).phi)
    assert sorted(arm.phi[0] for arm in result.records[-1].arms) == sorted(phi[-1] for phi in phis)
    assert len({tuple(phi) for phi in phis}) == children
    assert len(learner.replay) == children * (steps - 2)
    mine, theirs = learner.state_dict(), loss_fn.learner.state_dict()
    assert mine["baseline"] == theirs["baseline"]
    for name, value in mine["policy"].items():
        assert torch.equal(value, theirs["policy"][name])


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 11, 17, 29])
def test_resume_of_children_is_bit_identical(stop: int, tmp_path: Path) -> None:
    def run(**keywords: Any) -> tuple[list[Any], list[Any]]:
        task = Task()
        loss_fn = task.loss(10, "paper", every=2, settings=ControllerSettings(warm_up=2))
        result = task.fit(10, "paper", loss_fn=loss_fn, children=3, **keywords)
        return bits(task, result), [[record.phi, record.reward] for record in loss_fn.history]

    expected = run()
    with pytest.raises(Stop):
        run(checkpoint=tmp_path / "c", checkpoint_every=1, on_step=stop_at(stop))
    assert run(checkpoint=tmp_path / "c", resume=True) == expected


def test_a_diverged_child_costs_its_own_episodes_only() -> None:
    task = Task()
    task.landscape = Cliff((0.0, 0.0), (0.45, 0.5))
    loss_fn = task.loss(60, "paper", every=2)
    result = task.fit(60, "paper", loss_fn=loss_fn, children=6)
    dropped = sum(record.dropped for record in result.records)
    assert 0 < dropped < 6
    assert len(result.records[-1].arms) == 6 - dropped + result.records[-1].dropped
    # Each child that ends a stage has earned one reward: no action in the first, no measuring after the last.
    ended = [sum(not arm.failed for arm in record.arms) for record in result.records[1:-1]]
    assert len(loss_fn.learner.replay) == sum(ended) < 6 * len(ended)
    assert result.steps == 60


# --- hypergradients


class Rows:
    """Two Gaussian classes, nine of the first for each of the second."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.cat([torch.zeros(90, dtype=torch.int64), torch.ones(10, dtype=torch.int64)])
        self.rows = torch.randn(100, 4, generator=generator) + self.labels[:, None]

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.rows[index], int(self.labels[index])


def double_backward(model: nn.Module, phi: torch.Tensor, batch: Any, validation: Any) -> torch.Tensor:
    """- v^T d/dphi grad_w L by autograd, for the weighted linear form on the diagonal."""
    weights = list(model.parameters())
    log_p = model(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).squeeze(1)
    phi = phi.clone().requires_grad_()
    slope = torch.autograd.grad(-(phi[batch[1]] * log_p).mean(), weights, create_graph=True)
    v = torch.autograd.grad(training.balanced_cross_entropy(model(validation[0]), validation[1]), weights)
    return -torch.autograd.grad(sum((a * b).sum() for a, b in zip(slope, v)), phi)[0]


def test_the_hypergradient_is_that_of_autograd() -> None:
    rows = Rows(0)
    model = nn.Linear(4, 2).double()
    loss = AdaptiveClassificationLoss(2, form="linear", diagonal_low=0.05)
    loss.set_phi(torch.tensor([0.4, 0.7]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = training.HypergradientSettings(
        training.balanced_cross_entropy, rows, batch_classes=2, nudge=1e-4
    )
    parts = Parts(model, loss, optimizer)
    batch = (rows.rows[::3].double(), rows.labels[::3])
    validation = (rows.rows[1::3].double(), rows.labels[1::3])
    before = parts.snapshot()
    found = Hypergradient(settings).gradient(parts, loss, batch, validation)
    # Phi is measured in its range of .95; L is linear in Phi, so only the step along w (1e-4) is finite.
    expected = 0.95 * double_backward(model, torch.tensor([0.4, 0.7], dtype=torch.float64), batch, validation)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    after = parts.snapshot()
    assert torch.equal(before["model"]["weight"], after["model"]["weight"])
    assert torch.equal(loss.phi_vector, torch.tensor([0.4, 0.7]))


def test_hypergradients_find_inverse_frequencies() -> None:
    """Nine to one: the weight of the frequent class falls, that of the rare one stays up."""
    torch.manual_seed(0)
    train, validation = Rows(1), Rows(2)
    model = nn.Linear(4, 2)
    loss_fn = ALALoss(
        AdaptiveClassificationLoss(2, form="linear", diagonal_low=0.05),
        BalancedError(),
        lambda: training.embed(model, [(validation.rows, validation.labels)]),
        total_steps=100,
        mode="fixed",
    )
    hyper = training.HypergradientSettings(
        training.balanced_cross_entropy, validation, batch_classes=2, per_class=10, every=2
    )
    result = training.fit(
        model,
        loss_fn,
        _Unbalanced(train),
        total_steps=100,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
        batch_classes=1,
        per_class=100,
        mode="paired",
        paired=training.PairedSettings(forks=5, draws=0, proposals=("hypergradient",), hypergradient=hyper),
    )
    assert result.phi[0] < 0.6
    assert result.phi[1] > 0.8
    assert result.compute.hypergradient_steps == 4 * 10
    assert result.compute.hypergradient_items == pytest.approx(40 * (20 + 2 / 3 * 100))


class _Unbalanced:
    """All rows as one sampling class, so that batches keep the frequencies."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.labels = rows, torch.zeros(100, dtype=torch.int64)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.rows[index]


@pytest.mark.parametrize("loss", [DistanceMixtureLoss, FocalWeightingLoss])
@pytest.mark.parametrize("mined", [False, True])
def test_pair_losses_have_hypergradients(loss: Any, mined: bool) -> None:
    torch.manual_seed(0)
    model = training.SmallConvNet(dim=8, channels=(4, 4, 4))
    loss_fn = ALALoss(
        loss(),
        RecallAtK((1,), distance="cosine"),
        lambda: training.embed(model, [(IMAGES.images.float() / 255, IMAGES.labels)]),
        total_steps=8,
        mode="fixed",
    )
    hyper = training.HypergradientSettings(training.nca, IMAGES, batch_classes=5, per_class=3, every=1)
    before = [buffer.clone() for buffer in model.buffers()]
    result = training.fit(
        model,
        loss_fn,
        IMAGES,
        total_steps=8,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        miner=TripletMarginMiner(type_of_triplets="semihard") if mined else None,
        batch_classes=5,
        per_class=3,
        mode="paired",
        paired=training.PairedSettings(forks=2, draws=0, proposals=("hypergradient",), hypergradient=hyper),
    )
    assert result.compute.hypergradient_steps == 4
    moved = result.records[1].arms[1]
    assert moved.source == "hypergradient"
    assert moved.phi != result.records[1].arms[0].phi
    assert int(before[2]) == 0
    assert int(list(model.buffers())[2]) == 8  # BatchNorm counted the training steps alone
