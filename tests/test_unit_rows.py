"""Unit rows: values and gradients against float64 formulas and torch's own, in every mode of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ala_metric.losses import DistanceMixtureLoss
from ala_metric.losses._distance import _unit_rows as plain
from ala_metric.losses._distance import normalize


def rows(n: int, d: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) * scale).to(dtype)


def gradient(function, x: Tensor, grad: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    function(x).backward(grad)
    return x.grad


@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e16, 1e30])  # squares vanish, or overflow, in float32
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (257, 61)])
def test_values_and_gradients(n: int, d: int, scale: float) -> None:
    x, grad = rows(n, d, torch.float32, scale), rows(n, d, torch.float32).flip(0)
    exact = x.double()
    # 4e-7: a few roundings of float32; the gradient's, relative to the row's before its part along is taken
    unit = exact / exact.pow(2).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(normalize(x).double(), unit, rtol=4e-7, atol=0)
    found = gradient(normalize, x, grad).double() * scale
    expected = gradient(torch.nn.functional.normalize, exact / scale, grad.double())
    size = (grad.double() / (exact / scale).norm(dim=1, keepdim=True)).norm(dim=1)
    assert ((found - expected).norm(dim=1) <= 4e-7 * size).all()


def test_every_mode_of_autograd() -> None:
    x = rows(5, 3).requires_grad_()
    assert gradcheck(normalize, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(normalize, x)
    backward, forward = torch.func.jacrev(normalize)(x), torch.func.jacfwd(normalize)(x)
    torch.testing.assert_close(backward, torch.autograd.functional.jacobian(normalize, x))
    torch.testing.assert_close(backward, forward)
    stacked = torch.stack([x, x.flip(0)])
    torch.testing.assert_close(torch.vmap(normalize)(stacked)[1], normalize(x.flip(0)))
    compiled = torch.compile(normalize, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), normalize(x))


def test_zero_rows_among_others() -> None:
    x, grad = rows(5, 3), rows(5, 3).flip(0)
    x[2] = 0
    others = [0, 1, 3, 4]
    found = gradient(normalize, x, grad)
    assert found[2].abs().max() == 0
    assert normalize(x)[2].abs().max() == 0
    torch.testing.assert_close(found[others], gradient(normalize, x[others], grad[others]))


def test_the_short_gradient_is_that_of_the_formula() -> None:
    x, grad = rows(17, 11), rows(17, 11).flip(0)
    torch.testing.assert_close(
        gradient(normalize, x, grad), gradient(lambda x: plain(x)[0], x, grad), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing(shape: tuple[int, int]) -> None:
    x = torch.empty(shape, requires_grad=True)
    assert normalize(x).shape == shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    x = rows(4, 3, torch.float32)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        DistanceMixtureLoss()(x, torch.tensor([0, 0, 1, 1]))


def test_one_of_three_sub_losses_is_not_summed_in_half_precision() -> None:
    x, labels = rows(8, 3), torch.arange(8) // 2
    loss = DistanceMixtureLoss()
    half = x.half()
    assert loss(half, labels).dtype == torch.float32
    torch.testing.assert_close(loss(half, labels), loss(half.float(), labels), rtol=0, atol=0)
