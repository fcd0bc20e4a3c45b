"""Thousands of class pairs: the column controller against the small one, and actions on the most confused."""

from __future__ import annotations

import io

import pytest
import torch

from ala_metric import ALALoss, PhiSpec, training
from ala_metric.classification import AdaptiveClassificationLoss, class_confusion
from ala_metric.controller import Controller, ManyController, StateHistory
from ala_metric.metrics import ClassificationError

COUNT = 4999  # a prime, so that the last block is ragged


def statistics(step: int, width: int = 2) -> torch.Tensor:
    return 5 * torch.randn(COUNT, width, generator=torch.Generator().manual_seed(step))


def specs(rule: str = "additive") -> list[PhiSpec]:
    low = 0.5 if rule == "multiplicative" else -1.0
    return [PhiSpec("p", low, 2.0 + (k % 3), rule, scale=1.0 + k % 2) for k in range(COUNT)]


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
@pytest.mark.parametrize("standardized", [False, True])
def test_columns_see_what_the_small_controller_sees(standardized: bool, rule: str) -> None:
    """State, mask and log-probability of the remembered rows are those of StateHistory and Policy."""
    spec = specs(rule)
    many = ManyController(spec, 2, seed=3, standardized=standardized)
    history = StateHistory(spec, 2, standardized=standardized)
    small = Controller(spec[:1], 2, seed=3, standardized=standardized)
    phi: torch.Tensor = torch.linspace(0.6, 2.0, COUNT)
    for step in range(13):  # past the ten remembered statistics
        before = phi
        decision = many.step(phi, statistics(step), None, step / 20)
        history.observe(statistics(step))
        phi = decision.phi
    episode = many._pending
    expected = history.encode(before.tolist(), 12 / 20)
    gap = (episode.states[:, None] - expected[None]).abs().amax(-1)
    # 1e-3: float32 averages of numbers of size 10 against float64 ones
    assert (gap.min(1).values < 1e-3).all()
    rows = gap.argmin(1)
    steps = [s.step(v, d * 0.1) for s, v, d in zip(spec, before.tolist(), many_way(decision))]
    moved = torch.tensor([s.clip(v) for s, v in zip(spec, steps)])
    torch.testing.assert_close(phi, moved, rtol=1e-5, atol=1e-6)
    for number, row in enumerate(rows.tolist()):
        value = float(before[row])
        allowed = [spec[row].allows(value, -0.1), True, spec[row].allows(value, 0.1)]
        assert episode.allowed[number].tolist() == allowed
    table = small.policy.log_probabilities(episode.states, episode.allowed)
    picked = table.gather(1, episode.choice[:, None])[:, 0]
    torch.testing.assert_close(episode.log_probability, picked.detach(), rtol=1e-4, atol=1e-5)


def many_way(decision: object) -> list[float]:
    return (decision.action / 0.1).round().tolist()  # type: ignore[attr-defined]


def test_actions_follow_the_policy() -> None:
    """Share of each action among 20,000 alike parameters, against the policy's own probabilities."""
    count = 20_000
    many = ManyController([PhiSpec("p", -1.0, 1.0)] * count, 1, seed=5, standardized=True)
    with torch.no_grad():
        many.policy.biases[2].copy_(torch.tensor([0.7, -0.4, 0.1]))
    values = torch.zeros(count)
    values[count // 2 :] = 1.0  # these have no room for a step up
    decision = many.step(values, torch.zeros(count, 1), None, 0.25)
    way = (decision.action / 0.1).round()
    for part, room in ((way[: count // 2], True), (way[count // 2 :], False)):
        state = torch.tensor([[0.0] * 11 + [0.0 if room else 1.0, 0.25]])
        mask = torch.tensor([[True, True, room]])
        expected = many.policy.log_probabilities(state, mask).exp()[0]
        for value, share in zip((-1, 0, 1), expected.tolist()):
            # 10,000 draws: standard error at most .005, four of them
            assert abs(float((part == value).double().mean()) - share) < 0.02
    assert float(decision.phi.max()) <= 1.0


def test_learns_and_resumes_bit_for_bit() -> None:
    spec = specs()
    first, phi = ManyController(spec, 2, seed=1), torch.ones(COUNT)
    saved = None
    for step in range(24):
        if step == 20:
            saved, kept = first.state_dict(), phi.clone()
        phi = first.step(phi, statistics(step), 1.0 if step % 2 else -1.0, 0.5).phi
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    second = ManyController(spec, 2, seed=99)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for step in range(20, 24):
        kept = second.step(kept, statistics(step), 1.0 if step % 2 else -1.0, 0.5).phi
    assert torch.equal(kept, phi)
    fresh = ManyController(spec, 2, seed=1)
    assert not torch.equal(first.policy.weights[0], fresh.policy.weights[0])


def test_bad_input_is_refused() -> None:
    many = ManyController(specs(), 2)
    with pytest.raises(ValueError, match="shape"):
        many.step(torch.ones(COUNT), torch.zeros(COUNT, 3), None, 0.0)
    with pytest.raises(ValueError, match="finite"):
        many.step(torch.ones(COUNT), torch.full((COUNT, 2), float("nan")), None, 0.0)
    with pytest.raises(ValueError, match="one step rule"):
        ManyController([*specs(), PhiSpec("q", 0.5, 2.0, "multiplicative")], 2)


def adaptive(loss: AdaptiveClassificationLoss, steps: int = 12, **options: object) -> ALALoss:
    classes = loss.num_classes
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, classes, generator=generator)
    targets = torch.randint(0, classes, (300,), generator=generator)
    loss_fn = ALALoss(
        loss, ClassificationError(), lambda: (logits, targets), 100, every=2, offsets=(0,), **options
    )
    for _ in range(steps):
        loss_fn(logits[:8].clone().requires_grad_(), targets[:8]).backward()
    return loss_fn


def test_a_hundred_classes_work_unchanged() -> None:
    """5,050 pairs: symmetric, inside the range, moved, kept in the state but not in the records."""
    loss_fn = adaptive(AdaptiveClassificationLoss(100, off_diagonal=True))
    assert isinstance(loss_fn.scheme, ManyController)
    assert torch.equal(loss_fn.phi, loss_fn.phi.T)
    assert not torch.equal(loss_fn.phi, torch.eye(100))
    assert {(record.phi, record.action) for record in loss_fn.history} == {((), ())}
    vector = loss_fn.phi_vector
    summary = loss_fn.history[-1].summary
    assert summary["mean"] == pytest.approx(float(vector.double().mean()), abs=1e-6)  # float32 mean
    assert (summary["min"], summary["max"]) == (float(vector.min()), float(vector.max()))
    assert 0.1 < summary["up"] < 0.6
    assert 0.1 < summary["down"] < 0.6
    names = [spec.name for spec in loss_fn.phi_spec]
    start = torch.tensor([float(name[4:-1].split(",")[0] == name[4:-1].split(",")[1]) for name in names])
    moved = (vector - start).abs()
    assert len(summary["farthest"]) == 8
    for name, value in summary["farthest"].items():
        assert value == float(vector[names.index(name)])
        assert int((moved > moved[names.index(name)]).sum()) < 8
    step = 0.1 / 99  # off-diagonals move by beta / (C - 1)
    off = loss_fn.phi[~torch.eye(100, dtype=torch.bool)]
    torch.testing.assert_close((off / step).round() * step, off, rtol=0, atol=1e-6)
    twin = adaptive(AdaptiveClassificationLoss(100, off_diagonal=True), steps=2)
    twin.load_state_dict(loss_fn.state_dict())
    assert torch.equal(twin.phi, loss_fn.phi)
    assert twin.history == loss_fn.history
    row = training.flatten(dict(loss_fn.history[-1]), names)
    assert row["phi_mean"] == summary["mean"]
    assert all(isinstance(value, (int, float)) for value in row.values())
    small = adaptive(AdaptiveClassificationLoss(7), policy=loss_fn.policy, freeze=True)
    assert len(small.history[-1].phi) == 7


@pytest.mark.parametrize("classes", [3, 9])
def test_top_confusions_are_the_most_confused_pairs(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(200, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (200,), generator=generator)
    loss = AdaptiveClassificationLoss(classes, off_diagonal=True, top_confusions=3)
    found = loss.statistics(logits, targets)
    confusion = class_confusion(logits.log_softmax(1), targets, classes)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    expected = sorted(pairs, key=lambda p: float(confusion[p] + confusion[p[::-1]]))[:3]
    assert loss.pairs.T.tolist() == [list(pair) for pair in expected]
    whole = AdaptiveClassificationLoss(classes, off_diagonal=True)
    table = {spec.name: row for spec, row in zip(whole.phi_spec, whole.statistics(logits, targets))}
    assert torch.equal(found, torch.stack([table[f"phi[{i},{j}]"] for i, j in expected]))
    loss.set_phi(torch.tensor([0.5, -0.25, 0.125]))
    for (i, j), value in zip(expected, (0.5, -0.25, 0.125)):
        assert float(loss.phi[i, j]) == float(loss.phi[j, i]) == value
    assert int((loss.phi != torch.eye(classes)).sum()) == 6
    assert loss.phi_vector.tolist() == [0.5, -0.25, 0.125]


def test_top_confusions_adapt_and_resume() -> None:
    def make() -> AdaptiveClassificationLoss:
        return AdaptiveClassificationLoss(30, off_diagonal=True, top_confusions=5, off_diagonal_step=1.0)

    loss_fn = adaptive(make(), steps=30)
    assert len(loss_fn.phi_spec) == len(loss_fn.history[-1].phi) == 5
    assert torch.equal(loss_fn.phi.diagonal(), torch.ones(30))
    moved = int((loss_fn.phi != torch.eye(30)).sum()) // 2
    assert 0 < moved <= 5  # the validation outputs stay, so the pairs do
    twin = adaptive(make(), steps=0)
    twin.load_state_dict(loss_fn.state_dict())
    assert torch.equal(twin.loss.pairs, loss_fn.loss.pairs)
    assert torch.equal(twin.phi, loss_fn.phi)
    with pytest.raises(ValueError, match="phi"):
        loss_fn.set_phi(torch.full((5,), 1.5))
    with pytest.raises(ValueError, match="phi"):
        loss_fn.set_phi(torch.zeros(4))
