"""``own`` of the distance mixture: the reference that is the anchor itself, struck out by hand row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ala_metric import ops
from ala_metric.ops import _strips
from tests import oracle

PHI = torch.tensor([1.0, 0.3, 0.7, 0.2, 0.9, 0.8, 0.4, 0.6, 0.5, 0.1], dtype=torch.float64)
PAPER = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=torch.float64)
# (61, 2099) and (503, 331) are several blocks of columns and of rows; rows of 1 lie on a line
SHAPES = [(1, 1, 1), (1, 2, 3), (7, 11, 3), (13, 1, 5), (61, 2099, 19), (503, 331, 7), (0, 3, 2)]
# relative L2 against float64: float32 keeps 24 bits, near pairs on a line average nothing
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def problem(n: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A third of the anchors is in the queue, some of them twice; other own rows are no such row, or none."""
    generator = torch.Generator().manual_seed(100 * n + m)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    x, y = (torch.nn.functional.normalize(v) if d > 1 else v for v in (x, y))
    labels, ref_labels = (torch.randint(3, (k,), generator=generator) for k in (n, m))
    own = torch.randint(m, (n,), generator=generator)
    for i in range(n):
        if i % 3 == 0:
            for j in (int(own[i]), (int(own[i]) + 1) % m)[: 1 + i % 2]:  # itself, and a double that counts
                y[j], ref_labels[j] = x[i], labels[i]
        if i % 3 == 1:
            own[i] = -1
    return {
        "emb": x.to(dtype),
        "labels": labels,
        "ref_emb": y.to(dtype),
        "ref_labels": ref_labels,
        "own": own,
    }


def results(inputs: dict[str, Tensor], phi: Tensor, impl: Any, weights: Tensor) -> list[Tensor]:
    """Losses, and the gradients of their weighted sum with respect to rows, references and phi."""
    leaves = {k: inputs[k].clone().requires_grad_() for k in ("emb", "ref_emb")}
    phi = phi.to(inputs["emb"], copy=True).requires_grad_()
    losses = ops.distance_mixture(**{**inputs, **leaves}, phi=phi, impl=impl)
    return [losses.detach(), *torch.autograd.grad(losses, [*leaves.values(), phi], weights.to(losses))]


def by_hand(inputs: dict[str, Tensor], phi: Tensor, weights: Tensor) -> list[Tensor]:
    """The same in float64, one anchor after the other, with the references that it has left."""
    x, y = (inputs[k].double().requires_grad_() for k in ("emb", "ref_emb"))
    phi = phi.clone().requires_grad_()
    losses = []
    for i, own in enumerate(inputs["own"].tolist()):
        left = torch.arange(len(y)) != own
        losses += [
            ops.distance_mixture(
                x[i : i + 1],
                inputs["labels"][i : i + 1],
                phi,
                ref_emb=y[left],
                ref_labels=inputs["ref_labels"][left],
                impl="reference",
            )
        ]
    total = torch.cat([x[:0, 0], *losses])
    grads = torch.autograd.grad(total, (x, y, phi), weights, allow_unused=True, materialize_grads=True)
    return [total.detach(), *grads]


def distant(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-3))


@pytest.mark.parametrize(("n", "m", "d"), [s for s in SHAPES if s[0] * s[1] < 100])
def test_equals_double_loops(impl: Any, n: int, m: int, d: int) -> None:
    inputs = problem(n, m, d)
    found = ops.distance_mixture(**inputs, phi=PHI, impl=impl)
    for i, own in enumerate(inputs["own"].tolist()):
        left = [j for j in range(m) if j != own]
        rows, labels = inputs["ref_emb"][left].tolist(), inputs["ref_labels"][left].tolist()
        (expected,) = oracle.mixture(
            inputs["emb"][i : i + 1].tolist(),
            inputs["labels"][i : i + 1].tolist(),
            PHI.tolist(),
            rows,
            labels,
        )
        assert abs(float(found[i]) - expected) < 1e-10 * (1 + abs(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("phi", [PHI, PAPER], ids=["all", "paper"])
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_losses_and_gradients(impl: Any, n: int, m: int, d: int, phi: Tensor, dtype: torch.dtype) -> None:
    inputs = problem(n, m, d, dtype)
    weights = torch.linspace(0.3, 1.4, n, dtype=torch.float64)
    expected = by_hand(inputs, phi, weights)
    for one, other in zip(results(inputs, phi, impl, weights), expected, strict=True):
        assert distant(one, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("phi", [PHI, PAPER], ids=["all", "paper"])
def test_mean_against_constant_references(impl: Any, phi: Tensor, dtype: torch.dtype) -> None:
    """As in a memory bank: references are packed when their turn comes, a table gives the negatives."""
    inputs = problem(61, 2099, 19, dtype)
    x = inputs["emb"].clone().requires_grad_()
    found = ops.distance_mixture(**{**inputs, "emb": x}, phi=phi.to(dtype), impl=impl, reduction="mean")
    losses, gradient, *_ = by_hand(inputs, phi, torch.full((61,), 1 / 61, dtype=torch.float64))
    assert distant(found.detach(), losses.mean()) < TOLERANCE[dtype]
    assert distant(torch.autograd.grad(found, x)[0], gradient) < TOLERANCE[dtype]


def test_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weights = problem(7, 11, 3), torch.linspace(0.3, 1.4, 7, dtype=torch.float64)
    monkeypatch.setitem(_strips._STRIP_BYTES, "cpu", 2 * 11 * 8)
    for one, other in zip(
        results(inputs, PHI, "strips", weights), by_hand(inputs, PHI, weights), strict=True
    ):
        assert distant(one, other) < TOLERANCE[torch.float64]


def test_nothing_left_is_zero(impl: Any) -> None:
    inputs = problem(1, 1, 1)
    assert inputs["own"].tolist() == [0]
    assert all(not r.any() for r in results(inputs, PHI, impl, torch.ones(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_none_of_them_is_no_own(impl: Any, dtype: torch.dtype) -> None:
    """Anchors without an own row have the bits that they have without the argument."""
    inputs = problem(61, 2099, 19, dtype)
    weights = torch.linspace(0.3, 1.4, 61)
    none = results({**inputs, "own": torch.full_like(inputs["own"], -1)}, PHI, impl, weights)
    without = results({k: v for k, v in inputs.items() if k != "own"}, PHI, impl, weights)
    assert all(torch.equal(a, b) for a, b in zip(none, without, strict=True))
    absent = inputs["own"] < 0
    some = ops.distance_mixture(**inputs, phi=PHI.to(dtype), impl=impl)
    del inputs["own"]
    every = ops.distance_mixture(**inputs, phi=PHI.to(dtype), impl=impl)
    assert torch.equal(some[absent], every[absent])
    assert (some != every)[~absent].all()


def test_bits_do_not_depend_on_threads() -> None:
    if ops.explain("cpu")["distance_mixture"].impl != "native":
        pytest.skip("torch.mm itself changes bits with threads")
    inputs, weights = problem(503, 331, 7, torch.float32), torch.linspace(0.3, 1.4, 503)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(inputs, PHI, "native", weights))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_layouts_and_dtypes(impl: Any) -> None:
    inputs = problem(7, 11, 3)
    expected = ops.distance_mixture(**inputs, phi=PHI, impl=impl)
    apart = torch.full((14,), 99)
    apart[::2] = inputs["own"]
    for own in (inputs["own"].to(torch.int8), apart[::2]):
        assert torch.equal(ops.distance_mixture(**{**inputs, "own": own}, phi=PHI, impl=impl), expected)


def test_refusals(impl: Any) -> None:
    inputs = problem(7, 11, 3)

    def refused(error: type[Exception], match: str, **changed: Any) -> None:
        with pytest.raises(error, match=match):
            ops.distance_mixture(**{**inputs, **changed}, phi=PHI, impl=impl)

    own = inputs["own"]
    refused(ValueError, r"own must have shape \[7\]", own=own[:6])
    refused(TypeError, "own must have an integer dtype", own=own.double())
    refused(ValueError, "own was given without ref_emb", ref_emb=None, ref_labels=None)
    for bad in (-2, 11):
        wrong = own.clone()
        wrong[3] = bad
        refused(ValueError, rf"own must lie in \[-1, 10\], got values from .*{bad}", own=wrong)


def test_the_kernel_checks_for_itself() -> None:
    if ops.explain("cpu")["distance_mixture"].impl != "native":
        pytest.skip("no native library")
    inputs = problem(7, 11, 3)
    rows = inputs["emb"], inputs["labels"], PHI, inputs["ref_emb"], inputs["ref_labels"]
    op, own = torch.ops.ala_metric.distance_mixture, inputs["own"]
    for wrong, match in (
        (own.index_fill(0, torch.tensor([3]), 11), r"own\[3\] must be in \[-1, 11\), got 11"),
        (own.index_fill(0, torch.tensor([3]), -2), r"own\[3\] must be in \[-1, 11\), got -2"),
        (own[:6], r"own must be contiguous with shape \[7\]"),
        (own.int(), "own must be int64"),
    ):
        with pytest.raises(ValueError, match=match):
            op(*rows, True, False, False, 0, wrong)
    with pytest.raises(ValueError, match="own must not be given without ref_emb"):
        op(*rows[:3], None, None, True, False, False, 0, own)
