"""The short way from a call to its gradient: whatever it skips, the answer is that of the long way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ala_metric import _native, ops

if not _native.native_info().available:
    pytest.skip(f"no native library: {_native.native_info().reason}", allow_module_level=True)

from ala_metric.ops import native

PHI = {
    "distance_mixture": torch.tensor([1.0, 0.3, 0.7, 0.2, 0.9, 0.8, 0.4, 0.6, 0.5, 0.1], dtype=torch.float64),
    "focal_weighting": torch.tensor([2.0, 8.0], dtype=torch.float64),
}
LOSSES = sorted(PHI)
N, D = 13, 7


def points(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)
    return emb, torch.randint(4, (rows,), generator=generator)


def reference(name: str, *inputs: Tensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Value and gradients of emb, phi and ref_emb by N x M matrices and torch's own autograd, in float64."""
    emb, labels, phi, *references = inputs
    emb, phi = (x.detach().double().requires_grad_() for x in (emb, phi))
    given = {}
    if references:
        given = {"ref_emb": references[0].detach().double().requires_grad_(), "ref_labels": references[1]}
    loss = reduce(getattr(ops, name)(emb, labels, phi, impl="reference", **given))
    leaves = (emb, phi, *([given["ref_emb"]] if given else []))
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def close(found: Tensor, expected: Tensor) -> None:
    # float64 throughout: sums in another order; the mixture's near pairs lose a few digits more
    torch.testing.assert_close(found.double(), expected, rtol=1e-9, atol=1e-11)


# After sum() the gradient is one expanded number, after mean() equal ones, else anything.
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda v: v.sum() * 0.37,
    "mean": lambda v: v.mean() * -2.3,
    "one row": lambda v: v[3] * 1.7,
    "last differs": lambda v: v.sum() + 0.5 * v[-1],
    "first differs": lambda v: v.sum() - 0.25 * v[0],
    "zero": lambda v: v.sum() * 0,
    "every other": lambda v: v[::2].mean(),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wanted", ["emb", "phi", "ref", "all", "batch"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_reduction_and_every_set_of_wanted_gradients(name: str, wanted: str, reduction: str) -> None:
    emb, labels = points(N, 1)
    ref, ref_labels = points(11, 2)
    reduce = REDUCTIONS[reduction]
    given = () if wanted == "batch" else (ref, ref_labels)
    expected = reference(name, emb, labels, PHI[name], *given, reduce=reduce)
    x = emb.clone().requires_grad_(wanted in ("emb", "all", "batch"))
    phi = PHI[name].clone().requires_grad_(wanted in ("phi", "all"))
    y = ref.clone().requires_grad_(wanted in ("ref", "all"))
    references = {"ref_emb": y, "ref_labels": ref_labels} if given else {}
    loss = reduce(getattr(ops, name)(x, labels, phi, impl="native", **references))
    close(loss.detach(), expected[0])
    loss.backward()
    leaves = (x, phi, y)[: len(expected) - 1]
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        if leaf.requires_grad:
            assert leaf.grad is not None
            close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("rows", [0, 1, N])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_of_its_own_is_the_mean_of_the_losses(name: str, wanted: tuple[bool, bool], rows: int) -> None:
    emb, labels = points(rows, 12, torch.float32)
    given = {"emb": emb, "labels": labels, "impl": "native", "phi": PHI[name].float()}
    found = []
    for reduction in ("none", "mean"):
        x, phi = (given[key].clone().requires_grad_(on) for key, on in zip(("emb", "phi"), wanted))
        loss = getattr(ops, name)(**given | {"emb": x, "phi": phi}, reduction=reduction).mean()
        assert loss.ndim == 0
        if any(wanted):
            for _ in range(2):  # a retained graph
                (loss * -2.3).backward(retain_graph=True)
        found.append((loss.detach(), x.grad, phi.grad))
    for each, mean in zip(*found):
        assert (each is None) == (mean is None)
        if each is not None:
            expected = each if rows > 0 else torch.zeros_like(each)  # torch's mean of nothing is NaN
            assert torch.equal(mean, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_of_its_own_makes_no_second_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emb, labels = points(N, 13, torch.float32)
    loss = getattr(ops, name)(emb.requires_grad_(), labels, PHI[name], impl="native", reduction="mean")
    monkeypatch.setattr(native, "_ops", None)  # nor a look at values, which would wait for a GPU
    monkeypatch.setattr(torch, "aminmax", None)
    loss.backward()
    assert emb.grad is not None


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "its own mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_batched_backward_passes(name: str, reduction: str) -> None:
    emb, labels = points(N, 15)
    x = emb.clone().requires_grad_()
    reduce = REDUCTIONS.get(reduction)
    losses = getattr(ops, name)(x, labels, PHI[name], impl="native", reduction="none" if reduce else "mean")
    loss = reduce(losses) if reduce else losses
    plain = torch.autograd.grad(loss, x, retain_graph=True)[0]
    two = torch.stack([loss, 2 * loss])
    (both,) = torch.autograd.grad(two, x, torch.eye(2, dtype=two.dtype), is_grads_batched=True)
    close(both[0], plain)
    close(both[1], 2 * plain)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_of_its_own_keeps_no_constants(name: str) -> None:
    (emb, labels), (ref, ref_labels) = points(N, 16), points(11, 17)
    x = emb.clone().requires_grad_()
    loss = getattr(ops, name)(
        x, labels, PHI[name], ref_emb=ref, ref_labels=ref_labels, impl="native", reduction="mean"
    )
    ref.zero_()  # a queue that moves on
    loss.backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_of_its_own_in_traces(name: str) -> None:
    emb, labels = points(N, 14, torch.float32)
    x, y = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    op = functools.partial(getattr(ops, name), impl="native", reduction="mean")
    op(x, labels, PHI[name]).backward()
    torch.compile(op, fullgraph=True, backend="aot_eager")(y, labels, PHI[name]).backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-5, atol=1e-7)  # float32 sums scaled before or after
    with pytest.raises(ValueError, match="reduction must be 'none' or 'mean', got 'sum'"):
        op(x, labels, PHI[name], reduction="sum")


@pytest.mark.parametrize("name", LOSSES)
def test_unusual_layouts_and_dtypes(name: str) -> None:
    emb, labels = points(N, 3, torch.float32)
    wide = torch.zeros(2 * N, 2 * D)
    wide[::2, 1::2] = emb
    apart = torch.zeros(2 * N, dtype=torch.int32)
    apart[::2] = labels.int()
    phi = torch.zeros(2 * len(PHI[name]))
    phi[::2] = PHI[name]
    op = getattr(ops, name)
    plain = emb.clone().requires_grad_()
    expected = op(plain, labels, PHI[name].float(), impl="native")
    expected.mean().backward()
    for strided in (True, False):
        x = (wide[::2, 1::2] if strided else emb.t().contiguous().t()).detach().requires_grad_()
        found = op(x, apart[::2], phi[::2], impl="native")
        found.mean().backward()
        assert torch.equal(found, expected)
        assert torch.equal(x.grad, plain.grad)
    half = emb.bfloat16().requires_grad_()
    again = half.detach().float().requires_grad_()
    for x in (half, again):
        op(x, labels.short(), PHI[name], impl="native").mean().backward()
    assert torch.equal(half.grad, again.grad.bfloat16())


@pytest.mark.parametrize("name", LOSSES)
def test_backward_twice_and_with_hooks(name: str) -> None:
    emb, labels = points(N, 4)
    leaf = emb.clone().requires_grad_()
    x = leaf * 1
    seen: list[Tensor] = []
    x.register_hook(lambda g: seen.append(g) or g * 2)
    losses = getattr(ops, name)(x, labels, PHI[name], impl="native")
    losses.register_hook(lambda g: g * 3)
    loss = losses.mean()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    (uneven,) = torch.autograd.grad(losses[0], leaf, retain_graph=True)
    first.mul_(100)  # a gradient is the caller's own
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(second, kept)
    (plain,) = reference(name, emb, labels, PHI[name], reduce=torch.mean)[1:2]
    close(kept, plain * 6)
    close(uneven, reference(name, emb, labels, PHI[name], reduce=lambda v: v[0])[1] * 6)
    assert len(seen) == 3
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("name", LOSSES)
def test_what_changed_since_the_forward_pass_is_noticed(name: str) -> None:
    emb, labels = points(N, 5)
    leaf = emb.clone().requires_grad_()
    x, phi = leaf * 1, PHI[name].clone()
    for changed in (x, phi):
        loss = getattr(ops, name)(x, labels, phi, impl="native").mean()
        with torch.no_grad():
            changed.mul_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward(retain_graph=True)


@pytest.mark.parametrize("name", LOSSES)
def test_not_a_number_as_a_weight_stays_one(name: str) -> None:
    emb, labels = points(N, 6)
    x = emb.clone().requires_grad_()
    losses = getattr(ops, name)(x, labels, PHI[name], impl="native")
    (losses.mean() * torch.nan).backward()
    assert x.grad is not None
    assert x.grad.isnan().all()


@pytest.mark.parametrize("name", LOSSES)
def test_grad_modes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emb, labels = points(N, 7)
    op, phi = getattr(ops, name), PHI[name].clone().requires_grad_()
    x = emb.clone().requires_grad_()
    expected = op(x, labels, phi, impl="native")
    assert expected.requires_grad
    monkeypatch.setattr(native, "_functions", {})  # no gradient is computed from here on
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = op(x, labels, phi, impl="native")
            made_here = op(emb * 1, labels, PHI[name], impl="native")  # an inference tensor, in that mode
        assert not found.requires_grad
        assert torch.equal(found, expected)
        assert torch.equal(made_here, expected)
    assert not op(emb, labels, PHI[name], impl="native").requires_grad
    with torch.inference_mode():
        unrecorded = emb * 1
    assert torch.equal(op(unrecorded, labels, PHI[name], impl="native"), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_and_tracing(name: str) -> None:
    emb, labels = points(N, 8, torch.bfloat16)
    op, phi = getattr(ops, name), PHI[name].float()

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = op(x, labels, phi, impl="native").mean()
        return loss, torch.autograd.grad(loss, x)[0]

    plain = step(emb.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = step(emb.clone().requires_grad_())
    for one, two in zip(plain, under, strict=True):
        assert torch.equal(one, two)
    x, y = (emb.float().requires_grad_() for _ in range(2))
    loss = op(x, labels, phi, impl="native").mean()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(y, labels, phi, impl="native").mean()
    assert torch.equal(loss, compiled)
    loss.backward()
    compiled.backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_that_are_not_plain(name: str) -> None:
    class Tagged(Tensor):
        pass

    emb, labels = points(N, 9)
    op = getattr(ops, name)
    plain, tagged = emb.clone().requires_grad_(), emb.clone().as_subclass(Tagged).requires_grad_()
    for x in (plain, tagged):
        op(x, labels, PHI[name], impl="native").mean().backward()
    assert torch.equal(plain.grad, tagged.grad.as_subclass(Tensor))
    parameter = torch.nn.Parameter(emb.clone())
    op(parameter, labels, PHI[name], impl="native").mean().backward()
    assert torch.equal(plain.grad, parameter.grad)

    from torch._subclasses.fake_tensor import FakeTensorMode

    leaf = emb.clone().requires_grad_()
    with FakeTensorMode() as mode:  # no values to look at, forward or backward
        fake = mode.from_tensor(leaf)
        loss = getattr(native, name)(fake, mode.from_tensor(labels), mode.from_tensor(PHI[name])).mean()
        (gradient,) = torch.autograd.grad(loss, fake)
    assert gradient.shape == emb.shape
    with pytest.raises(NotImplementedError, match="vmap over emb"):
        torch.vmap(lambda x: op(x, labels, PHI[name], impl="native"))(torch.stack([emb, emb]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_derivative_is_refused_after_every_reduction(name: str) -> None:
    emb, labels = points(N, 10)
    for reduce in (torch.sum, torch.mean, lambda v: v[0]):
        x = emb.clone().requires_grad_()
        loss = reduce(getattr(ops, name)(x, labels, PHI[name], impl="native"))
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiable once"):
            gradient.sum().backward()
    loss = getattr(ops, name)(x, labels, PHI[name], impl="native", reduction="mean")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", LOSSES)
def test_bad_values_are_refused_on_the_short_way(name: str) -> None:
    emb, labels = points(N, 11)
    op = getattr(ops, name)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = emb.clone()
        broken[4, 2] = bad
        with pytest.raises(ValueError, match="NaN or Inf in 1 of 13 rows"):
            op(broken.requires_grad_(), labels, PHI[name], impl="native")
        phi = PHI[name].clone()
        phi[1] = bad
        with pytest.raises(ValueError, match="phi must be finite"):
            op(emb, labels, phi, impl="native")
    opposite = emb.clone()
    opposite[0, 0], opposite[0, 1] = torch.inf, -torch.inf
    with pytest.raises(ValueError, match="NaN or Inf in 1 of 13 rows"):
        op(opposite, labels, PHI[name], impl="native")
    huge = torch.full((2, D), 1e308, dtype=torch.float64)  # finite, though their sum is not
    op(huge, labels[:2], PHI[name], impl="native")


@pytest.mark.parametrize("name", LOSSES)
def test_what_an_operator_keeps_is_not_differentiable(name: str) -> None:
    emb, labels = points(N, 12)
    offset = () if name == "distance_mixture" else (1.0,)
    operator = getattr(torch.ops.ala_metric, name)
    loss, *kept = operator(emb.requires_grad_(), labels, PHI[name], *offset, None, None, True, False, False)
    assert loss.requires_grad
    assert not any(x.requires_grad for x in kept)


def test_known_values_is_of_one_thread() -> None:
    from ala_metric.ops._check import _values_are_checked, known_values

    answers: list[bool] = []
    with known_values():
        assert not _values_are_checked(torch.ones(1))
        other = threading.Thread(target=lambda: answers.append(_values_are_checked(torch.ones(1))))
        other.start()
        other.join()
    assert answers == [True]
    assert _values_are_checked(torch.ones(1))
