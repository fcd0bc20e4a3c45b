"""One suite for every implementation of the pair ops, against double loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ala_metric as ala
from ala_metric import ops
from ala_metric.ops._strips import products
from tests import oracle

PHI = torch.tensor([1.0, 0.3, 0.7, 0.2, 0.9, 0.8, 0.4, 0.6, 0.5, 0.1], dtype=torch.float64)
SHARP = torch.tensor([2.0, 8.0], dtype=torch.float64)
# float32 keeps 24 bits; sums over up to 513 pairs of O(1) terms lose a few of them
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = [(0, 3), (1, 1), (2, 1), (3, 3), (7, 5), (31, 13), (64, 64), (127, 2), (513, 17)]


def batch(n: int, d: int, dtype=torch.float64, classes: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64)) if d > 1 else torch.randn(n, d)
    return x.to(dtype), torch.randint(0, classes, (n,))


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-30)) if b.numel() else 0.0


def loss_op(name: str):
    """(call(x, labels, phi, **refs, impl), phi, oracle(x, labels, phi, y, ref_labels))."""
    if name == "mixture":
        return ops.distance_mixture, PHI, oracle.mixture
    return ops.focal_weighting, SHARP, lambda x, a, phi, y=None, b=None: oracle.focal(x, a, phi, 1.0, y, b)


LOSSES = ["mixture", "focal"]


# ------------------------------------------------------------------------------------------ the equations
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, None), (7, 3, None), (23, 5, None), (5, 4, 11), (1, 2, 3)])
def test_equals_double_loops(impl: str, loss: str, n: int, d: int, m: int | None) -> None:
    op, phi, loops = loss_op(loss)
    x, labels = batch(n, d)
    y, ref_labels = batch(m, d) if m else (None, None)
    found = op(x, labels, phi, ref_emb=y, ref_labels=ref_labels, impl=impl)
    lists = [v if v is None else v.tolist() for v in (x, labels, phi, y, ref_labels)]
    expected = torch.tensor(loops(*lists), dtype=torch.float64)
    assert found.dtype == torch.float64
    assert relative(found, expected) < 1e-12  # both are float64; only the order of sums differs


def test_statistics_equal_double_loops(impl: str) -> None:
    x, labels = batch(19, 4)
    y, ref_labels = batch(11, 4)
    found = ops.distance_statistics(x, labels, impl=impl)
    assert relative(found, torch.tensor(oracle.statistics(x.tolist(), labels.tolist()))) < 1e-6
    found = ops.distance_statistics(x, labels, ref_emb=y, ref_labels=ref_labels, impl=impl)
    expected = oracle.statistics(x.tolist(), labels.tolist(), y.tolist(), ref_labels.tolist())
    assert relative(found, torch.tensor(expected, dtype=torch.float64)) < 1e-12


def test_distances_equal_double_loops(impl: str) -> None:
    x, y = torch.randn(13, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = torch.tensor([[oracle.dist(a, b) for b in y.tolist()] for a in x.tolist()])
    assert torch.allclose(ops.pairwise_distance(x, y, impl=impl).float(), expected, atol=0, rtol=1e-6)
    assert torch.equal(ops.pairwise_distance(x, impl=impl).diagonal(), torch.zeros(13, dtype=torch.float64))


def test_functions_meet_their_tangents() -> None:
    """The two poles are continued with value and slope: no jump at the knee, finite force at 0."""
    for k in (5, 7):
        phi = torch.eye(10, dtype=torch.float64)[k]
        d = torch.tensor([0.0, 0.1 - 1e-9, 0.1, 0.1 + 1e-9, 0.05], dtype=torch.float64, requires_grad=True)
        value = ops.mixture_of_distance(d, phi[5:], positive=False)
        (slope,) = torch.autograd.grad(value.sum(), d)
        assert torch.allclose(value[1:4], value[2].expand(3), atol=1e-6)
        assert torch.allclose(slope[[0, 1, 3, 4]], slope[2].expand(4), rtol=1e-7)


# ------------------------------------------------------------- all implementations against the reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_reference(impl: str, loss: str, n: int, d: int, rectangular: bool, dtype) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(n, d, dtype)
    refs = {}
    if rectangular:
        refs = dict(zip(("ref_emb", "ref_labels"), batch(n + 6, d, dtype)))
    weights = torch.rand(n, dtype=dtype)  # grad_output != 1, and different per anchor
    found, expected = (
        value_and_gradients(op, which, x, labels, phi.to(dtype), weights, refs)
        for which in (impl, "reference")
    )
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert relative(a, b) < TOLERANCE[dtype]


def value_and_gradients(op, impl, x, labels, phi, weights, refs) -> list[Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in {"x": x, "phi": phi}.items()}
    refs = dict(refs)
    if refs:
        leaves["y"] = refs["ref_emb"] = refs["ref_emb"].clone().requires_grad_()
    loss = op(leaves["x"], labels, leaves["phi"], impl=impl, **refs)
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves.values()), weights)]


@pytest.mark.parametrize("loss", LOSSES)
def test_mean_reduction_gradient(impl: str, loss: str) -> None:
    """The plain mean is the common case, and may take a path of its own."""
    op, phi, _ = loss_op(loss)
    x, labels = batch(67, 9)
    ones = torch.full((67,), 3.0 / 67, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (3 * op(leaf, labels, phi, impl=impl).mean()).backward()
    expected = value_and_gradients(op, "reference", x, labels, phi, ones, {})[1]
    assert relative(leaf.grad, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [True, False])
def test_distance_gradients(impl: str, own: bool, dtype) -> None:
    x = torch.randn(37, 5, dtype=dtype)
    y = None if own else torch.randn(11, 5, dtype=dtype)
    weights = torch.rand(37, 37 if own else 11, dtype=dtype)
    grads = []
    for which in (impl, "reference"):
        leaves = [v.clone().requires_grad_() for v in (x, y) if v is not None]
        grads.append(torch.autograd.grad(ops.pairwise_distance(*leaves, impl=which), leaves, weights))
    for a, b in zip(*grads):
        assert relative(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rectangular", [False, True])
def test_gradcheck(impl: str, loss: str, rectangular: bool) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(9, 3, classes=3)
    y, ref_labels = batch(5, 3, classes=3) if rectangular else (None, None)
    leaves = [v.clone().requires_grad_() for v in (x, phi, y) if v is not None]

    def call(x: Tensor, phi: Tensor, y: Tensor | None = None) -> Tensor:
        return op(x, labels, phi, ref_emb=y, ref_labels=ref_labels, impl=impl)

    # gradcheck repeats the backward and would flag different bits; native may sum in another order per path
    assert torch.autograd.gradcheck(call, leaves, nondet_tol=1e-12)


def test_gradcheck_distance(impl: str) -> None:
    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    assert torch.autograd.gradcheck(lambda *v: ops.pairwise_distance(*v, impl=impl), (x, y))


# ------------------------------------------------------------------------------------ mined pairs, triplets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("count", [0, 1, 997])
def test_mined_equal_reference(impl: str, count: int, own: bool, dtype) -> None:
    x, _ = batch(41, 7, dtype)
    y = None if own else batch(23, 7, dtype)[0]
    a = torch.randint(0, 41, (count,))
    p, n = torch.randint(0, 41 if own else 23, (2, count))
    weights = torch.rand(count, dtype=dtype)
    phi = PHI.to(dtype)
    for call in (
        lambda x, y, phi, impl: ops.mixture_triplets(x, a, p, n, phi, ref_emb=y, impl=impl),
        lambda x, y, phi, impl: ops.mixture_pairs(x, a, p, phi[:5], positive=True, ref_emb=y, impl=impl),
        lambda x, y, phi, impl: ops.mixture_pairs(x, a, n, phi[5:], positive=False, ref_emb=y, impl=impl),
    ):
        results = []
        for which in (impl, "reference"):
            leaves = [None if v is None else v.clone().requires_grad_() for v in (x, y, phi)]
            value = call(*leaves, which)
            wanted = [v for v in leaves if v is not None]
            results.append([value.detach(), *torch.autograd.grad(value, wanted, weights)])
        for found, expected in zip(*results):
            assert relative(found, expected) < TOLERANCE[dtype]


def test_mined_pairs_equal_double_loops(impl: str) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    a, b = torch.tensor([0, 4, 2, 2]), torch.tensor([1, 0, 2, 3])
    phi = PHI[5:]
    found = ops.mixture_pairs(x, a, b, phi, positive=False, impl=impl)
    rows = x.tolist()
    expected = [
        sum(w * f(oracle.dist(rows[i], rows[j])) for w, f in zip(phi.tolist(), oracle.NEGATIVE))
        for i, j in zip(a.tolist(), b.tolist())
    ]
    assert relative(found, torch.tensor(expected, dtype=torch.float64)) < 1e-12


def test_mined_indices_are_checked(impl: str) -> None:
    x = torch.randn(4, 2)
    a, phi = torch.tensor([0, 1]), torch.ones(5)
    for others, match in (
        (torch.tensor([0, 4]), r"others must lie in \[0, 3\], got values from 0 to 4"),
        (torch.tensor([0, -1]), r"others must lie in \[0, 3\], got values from -1 to 0"),
        (torch.tensor([0]), "equal lengths"),
        (torch.tensor([[0, 1]]), "others must be a 1-D tensor"),
    ):
        with pytest.raises(ValueError, match=match):
            ops.mixture_pairs(x, a, others, phi, positive=True, impl=impl)
    with pytest.raises(TypeError, match="others must have an integer dtype, got torch.float32"):
        ops.mixture_pairs(x, a, torch.tensor([0.0, 1.0]), phi, positive=True, impl=impl)


# ------------------------------------------------------------------------------------------- robustness
@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("loss", LOSSES)
def test_near_duplicates_and_collapse(impl: str, loss: str, spread: float) -> None:
    """Every pair at the same tiny distance: finite, and the gradient within 1e-3 of float64's."""
    op, phi, _ = loss_op(loss)
    x = torch.nn.functional.normalize(torch.randn(1, 16)) + spread / 2**0.5 * torch.eye(40, 16)
    x = torch.cat([x[:16], x[:16]])  # and exact duplicates of each
    labels = torch.arange(32) % 4
    weights = torch.rand(32)
    found = value_and_gradients(op, impl, x, labels, phi.float(), weights, {})
    exact = value_and_gradients(op, "reference", x.double(), labels, phi, weights.double(), {})
    assert all(bool(v.isfinite().all()) for v in found)
    for a, b in zip(found, exact):
        assert relative(a, b) < 1e-3 or float(b.norm()) == float(a.norm()) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "labels",
    [[], [3], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 2]],
    ids=["none", "one", "same", "single", "mix"],
)
def test_missing_pairs_are_zero_terms(impl: str, loss: str, labels: list[int]) -> None:
    op, phi, loops = loss_op(loss)
    x = torch.randn(len(labels), 3, dtype=torch.float64, requires_grad=True)
    loss_value = op(x, torch.tensor(labels, dtype=torch.int64), phi, impl=impl)
    expected = torch.tensor(loops(x.tolist(), labels, phi.tolist()), dtype=torch.float64)
    assert torch.allclose(loss_value, expected)
    loss_value.sum().backward()  # the graph is kept
    assert x.grad.isfinite().all()


def test_empty_references(impl: str) -> None:
    x, labels = batch(3, 2)
    none = {
        "ref_emb": torch.empty(0, 2, dtype=torch.float64),
        "ref_labels": torch.empty(0, dtype=torch.int64),
    }
    for op, phi in ((ops.distance_mixture, PHI), (ops.focal_weighting, SHARP)):
        assert torch.equal(op(x, labels, phi, impl=impl, **none), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(
        ops.distance_statistics(x, labels, impl=impl, **none), torch.zeros(10, dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", LOSSES)
def test_nan_and_inf(impl: str, loss: str, bad: float) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(8, 3)
    x[2, 1] = x[5, 0] = bad
    with pytest.raises(ValueError, match="emb must be finite, got NaN or Inf in 2 of 8 rows"):
        op(x, labels, phi, impl=impl)
    ala.set_checks("cheap")
    try:
        assert op(x, labels, phi, impl=impl).isnan().all()  # every row has a pair with a bad one
    finally:
        ala.set_checks("auto")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_accumulates_in_float32(impl: str, loss: str, dtype) -> None:
    op, phi, _ = loss_op(loss)
    phi = phi * (torch.arange(len(phi)) != 3)  # the true slope of 0.5 d^3 is beyond float16 here
    x = (300 * torch.randn(9, 5)).to(dtype).requires_grad_()  # squares overflow half
    labels = torch.arange(9) % 3
    value = op(x, labels, phi.float(), impl=impl)
    value.sum().backward()
    exact = op(x.detach().double(), labels, phi, impl="reference")
    assert value.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    assert relative(value, exact) < 1e-6  # the inputs are exact in float64, the sums are float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes(impl: str, dtype) -> None:
    x, labels = batch(12, 3)
    expected = ops.distance_mixture(x, labels, PHI, impl="reference")
    assert torch.allclose(ops.distance_mixture(x, labels.to(dtype), PHI, impl=impl), expected)


def test_large_and_negative_labels(impl: str) -> None:
    x, _ = batch(6, 3)
    far = torch.tensor([2**40, 2**40, -5, -5, 2**40 + 2**32, 7])
    near = torch.tensor([0, 0, 1, 1, 2, 3])
    assert torch.allclose(
        ops.distance_mixture(x, far, PHI, impl=impl), ops.distance_mixture(x, near, PHI, impl="reference")
    )


def test_bad_labels(impl: str) -> None:
    x, labels = batch(6, 3)
    for bad, error, match in (
        (labels[:5], ValueError, r"labels must have shape \[6\] like the rows of emb, got \(5,\)"),
        (labels[:, None], ValueError, r"got \(6, 1\)"),
        (labels.float(), TypeError, "labels must have an integer dtype, got torch.float32"),
        (labels.bool(), TypeError, "torch.bool"),
        (labels.tolist(), TypeError, "labels must be a tensor of integers, got list"),
        (labels.to("meta"), ValueError, "labels must be on cpu like emb, got meta"),
    ):
        with pytest.raises(error, match=match):
            ops.distance_mixture(x, bad, PHI, impl=impl)
    with pytest.raises(ValueError, match="ref_emb was given without ref_labels"):
        ops.distance_mixture(x, labels, PHI, ref_emb=x, impl=impl)
    with pytest.raises(ValueError, match="y must have 3 dimensions like x, got 4"):
        ops.pairwise_distance(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="ref_emb must have 3 dimensions like emb, got 4"):
        ops.distance_mixture(
            x, labels, PHI, ref_emb=torch.randn(2, 4, dtype=x.dtype), ref_labels=labels[:2], impl=impl
        )


def test_bad_embeddings(impl: str) -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"emb must have shape \[rows, dimensions\], got \(6,\)"):
        ops.distance_mixture(torch.randn(6), labels, PHI, impl=impl)
    with pytest.raises(TypeError, match="emb must be float16, bfloat16, float32 or float64, got torch.int64"):
        ops.distance_mixture(torch.ones(6, 2, dtype=torch.int64), labels, PHI, impl=impl)


@pytest.mark.parametrize(
    ("phi", "error", "match"),
    [
        (torch.ones(9), ValueError, r"phi must have shape \[10\], got \(9,\)"),
        (torch.full((10,), float("nan")), ValueError, "phi must be finite"),
        ([1.0] * 10, TypeError, "phi must be a floating point tensor, got list"),
        (torch.ones(10, dtype=torch.int64), TypeError, "got torch.int64"),
    ],
)
def test_bad_phi(impl: str, phi, error, match: str) -> None:
    with pytest.raises(error, match=match):
        ops.distance_mixture(*batch(4, 2, torch.float32), phi, impl=impl)


def test_focal_phi(impl: str) -> None:
    x, labels = batch(9, 3)
    with pytest.raises(ValueError, match="phi must be > 0"):
        ops.focal_weighting(x, labels, torch.tensor([1.0, 0.0]), impl=impl)
    huge = torch.tensor([5e4, 5e4])  # exp(5e4) overflows any float; log-sum-exp does not
    leaf = x.float().requires_grad_()
    value = ops.focal_weighting(leaf, labels, huge, impl=impl)
    value.sum().backward()
    assert value.isfinite().all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("level", ["cheap", "full"])
def test_focal_phi_is_never_a_finite_lie(impl: str, level) -> None:
    x, labels = batch(9, 3)
    ala.set_checks(level)
    try:
        for phi in ([-1.0, 2.0], [2.0, -1.0], [0.0, 2.0], [2.0, math.nan]):
            with pytest.raises(ValueError, match="phi must be"):
                ops.focal_weighting(x, labels, torch.tensor(phi), impl=impl)
    finally:
        ala.set_checks("auto")


@pytest.mark.parametrize("which", ["strips", "reference"])
def test_unseen_focal_phi_gives_nan(which) -> None:
    """As on CUDA, where nothing waits for its values: compiled code does not look at them either."""
    torch._dynamo.reset()
    x, labels = batch(9, 3)
    call = torch.compile(
        lambda phi: ops.focal_weighting(x, labels, phi, impl=which), fullgraph=True, backend="eager"
    )
    for phi in ([-1.0, 2.0], [2.0, -1.0], [0.0, 2.0]):
        assert call(torch.tensor(phi)).isnan().all()


def test_zero_phi_is_zero_loss(impl: str) -> None:
    x, labels = batch(9, 3)
    x[1] = x[0]  # a zero-weighted pole at distance 0
    leaf = x.requires_grad_()
    value = ops.distance_mixture(leaf, labels, torch.zeros(10), impl=impl)
    value.sum().backward()
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(leaf.grad, torch.zeros_like(x))


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_layouts(impl: str, loss: str) -> None:
    op, phi, _ = loss_op(loss)
    base, labels = batch(12, 6)
    expected = op(base, labels, phi, impl=impl)
    wide = torch.randn(24, 12, dtype=base.dtype)
    wide[::2, ::2] = base
    offset = torch.cat([torch.zeros(1, 6, dtype=base.dtype), base])[1:]
    with torch.inference_mode():
        inference = base.clone()
    for view in (base.T.contiguous().T, wide[::2, ::2], offset, inference, base.clone().requires_grad_()):
        assert torch.equal(op(view, labels, phi, impl=impl), expected)
    flat = base[:1].expand(12, 6)  # stride 0
    assert torch.equal(op(flat, labels, phi, impl=impl), op(flat.contiguous(), labels, phi, impl=impl))
    strided_labels = torch.stack([labels, labels + 9], 1)[:, 0]
    assert torch.equal(op(base, strided_labels, phi, impl=impl), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("d", [1, 3, 4096])
def test_widths(impl: str, loss: str, d: int) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(11, d, torch.float32)
    assert (
        relative(op(x, labels, phi.float(), impl=impl), op(x.double(), labels, phi, impl="reference")) < 1e-6
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_for_any_thread_count(impl: str, loss: str) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(701, 24, torch.float32)
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(op, impl, x, labels, phi.float(), torch.ones(701), {}))
    finally:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
    repeatable = (
        results[1:] if impl == "native" else results[-1:]
    )  # torch.mm itself changes bits with threads
    for other in repeatable:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("loss", LOSSES)
def test_compile_fullgraph(impl: str, loss: str) -> None:
    op, phi, _ = loss_op(loss)
    x, labels = batch(8, 3)

    def step(x: Tensor) -> Tensor:
        return op(2 * x, labels, phi, impl=impl).mean()

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    values = [
        f(leaf) for f, leaf in zip((step, torch.compile(step, fullgraph=True, backend="aot_eager")), leaves)
    ]
    for value in values:
        value.backward()
    assert torch.allclose(*values)
    assert torch.allclose(leaves[0].grad, leaves[1].grad)


def test_inference_mode_and_no_grad(impl: str) -> None:
    x, labels = batch(8, 3)
    expected = ops.distance_mixture(x, labels, PHI, impl=impl)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(ops.distance_mixture(x, labels, PHI, impl=impl), expected)


def test_compiled_statistics(impl: str) -> None:
    torch._dynamo.reset()
    x, labels = batch(8, 3)
    compiled = torch.compile(
        lambda x: ops.distance_statistics(x, labels, impl=impl), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), ops.distance_statistics(x, labels, impl=impl))


def test_ranks_are_not_compiled(impl: str) -> None:
    torch._dynamo.reset()
    x, labels = batch(8, 3)

    def call(x: Tensor) -> Tensor:
        return ops.positive_ranks(2 * x, labels, impl=impl, first_only=True)

    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"NotImplementedError.*outside of torch.compile"):
        torch.compile(call, fullgraph=True, backend="eager")(x)
    assert torch.equal(torch.compile(call, backend="eager")(x), call(x))


def test_inference_tensors_and_gradients(impl: str) -> None:
    """They cannot be kept for a backward pass: they behave as their copies do."""
    x, labels = batch(9, 3)
    y, ref_labels = batch(5, 3)
    phi, lists = PHI[:5], (torch.tensor([0, 2]), torch.tensor([1, 3]))
    own = torch.tensor([-1, 0, 4, 1, -1, -1, 2, 3, -1])
    with torch.inference_mode():
        inference = {id(v): v.clone() for v in (x, labels, y, ref_labels, own, PHI, SHARP, phi, *lists)}

    def gradients(same, leaf: Tensor, call) -> list[Tensor]:
        leaf = leaf.clone().requires_grad_()
        loss = call(leaf, lambda v: inference[id(v)] if same else v).sum()
        return [loss.detach(), *torch.autograd.grad(loss, leaf)]

    references = {"ref_emb": y, "ref_labels": ref_labels}
    calls = [
        (x, lambda v, of: ops.distance_mixture(v, of(labels), of(PHI), impl=impl)),
        (x, lambda v, of: ops.focal_weighting(v, of(labels), of(SHARP), impl=impl, reduction="mean")),
        (PHI, lambda v, of: ops.distance_mixture(of(x), of(labels), v, impl=impl)),
        (x, lambda v, of: ops.pairwise_distance(v, of(y), impl=impl)),
        (y, lambda v, of: ops.pairwise_distance(of(x), v, impl=impl)),
        (x, lambda v, of: ops.mixture_pairs(v, *map(of, lists), of(phi), positive=True, impl=impl)),
        (x, lambda v, of: ops.mixture_triplets(v, *map(of, (*lists, lists[0])), of(PHI), impl=impl)),
    ]
    for op, parameters in ((ops.distance_mixture, PHI), (ops.focal_weighting, SHARP)):
        calls.append(
            (
                x,
                lambda v, of, op=op, parameters=parameters: op(
                    v, of(labels), parameters, impl=impl, **{k: of(r) for k, r in references.items()}
                ),
            )
        )
    calls.append(
        (
            x,
            lambda v, of: ops.distance_mixture(
                v, labels, PHI, own=of(own), impl=impl, ref_emb=y, ref_labels=ref_labels
            ),
        )
    )
    for leaf, call in calls:
        for found, expected in zip(gradients(True, leaf, call), gradients(False, leaf, call)):
            assert torch.equal(found, expected)


def test_vmap_over_labels(impl: str) -> None:
    x, labels = batch(8, 3)
    many, index = torch.stack([labels, labels.flip(0)]), torch.tensor([[0, 1], [1, 2]])
    refused = [
        ("labels", many, lambda v: ops.distance_statistics(x, v, impl=impl)),
        ("labels", many, lambda v: ops.positive_ranks(x, v, impl=impl)),
        ("ref_labels", many, lambda v: ops.positive_ranks(x, labels, ref_emb=x, ref_labels=v, impl=impl)),
        ("anchors", index, lambda v: ops.mixture_pairs(x, v, v, PHI[:5], positive=True, impl=impl)),
        ("own", many, lambda v: ops.distance_mixture(x, labels, PHI, ref_emb=x, ref_labels=labels, own=v)),
    ]
    for name, batched, call in refused:
        with pytest.raises(NotImplementedError, match=f"vmap over {name} is not supported"):
            torch.vmap(call)(batched)
    for op, phi, _ in map(loss_op, LOSSES):
        call = torch.vmap(lambda v, op=op, phi=phi: op(x, v, phi, impl=impl))
        if impl == "native":
            with pytest.raises(NotImplementedError, match="vmap over"):
                call(many)
        else:
            torch.testing.assert_close(call(many), torch.stack([op(x, v, phi, impl=impl) for v in many]))


def test_vmap_says_no(impl: str) -> None:
    x, labels = batch(8, 3)
    with pytest.raises(NotImplementedError, match="vmap over emb is not supported"):
        torch.vmap(lambda v: ops.distance_mixture(v, labels, PHI, impl=impl))(x.expand(2, 8, 3))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_of_no_anchors_is_zero(impl: str, loss: str) -> None:
    op, phi, _ = loss_op(loss)
    x = torch.empty(0, 4, requires_grad=True)
    for emb in (x, x.detach()):
        value = op(emb, torch.empty(0, dtype=torch.int64), phi, impl=impl, reduction="mean")
        assert value.item() == 0
    op(x, torch.empty(0, dtype=torch.int64), phi, impl=impl, reduction="mean").backward()
    assert x.grad.shape == (0, 4)


def test_derivatives_that_are_not_there_are_refused(impl: str) -> None:
    """Torch takes a missing forward-mode derivative for zero."""
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) // 2
    phi, a, b = torch.rand(10, dtype=torch.float64), torch.tensor([0, 2]), torch.tensor([1, 3])
    calls = {
        "distance_mixture": lambda x: ops.distance_mixture(x, labels, phi, impl=impl),
        "focal_weighting": lambda x: ops.focal_weighting(x, labels, phi[:2] + 1, impl=impl),
        "pairwise_distance": lambda x: ops.pairwise_distance(x, impl=impl),
        "mixture_pairs": lambda x: ops.mixture_pairs(x, a, b, phi[:5], positive=True, impl=impl),
        "mixture_triplets": lambda x: ops.mixture_triplets(x, a, b, b, phi, impl=impl),
    }
    for name, call in calls.items():
        if impl == "reference":
            forward, backward = torch.func.jacfwd(call)(x), torch.func.jacrev(call)(x)
            torch.testing.assert_close(forward, backward)
            continue
        with pytest.raises(NotImplementedError, match=name):
            torch.func.jvp(call, (x,), (x,))
        with pytest.raises(NotImplementedError, match=name):
            torch.func.grad(lambda x, call=call: call(x).sum())(x)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=name):
            call(forward_ad.make_dual(x, x))
    if impl != "reference":
        with pytest.raises(NotImplementedError, match="distance_mixture"):
            torch.func.jvp(lambda p: ops.distance_mixture(x, labels, p, impl=impl), (phi,), (phi,))
    with pytest.raises(NotImplementedError, match="vmap over phi"):
        torch.vmap(lambda p: ops.distance_mixture(x, labels, p, impl=impl))(phi.expand(2, 10))


def test_offset_may_change_under_compile(impl: str) -> None:
    x, labels, phi = torch.randn(6, 3), torch.arange(6) // 2, torch.tensor([2.0, 8.0])

    def call(offset: float) -> Tensor:
        return ops.focal_weighting(x, labels, phi, offset=offset, impl=impl)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    for offset in (1.0, 0.5, 0.25):
        torch.testing.assert_close(compiled(offset), call(offset))


def test_autocast(impl: str) -> None:
    x, labels = batch(8, 3, torch.float32)
    expected = ops.distance_mixture(x, labels, PHI.float(), impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.distance_mixture(x, labels, PHI.float(), impl=impl)
    assert found.dtype == torch.float32
    assert relative(found, expected) < 1e-6  # distances never drop to bf16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_under_autocast(impl: str, dtype) -> None:
    x, labels = batch(32, 16, torch.float32)
    expected = ops.distance_statistics(x, labels, impl=impl)
    with torch.autocast("cpu", dtype=dtype):
        found = ops.distance_statistics(x, labels, impl=impl)
    assert torch.equal(found, expected)


def test_eight_python_threads(impl: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, labels = batch(97, 8)
    expected = ops.distance_mixture(x, labels, PHI, impl=impl)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ops.distance_mixture(x, labels, PHI, impl=impl), range(32)))
    assert all(torch.equal(f, expected) for f in found)


# ------------------------------------------------------------------------------------------------ opcheck
@pytest.mark.parametrize("own", [True, False])
def test_opcheck_strips(own: bool) -> None:
    x, labels = batch(5, 3)
    x.requires_grad_()
    y, ref_labels = (None, None) if own else batch(4, 3)
    phi = PHI.clone().requires_grad_()
    sharp = SHARP.clone().requires_grad_()
    strips = torch.ops.ala_metric_strips
    a, b = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 3])
    for op, args in (
        (strips.distance_mixture, (x, labels, phi, y, ref_labels)),
        (strips.distance_mixture, (x, labels, phi, *batch(4, 3), 0, torch.tensor([3, -1, 0, 1, 1]))),
        (strips.focal_weighting, (x, labels, sharp, 1.0, y, ref_labels)),
        (strips.pairwise_distance, (x, y)),
        (strips.mixture_pairs, (x, a, b, phi[:5].detach(), True, y)),
        (strips.distance_statistics, (x.detach(), labels, y, ref_labels)),
    ):
        torch.library.opcheck(op.default, args)


def test_strips_refuse_a_second_derivative() -> None:
    x, labels = batch(5, 3)
    x.requires_grad_()
    first = torch.autograd.grad(
        ops.distance_mixture(x, labels, PHI, impl="strips").sum(), x, create_graph=True
    )[0]
    with pytest.raises(NotImplementedError, match="distance_mixture is differentiable once"):
        first.square().sum().backward()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("distance", [1e3, 1e8])
def test_focal_shares_sum_to_one_at_huge_exponents(impl: str, distance: float, weighted: bool) -> None:
    # Three positives at one distance d share the gradient 1 of log(3 exp d). A logarithm rounded to float32
    # is off by 3e-5 at 1e3, and by log 3 at 1e8: then the gradient would be 3.
    emb = torch.zeros(2, 1, requires_grad=True)
    ref = torch.full((3, 1), distance)
    labels = torch.zeros(2, dtype=torch.int64)
    loss = ops.focal_weighting(
        emb, labels, torch.ones(2), ref_emb=ref, ref_labels=torch.zeros(3, dtype=torch.int64), impl=impl
    )
    weights = torch.tensor([0.25, 2.0]) if weighted else torch.ones(2)  # unequal: a pass of its own
    (weights * loss).sum().backward()
    torch.testing.assert_close(emb.grad, -weights[:, None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [math.nan, math.inf])
def test_focal_offset_must_be_finite(impl: str, offset: float) -> None:
    x, labels = batch(5, 3)
    with pytest.raises(ValueError, match="offset must be finite, got (nan|inf)"):
        ops.focal_weighting(x, labels, SHARP, offset=offset, impl=impl)


# ----------------------------------------------------------------------------------------------- selector
@pytest.mark.parametrize("offset", ["a", None])
def test_focal_offset_must_be_a_number(impl: str, offset) -> None:
    with pytest.raises(TypeError, match=f"offset must be a finite number, got {offset!r}"):
        ops.focal_weighting(*batch(4, 3), SHARP, offset=offset, impl=impl)


def test_sparse_tensors_are_refused(impl: str) -> None:
    x, labels = batch(4, 3)
    with pytest.raises(TypeError, match=r"x must be a dense tensor, got one of layout torch.sparse_coo"):
        ops.pairwise_distance(x.to_sparse(), impl=impl)
    with pytest.raises(TypeError, match="labels must be a dense tensor"):
        ops.distance_mixture(x, labels.to_sparse(), PHI, impl=impl)


def test_selector_says_why() -> None:
    for choice in ops.explain("cpu").values():
        assert choice.impl in ("native", "strips")
        assert choice.reason
    assert ops.explain("cuda")["distance_mixture"].impl == "strips"
    with pytest.raises(
        ValueError, match="impl must be 'auto', 'native', 'strips' or 'reference', got 'fast'"
    ):
        ops.distance_mixture(*batch(3, 2), PHI, impl="fast")


def test_native_demanded_where_absent(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    from ala_metric.ops import _select

    monkeypatch.setattr(_select, "_native_obstacle", lambda op, device: "not built")
    with pytest.raises(RuntimeError, match="impl='native' cannot run distance_mixture on cpu: not built"):
        ops.distance_mixture(*batch(3, 2), PHI, impl="native")
    assert ops.distance_mixture(*batch(3, 2), PHI, impl="auto").shape == (3,)


def test_set_checks_refuses_unknown() -> None:
    with pytest.raises(ValueError, match="level must be"):
        ala.set_checks("some")


# ------------------------------------------------------------------------------------- large, and processes
@pytest.mark.slow
def test_more_pairs_than_32_bits_count(impl: str) -> None:
    """46,349 is prime, and its square is beyond 2^31; some anchors against float64 on their own row."""
    if impl == "reference":
        pytest.skip("the reference holds all pairs by definition: 17 GB")
    if impl == "strips":
        pytest.skip("strips count the pairs of one strip only")
    n = 46_349
    x, labels = torch.rand(n, 1), torch.arange(n) % 5
    found = ops.focal_weighting(x, labels, torch.tensor([2.0, 8.0]), impl=impl)
    for i in range(0, n, 20_000):
        d = (x.double() - x[i].double()).abs()[:, 0]
        same = labels == labels[i]
        same[i] = False
        pull, push = torch.exp(2 * (d[same] - 1)), torch.exp(-8 * (d[labels != labels[i]] - 1))
        expected = torch.log1p(pull.sum()) / 2 + torch.log1p(push.sum()) / 8
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-5)  # float32 sums of 46,349 terms


def test_strips_never_lower_the_precision_of_products() -> None:
    """With the flags that allow bfloat16 or TF32 for float32 products; some CPUs have neither."""
    x, labels = torch.nn.functional.normalize(torch.randn(130, 512)), torch.arange(130) % 7
    x.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        loss = ops.distance_mixture(x, labels, torch.ones(10), impl="strips")
        return loss.detach(), *torch.autograd.grad(loss.sum(), x)

    wanted = run()
    flags = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [flag.fp32_precision for flag in flags]
    try:
        torch.set_float32_matmul_precision("medium")
        lowered = [flag.fp32_precision for flag in flags]
        found = run()
        assert [flag.fp32_precision for flag in flags] == lowered
        with products(), products(tf32=True), products():
            assert {flag.fp32_precision for flag in flags} == {"ieee"}
        assert [flag.fp32_precision for flag in flags] == lowered
    finally:
        torch.set_float32_matmul_precision("highest")
        for flag, kept in zip(flags, before):
            flag.fp32_precision = kept
    for one, other in zip(found, wanted):
        assert torch.equal(one, other)
