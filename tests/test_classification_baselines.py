"""The losses and schemes of the classification tables against loops, finite differences and known cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from ala_metric import classification as c
from ala_metric.metrics import ClassificationError

ROWS, CLASSES = 13, 5


def batch(rows: int = ROWS, classes: int = CLASSES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (rows,), generator=generator)


def validate() -> tuple[torch.Tensor, torch.Tensor]:
    return batch(40, CLASSES, seed=9)


def losses() -> dict[str, torch.nn.Module]:
    """One of each that takes logits and has a gradient that finite differences can see."""
    return {
        "focal": c.FocalLoss(1.7),
        "auc": c.PairwiseAUCLoss(),
        "aucpr": c.AUCPRLoss(CLASSES, anchors=3).double(),
        "self-paced": c.SelfPacedLoss(10),
        "l2t": c.LearningToTeach(ClassificationError(), validate, total_steps=10, every=3),
        "random": c.ScheduledCorrelations(c.AdaptiveClassificationLoss(CLASSES, off_diagonal=True), "random"),
    }


@pytest.mark.parametrize("name", list(losses()))
def test_one_interface(name: str) -> None:
    """Scalar, finite, a gradient for the logits, empty batches, bad batches, copies, state."""
    loss_fn = losses()[name]
    logits, targets = batch()
    logits.requires_grad_()
    value = loss_fn(logits, targets)
    (3 * value).backward()
    assert value.ndim == 0
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    empty = torch.zeros(0, CLASSES, requires_grad=True)
    loss_fn(empty, targets[:0]).backward()
    for bad, error in ((targets[:-1], ValueError), (targets.float(), TypeError), (targets + 99, ValueError)):
        with pytest.raises(error, match="targets"):
            loss_fn(logits, bad)
    twin = losses()[name]
    twin.load_state_dict(copy.deepcopy(loss_fn.state_dict()))
    assert torch.equal(twin(logits, targets), copy.deepcopy(loss_fn)(logits, targets))
    assert torch.equal(c.class_scores(loss_fn, logits), logits)


@pytest.mark.parametrize("name", ["focal", "auc", "aucpr"])
def test_gradcheck(name: str) -> None:
    logits, targets = batch(7, CLASSES, seed=3)
    loss_fn = losses()[name]
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, targets), logits.requires_grad_())


def test_focal_equals_loops() -> None:
    logits, targets = batch()
    expected = 0.0
    for row, y in zip(logits.tolist(), targets.tolist()):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        expected += -((1 - p) ** 1.7) * math.log(p) / ROWS
    assert c.FocalLoss(1.7)(logits, targets).item() == pytest.approx(expected, rel=1e-12)
    sure = torch.tensor([[1e4, -1e4]], requires_grad=True)
    c.FocalLoss(0.5)(sure, torch.tensor([0])).backward()  # (1 - p)^0.5 has an infinite slope at p = 1
    assert sure.grad.isfinite().all()


def test_pairwise_auc_equals_loops() -> None:
    logits, targets = batch(11, 4, seed=2)
    per_class = []
    for label in range(4):
        pairs = [
            max(0.0, 1 - float(logits[p, label] - logits[n, label]))
            for p in range(11)
            for n in range(11)
            if targets[p] == label != targets[n]
        ]
        if pairs:
            per_class.append(sum(pairs) / len(pairs))
    expected = sum(per_class) / len(per_class)
    assert c.PairwiseAUCLoss()(logits, targets).item() == pytest.approx(expected, rel=1e-12)
    one_class = c.PairwiseAUCLoss()(logits.requires_grad_(), torch.zeros(11, dtype=torch.int64))
    one_class.backward()
    assert one_class.item() == 0.0


def test_aucpr_equals_loops() -> None:
    logits, targets = batch(9, 3, seed=4)
    loss_fn = c.AUCPRLoss(3, anchors=2, priors=torch.tensor([0.5, 0.3, 0.2])).double()
    with torch.no_grad():
        loss_fn.thresholds.copy_(torch.tensor([[0.1, -0.2], [0.3, 0.0], [0.5, 1.0]]))
        loss_fn.multipliers.copy_(torch.tensor([[0.5, 2.0], [0.0, 1.0], [3.0, 0.25]]))
    expected = 0.0
    for label in range(3):
        prior = float(loss_fn.priors[label])
        for k in range(2):
            alpha = prior + (1 - prior) * (k + 1) / 3
            b, lam = loss_fn.thresholds[label, k].item(), loss_fn.multipliers[label, k].item()
            missed = sum(max(0, 1 - (float(x[label]) - b)) for x, y in zip(logits, targets) if y == label) / 9
            false = sum(max(0, 1 + float(x[label]) - b) for x, y in zip(logits, targets) if y != label) / 9
            expected += ((1 + lam) * missed + lam * alpha / (1 - alpha) * false - lam * prior) / 6
    # 1e-6: precisions are kept in float32
    assert loss_fn(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_multipliers_climb_and_stay_positive() -> None:
    """Gradient descent on the loss is ascent in the multipliers, within lambda >= 0."""
    logits, targets = torch.full((4, 2), -3.0), torch.tensor([0, 0, 1, 1])
    logits[range(4), targets] = 3.0  # all in order: constraints hold, so the multipliers fall to 0
    loss_fn = c.AUCPRLoss(2, anchors=2)
    optimizer = torch.optim.SGD([loss_fn.multipliers], lr=5.0)
    for _ in range(5):
        optimizer.zero_grad()
        loss_fn(logits, targets).backward()
        optimizer.step()
    loss_fn(logits, targets)
    assert torch.equal(loss_fn.multipliers, torch.zeros(2, 2))
    loss_fn(-logits, targets).backward()  # constraints broken: descent must raise them
    optimizer.step()
    assert (loss_fn.multipliers > 0).all()


def test_self_paced_drops_the_hardest_and_ends_with_all() -> None:
    logits, targets = batch()
    loss_fn = c.SelfPacedLoss(total_steps=20, start=0.5, until=0.5)
    each = F.cross_entropy(logits, targets, reduction="none").sort().values
    logits.requires_grad_()
    torch.testing.assert_close(loss_fn(logits, targets), each[:6].mean())
    assert (torch.autograd.grad(loss_fn(logits, targets), logits)[0].abs().sum(1) > 0).sum() < ROWS
    for _ in range(9):
        loss_fn(logits, targets)
    assert loss_fn.share == 1.0
    torch.testing.assert_close(loss_fn(logits, targets), each.mean())
    steps = int(loss_fn.steps)
    loss_fn.eval()
    torch.testing.assert_close(loss_fn(logits, targets), each.mean())
    assert int(loss_fn.steps) == steps


def test_large_margin_is_softmax_at_margin_one_and_harder_at_two() -> None:
    features, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = c.LargeMarginSoftmax(4, 3, margin=1)
    torch.testing.assert_close(plain(features, targets), F.cross_entropy(plain.logits(features), targets))
    hard = c.LargeMarginSoftmax(4, 3, margin=2)
    hard.load_state_dict(plain.state_dict())
    assert hard(features, targets) > plain(features, targets)
    hard.steps.fill_(10**6)
    assert hard.inner.easing > 0
    hard(features, targets)
    assert hard.inner.easing == 5.0
    with pytest.raises(ValueError, match="features"):
        plain(features[:, :3], targets)
    with pytest.raises(ValueError, match="targets"):
        plain(features, targets + 1)


def test_large_margin_compiles_to_one_graph() -> None:
    features, targets = torch.randn(6, 4), torch.arange(6) % 3
    loss_fn = c.LargeMarginSoftmax(4, 3).eval()
    expected = loss_fn(features, targets)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, targets), expected)


@pytest.mark.parametrize("name", ["focal", "auc", "aucpr", "self-paced", "l2t", "random", "margin"])
def test_an_empty_batch_is_a_zero_with_a_graph(name: str) -> None:
    loss_fn = c.LargeMarginSoftmax(CLASSES, CLASSES) if name == "margin" else losses()[name]
    empty = torch.zeros(0, CLASSES, dtype=torch.float64, requires_grad=True)
    value = loss_fn(empty, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0.0
    assert empty.grad.shape == empty.shape
    for parameter in loss_fn.parameters():  # DistributedDataParallel waits for each
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_a_teacher_needs_two_classes() -> None:
    loss_fn = c.LearningToTeach(ClassificationError(), validate, total_steps=10)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        loss_fn(torch.zeros(3, 1, requires_grad=True), torch.zeros(3, dtype=torch.int64))


def test_a_teacher_learns_to_keep_what_is_rewarded() -> None:
    """Reward +1 after keeping much, -1 after keeping little: the share that is kept rises."""
    logits, targets = batch(64, CLASSES)
    kept: list[float] = []
    error = [0.5]

    class Judge:
        name, higher_is_better = "judge", False

        def __call__(self, outputs: torch.Tensor, labels: torch.Tensor) -> float:
            error.append(error[-1] - (1.0 if kept and kept[-1] > 0.5 else -1.0))
            return error[-1]

    teacher = torch.nn.Sequential(torch.nn.Linear(6, 1))
    torch.nn.init.zeros_(teacher[0].weight)
    torch.nn.init.zeros_(teacher[0].bias)
    loss_fn = c.LearningToTeach(
        Judge(), lambda: (logits, targets), 400, every=1, teacher=teacher, learning_rate=0.05
    )
    for _ in range(300):
        loss_fn(logits.requires_grad_(), targets)
        kept.append(float(loss_fn._choices[-1][1].float().mean()))
    assert sum(kept[-50:]) / 50 > 0.8
    assert not list(loss_fn.parameters())  # the model's optimizer must not move the teacher
    frozen = c.LearningToTeach(ClassificationError(), validate, 10, every=1, freeze=True)
    before = copy.deepcopy(frozen.teacher.state_dict())
    for _ in range(5):
        frozen(logits, targets)
    assert all(torch.equal(before[name], value) for name, value in frozen.teacher.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"off_diagonal": True}, {"off_diagonal": True, "top_confusions": 2}])
@pytest.mark.parametrize("form", ["softplus", "sigmoid", "linear"])
def test_hypergradient_is_the_slope_of_the_error_after_one_step(form: str, options: dict) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    held = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    loss = c.AdaptiveClassificationLoss(3, form, **options).double()
    phi = 0.6 * torch.eye(3, dtype=torch.float64)
    if options:
        phi[0, 1] = phi[1, 0] = 0.3
        loss.statistics(model(x), y)  # chooses the pairs of top_confusions
    loss.set_phi(phi)
    teaching = c.LossTeaching(loss, model, lambda: held)
    found = teaching.hypergradient(model(x), y)

    def error_after(vector: torch.Tensor, lr: float) -> float:
        twin, own = copy.deepcopy(model), copy.deepcopy(loss)
        own.set_phi(vector)
        own(twin(x), y).backward()
        with torch.no_grad():
            for weight in twin.parameters():
                weight -= lr * weight.grad
            return float(1 - twin(held[0]).softmax(1).gather(1, held[1][:, None]).mean())

    lr, width = 1e-5, 1e-3
    for index in range(len(found)):
        sides = []
        for sign in (1, -1):
            vector = loss.phi_vector
            vector[index] += sign * width
            sides.append(error_after(vector, lr))
        slope = (sides[0] - sides[1]) / (2 * width) / lr
        # 1e-4: E is taken at w, not after the step, and differences are of finite width
        assert float(found[index]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_loss_teaching_moves_the_top_confusions_only() -> None:
    model, x, y = torch.nn.Linear(4, 5), torch.randn(15, 4), torch.arange(15) % 5
    loss = c.AdaptiveClassificationLoss(5, off_diagonal=True, top_confusions=2)
    phi = torch.eye(5) + 0.25 * (1 - torch.eye(5))
    loss.set_phi(phi)
    loss.statistics(model(x), y)
    c.LossTeaching(loss, model, lambda: (x, y), every=1, step=0.1)(model(x), y).backward()
    rows, columns = loss.pairs
    moved = loss.phi != phi
    assert moved[rows, columns].any()
    moved[rows, columns] = moved[columns, rows] = False
    assert not moved.any()


def test_loss_teaching_leaves_model_and_random_stream_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    teaching = c.LossTeaching(c.AdaptiveClassificationLoss(3, off_diagonal=True), model, lambda: (x, y), 1)
    outputs = model(x)
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    teaching(outputs, y).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert model[1].training
    assert all(weight.grad is not None for weight in model.parameters())
    with pytest.raises(ValueError, match="label smoothing"):
        c.LossTeaching(c.AdaptiveClassificationLoss(3, label_smoothing=0.1), model, lambda: (x, y))


def test_random_matrix_is_a_perturbed_identity() -> None:
    logits, targets = batch()
    loss = c.AdaptiveClassificationLoss(CLASSES, off_diagonal=True)
    scheduled = c.ScheduledCorrelations(loss, "random", every=2, seed=1)
    seen = []
    for _ in range(4):
        scheduled(logits, targets)
        seen.append(loss.phi.clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    noise = torch.stack([seen[0], seen[2]]) - torch.eye(CLASSES)
    off = noise[:, ~torch.eye(CLASSES, dtype=torch.bool)]
    assert 0.03 < float(off.std()) < 0.3  # 0.1 up to the error of 20 draws
    twin = c.ScheduledCorrelations(
        c.AdaptiveClassificationLoss(CLASSES, off_diagonal=True), "random", 2, seed=1
    )
    twin(logits, targets)
    assert torch.equal(twin.loss.phi, seen[0])


def test_confusion_matrix_pushes_confused_classes_apart() -> None:
    logits = torch.tensor([[2.0, 1.9, -9.0], [1.9, 2.0, -9.0], [-9.0, -9.0, 2.0]])
    targets = torch.tensor([0, 1, 2])
    loss = c.AdaptiveClassificationLoss(3, off_diagonal=True)
    scheduled = c.ScheduledCorrelations(loss, "confusion", 1, lambda: (logits, targets))
    scheduled(logits, targets)
    assert torch.equal(loss.phi, torch.eye(3))
    scheduled(logits, targets)
    q = logits.double().softmax(1)  # one sample a class: exp(-C_ij) is the probability itself
    assert float(loss.phi[0, 1]) == pytest.approx(-float(q[0, 1] + q[1, 0]) / 2, rel=1e-5)
    assert loss.phi.diagonal().tolist() == [1.0, 1.0, 1.0]
    assert abs(float(loss.phi[0, 2])) < 1e-4
    with pytest.raises(ValueError, match="validate"):
        c.ScheduledCorrelations(loss, "confusion")


def test_presets() -> None:
    paper = c.preset("paper")
    assert (paper.form, paper.off_diagonal, paper.beta, paper.every, paper.children) == (
        *("sigmoid", True, 0.1, 200, 10),
    )
    loss = paper.loss(4)
    assert {spec.scale for spec in loss.phi_spec} == {1.0}
    assert (loss.form, len(loss.phi_spec)) == ("sigmoid", 10)
    default = c.preset("default").loss(4)
    assert (default.form, len(default.phi_spec)) == ("softplus", 4)
    with pytest.raises(ValueError, match="preset"):
        c.preset("other")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: c.FocalLoss(-1), "gamma"),
        (lambda: c.SelfPacedLoss(0), "total_steps"),
        (lambda: c.SelfPacedLoss(5, start=0), "start"),
        (lambda: c.SelfPacedLoss(5, until=2), "until"),
        (lambda: c.LargeMarginSoftmax(0, 3), "embedding_size"),
        (lambda: c.LargeMarginSoftmax(3, 1), "num_classes"),
        (lambda: c.AUCPRLoss(1), "num_classes"),
        (lambda: c.AUCPRLoss(3, anchors=0), "anchors"),
        (lambda: c.AUCPRLoss(3, priors=torch.tensor([0.5, 0.5, math.nan])), "priors"),
        (lambda: c.LearningToTeach(ClassificationError(), validate, 0), "total_steps"),
        (lambda: c.ScheduledCorrelations(c.AdaptiveClassificationLoss(3), "other"), "rule"),
        (lambda: c.AdaptiveClassificationLoss(3, off_diagonal_step=0.0), "off_diagonal_step"),
        (lambda: c.AdaptiveClassificationLoss(3, top_confusions=2), "top_confusions"),
        (lambda: c.AdaptiveClassificationLoss(3, off_diagonal=True, top_confusions=4), "top_confusions"),
    ],
)
def test_bad_arguments_are_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
