"""On a CUDA device: the operators against float64. ``benchmarks/gpu.sh`` runs this file there."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import ala_metric as ala
from ala_metric import losses, metrics, ops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PHI = torch.tensor([1.0, 0.3, 0.2, 0.4, 0.6, 0.9, 0.5, 0.7, 0.25, 0.8])
SHAPES = [(67, None, 31), (131, None, 128), (130, 61, 64), (5, 199, 513)]
# float32 as measured in emulation; the products of a BLAS add in another order
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def batch(n: int, m: int | None, d: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(n + d)

    def rows(count: int) -> Tensor:
        x = torch.randn(count, d, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(x).to("cuda", dtype)

    def labels(count: int) -> Tensor:
        return torch.randint(0, 5, (count,), generator=generator).cuda()

    return rows(n), labels(n), *((None, None) if m is None else (rows(m), labels(m)))


def gradients(loss: Any, inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs, weights.to(value))]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    error = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    assert error <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
@pytest.mark.parametrize("op", ["mixture", "focal"])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_small(op: str, n: int, m: int | None, d: int, dtype: torch.dtype, weighted: bool) -> None:
    x, labels, y, ref_labels = batch(n, m, d, dtype)
    function = ops.distance_mixture if op == "mixture" else ops.focal_weighting
    phi = (PHI if op == "mixture" else torch.tensor([2.0, 8.0])).cuda()

    def run(impl: Any, kind: torch.dtype) -> list[Tensor]:
        inputs = [t.detach().to(kind).requires_grad_() for t in (x, phi.double(), y) if t is not None]
        weights = torch.linspace(0.5, 2, n, device="cuda", dtype=torch.float64)
        weights = weights if weighted else torch.ones((), device="cuda", dtype=torch.float64).expand(n)

        def loss(emb: Tensor, phi: Tensor, ref: Tensor | None = None) -> Tensor:
            return function(emb, labels, phi, ref_emb=ref, ref_labels=ref_labels, impl=impl)

        if kind in TOLERANCE:
            return gradients(loss, inputs, weights)
        return [loss(*inputs).detach()]  # gradients would be rounded to 16 bits

    exact = run("reference", torch.float64)
    for found, wanted in zip(run("native", dtype), exact):
        close(found, wanted, TOLERANCE.get(dtype, 2e-6))


def test_ranks_small() -> None:
    for cosine in ("euclidean", "cosine"):
        x, labels, y, ref_labels = batch(130, 61, 40)
        for ref in ((None, None), (y, ref_labels)):
            where = {"ref_emb": ref[0], "ref_labels": ref[1], "distance": cosine, "ties": "both"}
            found, offsets = ops.positive_ranks(x, labels, impl="native", **where)
            wanted, _ = ops.positive_ranks(x, labels, impl="strips", **where)
            assert found.is_cuda
            assert offsets.is_cuda
            assert torch.equal(found, wanted)


def test_distances_and_statistics_small() -> None:
    x, labels, y, _ = batch(67, 61, 33)
    for ref in (None, y):
        close(
            ops.pairwise_distance(x, ref, impl="native"),
            torch.cdist(x.double(), (x if ref is None else ref).double()),
            2e-6,
        )
    native = ops.distance_statistics(x, labels, impl="native")
    close(native, ops.distance_statistics(x.double(), labels, impl="reference"), 2e-6)


def test_mined_small() -> None:
    x, _, _, _ = batch(67, None, 300)
    lists = torch.randint(0, 67, (3, 500), generator=torch.Generator().manual_seed(0)).cuda()

    def run(impl: Any, kind: torch.dtype) -> list[Tensor]:
        inputs = [x.detach().to(kind).requires_grad_(), PHI.cuda().to(kind).requires_grad_()]
        weights = torch.linspace(0.5, 2, 500, device="cuda")
        out = gradients(lambda e, p: ops.mixture_triplets(e, *lists, p, impl=impl), inputs, weights)
        for positive in (True, False):
            pairs = partial(ops.mixture_pairs, positive=positive, impl=impl)
            mine = [inputs[0], PHI.cuda()[:5].to(kind).requires_grad_()]
            out += gradients(lambda e, p, pairs=pairs: pairs(e, *lists[:2], p), mine, weights)
        return out

    for found, wanted in zip(run("native", torch.float32), run("reference", torch.float64)):
        close(found, wanted, 2e-6)


def test_flags_of_torch_do_not_reach_the_products_small() -> None:
    x, labels, _, _ = batch(300, None, 513)
    before = torch.backends.cuda.matmul.allow_tf32
    results = []
    try:
        for flag in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = flag
            results.append(ops.distance_mixture(x, labels, PHI.cuda(), impl="native"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(*results)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("impl", ["native", "strips"])
@pytest.mark.parametrize("d", [31, 128, 513])
def test_lowered_products_small(d: int, impl: Any, precision: Any) -> None:
    """Those of the rounded rows, as strips take them on a CPU in float32."""
    x, labels, _, _ = batch(300, None, d)
    weights = torch.linspace(0.5, 2, 300)
    most = {"tf32": 2.0**-11, "bf16": 2.0**-8}[precision]
    for name, phi in (("distance_mixture", PHI), ("focal_weighting", torch.tensor([2.0, 8.0]))):

        def run(emb: Tensor, name: str = name, phi: Tensor = phi, **more: Any) -> list[Tensor]:
            leaf = emb.detach().clone().requires_grad_()
            op = partial(getattr(ops, name), labels=labels.to(emb.device), phi=phi.to(emb), **more)
            return [t.cpu() for t in gradients(op, [leaf], weights.to(emb.device))]

        found = run(x, impl=impl, precision=precision)
        rounded = run(x.cpu(), impl="strips", precision=precision)
        truth = run(x.double(), impl="reference")
        close(found[0], rounded[0], 2e-6)
        close(found[1], truth[1], 2 * most)
        # the tensor cores add in another order, and cut their sums off; G may round the other way
        close(found[1], rounded[1], most)
    near = torch.cat([x, x + 1e-3 * x.roll(1, 0)])
    found_near = ops.pairwise_distance(near, impl=impl, precision=precision).diagonal(300)
    close(found_near, torch.linalg.vector_norm((near[:300].double() - near[300:].double()), dim=1), 2e-6)
    loss = losses.DistanceMixtureLoss(impl=impl, precision=precision).cuda()
    assert torch.isfinite(loss(x, labels))


@pytest.mark.parametrize("d", [128, 513])
def test_a_call_is_captured_in_a_graph_and_repeats_its_bits(d: int) -> None:
    x, labels, _, _ = batch(700, None, d)
    x.requires_grad_()
    phi = PHI.cuda()

    def step() -> tuple[Tensor, Tensor]:
        loss = ops.distance_mixture(x, labels, phi, impl="native").mean()
        return loss, torch.autograd.grad(loss, x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = [t.detach().clone() for t in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for found, truth in zip(captured, wanted):
        assert torch.equal(found.detach(), truth)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    x, labels, _, _ = batch(67, None, 31)
    wanted = ops.distance_mixture(x, labels, PHI.cuda(), impl="native")
    other = torch.device("cuda", 1)
    found = ops.distance_mixture(x.to(other), labels.to(other), PHI.to(other), impl="native")
    assert found.device == other
    assert torch.equal(found.cpu(), wanted.cpu())


@pytest.mark.slow
def test_more_pairs_than_an_int_can_count() -> None:
    x, _, _, _ = batch(46_400, None, 16)
    labels = torch.arange(46_400, device="cuda") // 8
    torch.cuda.reset_peak_memory_stats()
    loss = ops.distance_mixture(x, labels, PHI.cuda(), impl="native")
    assert torch.cuda.max_memory_allocated() < 1 << 30
    rows = torch.tensor([0, 1, 23_000, 46_399], device="cuda")
    distance = torch.cdist(x[rows].double(), x.double())
    same = labels[rows, None] == labels
    itself = rows[:, None] == torch.arange(46_400, device="cuda")
    wanted = ops.mixture_of_matrix(distance, same & ~itself, ~same, PHI.cuda().double())
    close(loss[rows], wanted, 2e-6)


def test_metrics_stay_on_the_device() -> None:
    x, labels, _, _ = batch(131, None, 31)
    found = metrics.retrieval(x, labels, k=(1, 5), impl="native")
    assert found == metrics.retrieval(x.cpu(), labels.cpu(), k=(1, 5), impl="native")


def test_what_is_said_of_the_library() -> None:
    info = ala.native_info()
    assert info.cuda_available, info.cuda_reason
    # or the products would be the library's own: right, and slow
    assert ctypes.CDLL(str(info.path)).ala_metric_torch_finds_cublas() == 1
    assert ops.explain("cuda")["distance_mixture"].impl == "native"
