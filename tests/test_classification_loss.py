"""Eq. 6 and Eq. 7 against explicit float64 loops, torch's cross-entropy and finite differences."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ala_metric import AdaptiveLoss, classification
from ala_metric.classification import AdaptiveClassificationLoss, StreamingConfusion, class_confusion

FORMS = ["softplus", "sigmoid", "linear"]


def random_phi(classes: int, off_diagonal: bool, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(classes, classes, generator=generator) * 2 - 1
    matrix = (matrix + matrix.T) / 2 if off_diagonal else torch.zeros(classes, classes)
    matrix[range(classes), range(classes)] = 0.05 + 0.95 * torch.rand(classes, generator=generator)
    return matrix


def batch(rows: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(0, classes, (rows,), generator=generator)


def loop_loss(logits, targets, phi, form, *, weight=None, ignore_index=-100, smoothing=0.0) -> list[float]:
    """Eq. 6, one sample and one class at a time, in Python floats."""
    phi, losses = phi.tolist(), []
    classes = len(phi)
    for row, target in zip(logits.tolist(), targets.tolist()):
        if target == ignore_index:
            losses.append(0.0)
            continue
        top = max(row)
        lse = top + math.log(sum(math.exp(x - top) for x in row))
        w = [1.0] * classes if weight is None else weight.tolist()
        y = [smoothing / classes * w[c] / w[target] for c in range(classes)]
        y[target] += 1 - smoothing
        u = sum(y[i] * phi[i][j] * (row[j] - lse) for i in range(classes) for j in range(classes))
        if form == "softplus":
            value = max(-u, 0.0) + math.log1p(math.exp(-abs(u)))
        elif form == "sigmoid":
            value = -1 / (1 + math.exp(-u)) if u > -700 else 0.0
        else:
            value = -u
        losses.append(w[target] * value)
    return losses


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"ignore_index": 1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.3, "ignore_index": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (13, 7)])
def test_equals_loops(rows: int, classes: int, form: str, off_diagonal: bool, options: dict) -> None:
    logits, targets = batch(rows, classes)
    phi = random_phi(classes, off_diagonal)
    weight = torch.linspace(0.5, 2.0, classes) if options.get("weight") else None
    options = options | {"weight": weight}
    loss_fn = AdaptiveClassificationLoss(classes, form, off_diagonal, **options)
    loss_fn.set_phi(phi)
    ignore = options.get("ignore_index", -100)
    each = loop_loss(
        logits,
        targets,
        loss_fn.phi,
        form,
        weight=weight,
        ignore_index=ignore,
        smoothing=options.get("label_smoothing", 0.0),
    )
    counted = [1.0 if weight is None else float(weight[t]) for t in targets.tolist() if t != ignore]
    # 1e-12: float64 sums of at most 49 terms of size 10
    for reduction, expected in (
        ("none", each),
        ("sum", sum(each)),
        ("mean", sum(each) / sum(counted) if counted else 0.0),
    ):
        loss_fn.reduction = reduction
        assert loss_fn(logits, targets).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, off_diagonal: bool, options: dict) -> None:
    logits, targets = batch(5, 4, seed=1)
    if options.get("weight"):
        options = options | {"weight": torch.tensor([0.5, 1.0, 2.0, 0.1])}
    loss_fn = AdaptiveClassificationLoss(4, form, off_diagonal, **options)
    loss_fn.set_phi(random_phi(4, off_diagonal, seed=2))
    for reduction in ("mean", "none"):
        loss_fn.reduction = reduction
        assert torch.autograd.gradcheck(lambda x: loss_fn(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_at_identity_is_cross_entropy(reduction: str, options: dict, off_diagonal: bool) -> None:
    logits, targets = batch(29, 6, seed=3)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 0.1]) if options.get("weight") else None
    options = options | {"weight": weight}
    loss_fn = AdaptiveClassificationLoss(6, "linear", off_diagonal, reduction=reduction, **options)
    options["weight"] = None if weight is None else weight.double()
    expected = F.cross_entropy(logits, targets, reduction=reduction, **options)
    # 1e-12: rounding; a weight of 0 becomes 1e-20 where label smoothing divides by it
    torch.testing.assert_close(loss_fn(logits, targets), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_softplus_at_identity_is_cross_entropy_gradient_over_one_plus_p(scale: float) -> None:
    logits, targets = batch(50, 11, seed=4, scale=scale)
    logits.requires_grad_()
    loss_fn = AdaptiveClassificationLoss(11, reduction="sum")
    (gradient,) = torch.autograd.grad(loss_fn(logits, targets), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), logits)
    p = logits.softmax(1).gather(1, targets[:, None])
    torch.testing.assert_close(gradient, plain / (1 + p), rtol=1e-13, atol=1e-300)


def test_default_is_the_paper_initialisation() -> None:
    loss_fn = AdaptiveClassificationLoss(5)
    assert loss_fn.form == "softplus"
    assert torch.equal(loss_fn.phi, torch.eye(5))
    assert "phi" in dict(loss_fn.named_buffers())
    assert not list(loss_fn.parameters())
    paper = AdaptiveClassificationLoss.paper(5)
    assert (paper.form, paper.off_diagonal) == ("sigmoid", True)
    logits, targets = batch(9, 5)
    p = logits.softmax(1).gather(1, targets[:, None])
    torch.testing.assert_close(paper(logits, targets), (-p / (1 + p)).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_huge_logits_are_finite(form: str, off_diagonal: bool, dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]], dtype=dtype
    ).requires_grad_()
    targets = torch.tensor([0, 0, 2])
    loss_fn = AdaptiveClassificationLoss(3, form, off_diagonal, label_smoothing=0.1)
    loss_fn.set_phi(random_phi(3, off_diagonal))
    loss = loss_fn(logits, targets)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("off_diagonal", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, off_diagonal: bool) -> None:
    logits, targets = batch(17, 9, seed=5, dtype=dtype)
    loss_fn = AdaptiveClassificationLoss(9, off_diagonal=off_diagonal)
    loss_fn.set_phi(random_phi(9, off_diagonal))
    loss = loss_fn(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_fn(logits.float(), targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss, loss_fn(logits, targets))


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_impossible_classes_do_not_poison_the_others(off_diagonal: bool) -> None:
    """A logit of -inf with weight 0 in Phi: 0 times inf must not appear."""
    logits, targets = batch(6, 4)
    targets = targets % 3
    logits[:, 3] = -math.inf
    logits.requires_grad_()
    loss_fn = AdaptiveClassificationLoss(4, off_diagonal=off_diagonal)
    loss = loss_fn(logits, targets)
    loss.backward()
    torch.testing.assert_close(loss, AdaptiveClassificationLoss(3)(logits[:, :3], targets))
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([0.0, 1.0])}])
def test_nothing_to_learn_is_a_zero_with_a_graph(off_diagonal: bool, options: dict) -> None:
    loss_fn = AdaptiveClassificationLoss(2, off_diagonal=off_diagonal, **options)
    for rows, target in ((0, 0), (3, -100)):
        logits = torch.randn(rows, 2, requires_grad=True)
        loss = loss_fn(logits, torch.full((rows,), target))
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(logits.grad, torch.zeros(rows, 2))


def test_nan_in_nan_out() -> None:
    logits, targets = batch(4, 3)
    logits[1, 2] = math.nan
    for off_diagonal in (False, True):
        assert AdaptiveClassificationLoss(3, off_diagonal=off_diagonal)(logits, targets).isnan()


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_phi_may_move_between_forward_and_backward(off_diagonal: bool) -> None:
    logits, targets = batch(8, 5)
    gradients = []
    for move in (False, True):
        loss_fn = AdaptiveClassificationLoss(5, off_diagonal=off_diagonal).double()
        x = logits.clone().requires_grad_()
        loss = loss_fn(x, targets)
        if move:
            loss_fn.set_phi(torch.eye(5) * 0.5)
        loss.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_ten_thousand_classes() -> None:
    """Only the diagonal is stored then; the loss and the statistics are those of Eq. 6 and 7."""
    logits, targets = batch(6, 10_000, dtype=torch.float32)
    loss_fn = AdaptiveClassificationLoss(10_000)
    assert loss_fn.phi.shape == (10_000,)
    assert len(loss_fn.phi_spec) == 10_000
    vector = torch.linspace(0.5, 1.0, 10_000)
    loss_fn.set_phi(vector)
    loss_fn.set_phi(vector.diag())
    assert torch.equal(loss_fn.phi_vector, vector)
    nll = F.cross_entropy(logits.double(), targets, reduction="none")
    expected = F.softplus(vector[targets].double() * nll).mean()
    # 1e-6: float32 log-softmax
    torch.testing.assert_close(loss_fn(logits, targets).double(), expected, rtol=1e-6, atol=0)
    statistics = loss_fn.statistics(logits, targets)
    assert statistics.shape == (10_000, 2)
    assert statistics.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor):
                self.numel = max(self.numel, item.numel())
        return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1000, 5000])
def test_no_tensor_is_larger_than_the_logits(classes: int, smoothing: float) -> None:
    logits, targets = batch(7, classes, dtype=torch.float32)
    logits.requires_grad_()
    loss_fn = AdaptiveClassificationLoss(classes, label_smoothing=smoothing)
    with LargestTensor() as largest:
        loss_fn(logits, targets).backward()
    assert largest.numel == logits.numel()


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_compiles_to_one_graph(off_diagonal: bool) -> None:
    logits, targets = batch(8, 5, dtype=torch.float32)
    targets[2] = -100
    loss_fn = AdaptiveClassificationLoss(5, off_diagonal=off_diagonal, label_smoothing=0.1)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 0.5):  # a moved phi is seen without compiling anew
        loss_fn.set_phi(factor * torch.eye(5))
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        compiled(x, targets).backward()
        loss_fn(y, targets).backward()
        torch.testing.assert_close(x.grad, y.grad)


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values, lying differently."""
    wide = torch.full((2 * x.shape[0] + 1, x.shape[1] + 3), math.nan, dtype=x.dtype)
    wide[1::2, 2:-1] = x
    with torch.inference_mode():
        inference = x.clone()
    return {
        "transposed": x.T.contiguous().T,
        "strided with an offset": wide[1::2, 2:-1],
        "expanded": x[:1].expand(x.shape[0], -1),
        "inference": inference,
    }


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_layout_does_not_matter(off_diagonal: bool) -> None:
    logits, targets = batch(11, 5)
    loss_fn = AdaptiveClassificationLoss(5, off_diagonal=off_diagonal)
    loss_fn.set_phi(random_phi(5, off_diagonal))
    for name, view in layouts(logits).items():
        spread = torch.stack((targets, targets), 1)[:, 0]
        expected = loss_fn(view.clone(), targets)
        assert not expected.requires_grad
        # 1e-14: another layout may sum in another order
        torch.testing.assert_close(loss_fn(view, spread), expected, rtol=1e-14, atol=0, msg=name)
        statistics = loss_fn.statistics(view.clone(), targets)
        torch.testing.assert_close(loss_fn.statistics(view, spread), statistics, rtol=1e-6, atol=1e-6)
        if name != "inference":
            x, y = view.detach().requires_grad_(), view.detach().clone().requires_grad_()
            weight = torch.linspace(-2, 3, 11, dtype=torch.float64)  # a gradient from above that is not 1
            for leaf in (x, y):
                loss_fn.reduction = "none"
                (got,) = torch.autograd.grad(loss_fn(leaf, targets), leaf, weight)
                leaf.grad = got
                loss_fn.reduction = "mean"
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-14, atol=1e-16, msg=name)
    with torch.inference_mode():
        assert torch.equal(loss_fn(logits, targets), loss_fn(logits.clone(), targets))


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_same_bits_for_any_number_of_threads(off_diagonal: bool) -> None:
    """Also where torch refuses what it cannot repeat."""
    logits, targets = batch(700, 101, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    torch.use_deterministic_algorithms(True)
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            loss_fn = AdaptiveClassificationLoss(101, off_diagonal=off_diagonal)
            loss_fn.set_phi(random_phi(101, off_diagonal))
            x = logits.clone().requires_grad_()
            loss = loss_fn(x, targets)
            loss.backward()
            found.append((loss.detach(), x.grad, loss_fn.statistics(logits, targets), loss_fn.phi_vector))
        top = AdaptiveClassificationLoss(101, off_diagonal=True, top_confusions=7)
        top.statistics(logits, targets)
        top.set_phi(torch.full((7,), 0.5))
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert torch.equal(a, b)


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_vmap_over_models(off_diagonal: bool) -> None:
    logits = torch.stack([batch(6, 4, seed=seed)[0] for seed in range(3)])
    targets = batch(6, 4)[1]
    loss_fn = AdaptiveClassificationLoss(4, off_diagonal=off_diagonal)
    found = torch.func.vmap(lambda x: loss_fn(x, targets))(logits)
    torch.testing.assert_close(found, torch.stack([loss_fn(x, targets) for x in logits]))


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_gradients_per_sample(off_diagonal: bool) -> None:
    """vmap over targets too: their values cannot be read then."""
    logits, targets = batch(6, 4)
    targets[1] = -100
    loss_fn = AdaptiveClassificationLoss(4, off_diagonal=off_diagonal)
    loss_fn.set_phi(random_phi(4, off_diagonal))
    per_sample = torch.func.vmap(torch.func.grad(lambda x, y: loss_fn(x[None], y[None])))
    expected = [torch.func.grad(lambda x, y=y: loss_fn(x[None], y[None]))(x) for x, y in zip(logits, targets)]
    for dtype in (torch.int64, torch.int32):
        torch.testing.assert_close(per_sample(logits, targets.to(dtype)), torch.stack(expected))
    focal = classification.FocalLoss()
    rows = torch.func.vmap(lambda x, y: focal(x[None], y[None]))(logits[2:], targets[2:])
    torch.testing.assert_close(rows.mean(), focal(logits[2:], targets[2:]))
    with pytest.raises(ValueError, match="targets"):  # readable inside of torch.func.grad alone
        torch.func.grad(lambda x, y: loss_fn(x[None], y[None]))(logits[0], torch.tensor(4))


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_copies_and_state_carry_phi(off_diagonal: bool) -> None:
    loss_fn = AdaptiveClassificationLoss(4, off_diagonal=off_diagonal, weight=torch.arange(4.0))
    loss_fn.set_phi(random_phi(4, off_diagonal))
    fresh = AdaptiveClassificationLoss(4, off_diagonal=off_diagonal, weight=torch.ones(4))
    fresh.load_state_dict(loss_fn.state_dict())
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)), fresh):
        assert torch.equal(other.phi, loss_fn.phi)
        assert torch.equal(other.weight, loss_fn.weight)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"form": "hinge"}, "form"),
        ({"reduction": "max"}, "reduction"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"diagonal_low": 0.0}, "diagonal_low"),
        ({"diagonal_low": 1.0}, "diagonal_low"),
        ({"weight": torch.ones(2)}, "weight"),
        ({"weight": torch.tensor([1.0, -1.0, 1.0])}, "weight"),
        ({"weight": torch.tensor([1.0, math.nan, 1.0])}, "weight"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AdaptiveClassificationLoss(**({"num_classes": 3} | arguments))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
        ({"num_classes": "3"}, "num_classes must be an integer, got '3'"),
        ({"num_classes": True}, "num_classes must be an integer, got True"),
        ({"off_diagonal": "no"}, "off_diagonal must be True or False, got 'no'"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        AdaptiveClassificationLoss(**({"num_classes": 3} | arguments))


def test_complex_phi_is_refused() -> None:
    with pytest.raises(TypeError, match=r"phi must be real, got torch\.complex64"):
        AdaptiveClassificationLoss(3).set_phi(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("logits", "targets", "error", "text"),
    [
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), ValueError, "logits"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), ValueError, "logits"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), TypeError, "logits"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), ValueError, "targets"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "targets"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool), TypeError, "targets"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "targets"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ValueError, "targets"),
        (torch.zeros(2, 3), [0, 1], TypeError, "targets must be a tensor, got list"),
        (
            torch.zeros(2, 3).numpy(),
            torch.tensor([0, 1]),
            TypeError,
            "logits must be a tensor, got ndarray; to",
        ),
    ],
)
def test_bad_batches_are_refused(logits, targets, error: type, text: str) -> None:
    loss_fn = AdaptiveClassificationLoss(3)
    with pytest.raises(error, match=text):
        loss_fn(logits, targets)
    with pytest.raises(error, match=text.replace("logits", "outputs")):
        loss_fn.statistics(logits, targets)


def test_a_class_is_not_ignored_because_its_byte_is_that_of_minus_100() -> None:
    logits, targets = torch.randn(6, 200), torch.arange(154, 160)
    loss_fn = AdaptiveClassificationLoss(200)
    assert torch.equal(
        loss_fn.statistics(logits, targets.to(torch.uint8)), loss_fn.statistics(logits, targets)
    )


SIGNED, UNSIGNED = ["int8", "int16", "int32"], ["uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("name", SIGNED + UNSIGNED)
def test_other_integer_targets(name: str) -> None:
    logits, targets = batch(8, 5)
    same = targets.to(getattr(torch, name))
    loss_fn = AdaptiveClassificationLoss(5)
    assert torch.equal(loss_fn(logits, same), loss_fn(logits, targets))
    assert torch.equal(loss_fn.statistics(logits, same), loss_fn.statistics(logits, targets))
    log_probs = logits.log_softmax(1)
    assert torch.equal(class_confusion(log_probs, same, 5), class_confusion(log_probs, targets, 5))
    margin = classification.LargeMarginSoftmax(5, 5).double().eval()
    for other in (margin, classification.FocalLoss()):
        assert torch.equal(other(logits, same), other(logits, targets))
        with pytest.raises(ValueError, match=r"targets must lie in \[0, 5\)"):
            other(logits, same + 5 if name in (*SIGNED, "uint8") else (targets + 5).to(same.dtype))


# ---- phi as actions


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_actions_name_the_entries_of_phi(classes: int, off_diagonal: bool) -> None:
    loss_fn = AdaptiveClassificationLoss(classes, off_diagonal=off_diagonal)
    assert isinstance(loss_fn, AdaptiveLoss)
    pairs = [(i, j) for i in range(classes) for j in range(i, classes) if off_diagonal or i == j]
    assert [spec.name for spec in loss_fn.phi_spec] == [f"phi[{i},{j}]" for i, j in pairs]
    for number, ((i, j), spec) in enumerate(zip(pairs, loss_fn.phi_spec)):
        assert (spec.low, spec.high, spec.rule) == ((0.05 if i == j else -1.0), 1.0, "additive")
        vector = loss_fn.phi_vector
        vector[number] = 0.75
        loss_fn.set_phi(vector)
        assert float(loss_fn.phi[i, j]) == float(loss_fn.phi[j, i]) == 0.75
        assert torch.equal(loss_fn.phi, loss_fn.phi.T)
        assert torch.equal(loss_fn.phi_vector, vector)
    matrix = random_phi(classes, off_diagonal)
    loss_fn.set_phi(matrix)
    assert torch.equal(loss_fn.phi, matrix)
    assert loss_fn.phi_vector.tolist() == [float(matrix[i, j]) for i, j in pairs]


def test_the_least_diagonal_is_a_choice() -> None:
    wide = AdaptiveClassificationLoss(3)
    wide.set_phi(torch.tensor([0.05, 1.0, 0.3]))
    assert {spec.low for spec in wide.phi_spec} == {0.05}
    with pytest.raises(ValueError, match=r"diagonal of phi must lie in \[0.5, 1.0\], got 0.3"):
        AdaptiveClassificationLoss(3, diagonal_low=0.5).set_phi(torch.tensor([0.6, 1.0, 0.3]))
    assert classification.preset("paper").loss(4).diagonal_low == 0.05


def test_set_phi_keeps_the_buffer_and_forgives_rounding_only() -> None:
    loss_fn = AdaptiveClassificationLoss(3, off_diagonal=True)
    buffer = loss_fn.phi
    loss_fn.set_phi(torch.eye(3, dtype=torch.float64) * (1 + 1e-7))
    assert loss_fn.phi is buffer
    assert torch.equal(buffer, torch.eye(3))


NAN = math.nan


@pytest.mark.parametrize(
    ("off_diagonal", "phi"),
    [
        (False, torch.ones(2)),
        (False, torch.ones(6)),
        (False, torch.tensor(1.0)),
        (False, torch.ones(3, 2)),
        (False, torch.tensor([1.0, 0.04, 1.0])),
        (False, torch.tensor([1.0, 1.01, 1.0])),
        (False, torch.tensor([1.0, NAN, 1.0])),
        (False, torch.eye(3) + 0.1 * torch.eye(3).roll(1, 0)),
        (False, torch.tensor([[1, 0.1, 0], [0.1, 1, 0], [0, 0, 1]])),
        (False, torch.tensor([[NAN, 0, 0], [0, 1, 0], [0, 0, 1]])),
        (True, torch.ones(3)),
        (True, torch.ones(4, 4)),
        (True, torch.eye(3) * 0.0),
        (True, torch.eye(3) + torch.tensor([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])),
        (True, torch.eye(3) + 1.01 * torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]])),
        (True, torch.tensor([1.0, 0.0, NAN, 1.0, 0.0, 1.0])),
        (True, torch.tensor([1.0, 0.0, math.inf, 1.0, 0.0, 1.0])),
    ],
)
def test_bad_phi_changes_nothing(off_diagonal: bool, phi: torch.Tensor) -> None:
    loss_fn = AdaptiveClassificationLoss(3, off_diagonal=off_diagonal)
    before = random_phi(3, off_diagonal)
    loss_fn.set_phi(before)
    with pytest.raises(ValueError, match="phi"):
        loss_fn.set_phi(phi)
    assert torch.equal(loss_fn.phi, before)


# ---- confusions and statistics


def loop_confusion(log_probs: torch.Tensor, targets: torch.Tensor, classes: int) -> list[list[float]]:
    """Eq. 7 as written; 0 for a class without samples."""
    result = []
    for i in range(classes):
        rows = [row for row, y in zip(log_probs.tolist(), targets.tolist()) if y == i]
        result.append([sum(-row[j] for row in rows) / len(rows) if rows else 0.0 for j in range(classes)])
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (1, 2), (101, 7), (5, 23), (0, 3)])
def test_confusion_equals_loops(rows: int, classes: int, dtype: torch.dtype) -> None:
    logits, targets = batch(rows, classes)
    log_probs = logits.log_softmax(1).to(dtype)
    confusion = class_confusion(log_probs, targets, classes)
    assert confusion.dtype == torch.float64
    expected = torch.tensor(loop_confusion(log_probs, targets, classes), dtype=torch.float64)
    torch.testing.assert_close(confusion, expected, rtol=1e-13, atol=0)  # order of at most 101 float64 sums


def test_confusion_streams_over_blocks_and_batches() -> None:
    logits, targets = batch(20_000, 3)
    log_probs = logits.log_softmax(1)
    stream = StreamingConfusion(3)
    for rows, labels in zip(log_probs.split(777), targets.split(777)):
        stream.update(rows, labels)
    whole = class_confusion(log_probs, targets, 3)
    torch.testing.assert_close(stream.compute(), whole, rtol=1e-12, atol=0)
    expected = torch.stack([-log_probs[targets == i].mean(0) for i in range(3)])
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=0)
    assert stream.count.tolist() == torch.bincount(targets).tolist()


def test_confusion_of_impossible_classes_is_infinite() -> None:
    log_probs = torch.tensor([[0.0, -math.inf], [-0.5, -1.0]])
    assert class_confusion(log_probs, torch.tensor([0, 1]), 2).tolist() == [[0.0, math.inf], [0.5, 1.0]]
    with pytest.raises(ValueError, match="1 of 2 rows"):
        class_confusion(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="targets"):
        class_confusion(log_probs, torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="log_probs"):
        class_confusion(log_probs, torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match="num_classes"):
        class_confusion(log_probs, torch.tensor([0, 1]), 0)


@pytest.mark.parametrize(
    ("rows", "largest"),
    [
        ([[5.0, -1.0], [0.0, 3.0]], "5.0"),
        ([[0.2, 0.8], [0.5, 0.5]], "0.8"),
        ([[-1.0, 0.002], [0.0, -3.0]], "0.002"),
        ([[0.0, math.inf], [0.0, -1.0]], "inf"),
    ],
)
def test_logits_and_probabilities_are_no_log_probabilities(rows: list, largest: str) -> None:
    stream = StreamingConfusion(2)
    with pytest.raises(
        ValueError, match=rf"log_probs must be <= 0 \(log-probabilities, not .* up to {largest}"
    ):
        stream.update(torch.tensor(rows), torch.tensor([0, 1]))
    assert stream.count.tolist() == [0, 0]


def test_rounding_above_0_is_forgiven() -> None:
    for dtype in (torch.float32, torch.bfloat16):  # a sum of probabilities may round up by an ulp
        log_probs = torch.tensor([[1.0 + torch.finfo(dtype).eps, 0.5]], dtype=dtype).log()
        assert class_confusion(log_probs, torch.tensor([0]), 2)[0, 0] < 0


def test_confusion_wants_tensors_and_a_count() -> None:
    with pytest.raises(TypeError, match=r"num_classes must be an integer, got 2\.0"):
        class_confusion(torch.zeros(1, 2), torch.tensor([0]), 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="targets must be a tensor, got list"):
        class_confusion(torch.zeros(1, 2), [0], 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="log_probs must be a tensor, got ndarray"):
        StreamingConfusion(2).update(torch.zeros(1, 2).numpy(), torch.tensor([0]))  # type: ignore[arg-type]


def loop_statistics(logits: torch.Tensor, targets: torch.Tensor, off_diagonal: bool) -> torch.Tensor:
    """Pair features of Eq. 7, z-scored over the known entries of each kind."""
    classes = logits.shape[1]
    confusion = loop_confusion(logits.double().log_softmax(1), targets, classes)
    present = set(targets.tolist())
    pairs = [(i, j) for i in range(classes) for j in range(i, classes) if off_diagonal or i == j]
    result = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for kind in (True, False):
        known = [n for n, (i, j) in enumerate(pairs) if (i == j) == kind and {i, j} <= present]
        if not known:
            continue
        features = torch.tensor(
            [
                [
                    (confusion[i][j] + confusion[j][i]) / 2,
                    abs(confusion[i][j] - confusion[j][i]) / 2,
                ]
                for i, j in (pairs[n] for n in known)
            ],
            dtype=torch.float64,
        )
        std = features.std(0, correction=0)
        result[known] = torch.where(std > 1e-9, (features - features.mean(0)) / std, 0)
    return result


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(3, 2), (200, 6), (11, 13), (1, 4)])
def test_statistics_equal_loops(rows: int, classes: int, off_diagonal: bool) -> None:
    """With 11 samples of 13 classes some classes are absent."""
    logits, targets = batch(rows, classes, seed=9)
    loss_fn = AdaptiveClassificationLoss(classes, off_diagonal=off_diagonal)
    statistics = loss_fn.statistics(logits, targets)
    assert statistics.shape == (len(loss_fn.phi_spec), 2)
    # float32 results of size 1
    torch.testing.assert_close(
        statistics.double(), loop_statistics(logits, targets, off_diagonal), rtol=0, atol=1e-6
    )


def test_statistics_do_not_depend_on_the_order_or_number_of_samples_and_classes() -> None:
    classes = 6
    logits, targets = batch(300, classes, seed=2)
    loss_fn = AdaptiveClassificationLoss(classes, off_diagonal=True)
    statistics = loss_fn.statistics(logits, targets)
    torch.testing.assert_close(statistics, loss_fn.statistics(logits.repeat(2, 1), targets.repeat(2)))

    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    renamed = loss_fn.statistics(logits[:, order], order.argsort()[targets])
    table = torch.zeros(2, classes, classes, 2)
    rows, columns = torch.triu_indices(classes, classes)
    for number, values in enumerate((statistics, renamed)):
        table[number, rows, columns] = values
        table[number, columns, rows] = values
    torch.testing.assert_close(table[1], table[0][order][:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_statistics_are_finite_whatever_the_confusions(off_diagonal: bool) -> None:
    loss_fn = AdaptiveClassificationLoss(3, off_diagonal=off_diagonal)
    targets = torch.tensor([0, 1, 2])
    for logits in (
        torch.zeros(3, 3),
        torch.eye(3) * 1e4,
        torch.eye(3) * -1e4,
        torch.tensor([[0.0, -math.inf, 0.0], [0.0, -math.inf, 1.0], [0.0, 0.0, 0.0]]),
        torch.full((3, 3), 1e-30),
    ):
        assert loss_fn.statistics(logits, targets).isfinite().all()
    for rows, target in ((0, 0), (3, -100)):
        empty = loss_fn.statistics(torch.randn(rows, 3), torch.full((rows,), target))
        assert torch.equal(empty, torch.zeros(len(loss_fn.phi_spec), 2))
    with pytest.raises(ValueError, match="1 of 3 rows"):
        loss_fn.statistics(torch.tensor([[0.0, 0.0, math.nan], [0.0] * 3, [0.0] * 3]), targets)


def test_statistics_leave_logits_and_ignored_samples_alone() -> None:
    logits, targets = batch(40, 4)
    logits.requires_grad_()
    loss_fn = AdaptiveClassificationLoss(4, off_diagonal=True, ignore_index=9)
    ignored = torch.cat((logits, torch.full((2, 4), math.nan)))
    statistics = loss_fn.statistics(ignored, torch.cat((targets, torch.tensor([9, 9]))))
    assert not statistics.requires_grad
    assert torch.equal(statistics, loss_fn.statistics(logits, targets))
