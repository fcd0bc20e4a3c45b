"""``precision=``: who takes it, who refuses it, and what it costs. For the kernels: tests/cuda_emulation."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ala_metric as ala
from ala_metric import losses, ops
from ala_metric.ops._strips import _products, products, rounded
from tests.toolchain import compiler

ROOT = Path(__file__).resolve().parents[1]
HALF_UNIT = {"tf32": 2.0**-11, "bf16": 2.0**-8}
PHI = torch.tensor([1.0, 0.3, 0.2, 0.4, 0.6, 0.9, 0.5, 0.7, 0.25, 0.8])
SHARP = torch.tensor([2.0, 8.0])


def batch(n: int = 67, d: int = 31) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + d)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    return x, torch.arange(n) % 7


def call(name: str, x: Tensor, labels: Tensor, **more: Any) -> Tensor:
    if name == "pairwise_distance":
        return ops.pairwise_distance(x, **more)
    if name == "distance_statistics":
        return ops.distance_statistics(x, labels, **more)
    phi = (PHI if name == "distance_mixture" else SHARP).to(x.dtype)
    function: Callable[..., Tensor] = getattr(ops, name)
    return function(x, labels, phi, **more)


OPS = ["pairwise_distance", "distance_mixture", "focal_weighting", "distance_statistics"]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_numbers_are_rounded_to_nearest(precision: str) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(
        -20, 20
    ).repeat(250)
    x = torch.cat([x, torch.tensor([0.0, 1.0, torch.inf, torch.nan])])
    found = rounded(x, ["fp32", "tf32", "bf16"].index(precision))
    lost = 13 if precision == "tf32" else 16
    finite = x.isfinite()
    assert not (found[finite].view(torch.int32) & (2**lost - 1)).any()
    unit = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 24 + lost).double()
    assert ((found.double() - x.double()).abs()[finite] <= unit[finite] / 2).all()
    assert not found[~finite].isfinite().any()  # never a finite lie
    if precision == "bf16":  # but for ties, which torch takes to even
        ties = (x.view(torch.int32) & 0xFFFF) == 0x8000
        assert torch.equal(found[finite & ~ties], x.bfloat16().float()[finite & ~ties])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", OPS)
def test_strips_round_and_others_need_not(name: str, precision: Any) -> None:
    x, labels = batch()
    for impl in ("strips", "reference", "auto"):
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        found = call(name, leaf, labels, impl=impl, precision=precision)
        plain = call(name, x, labels, impl=impl)
        wanted = call(name, exact, labels, impl="reference")
        if impl != "strips":
            assert torch.equal(found, plain)
            continue
        assert 3e-6 < relative(found, wanted) < HALF_UNIT[precision]
        if name == "distance_statistics":
            continue
        weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(1))
        (grad,) = torch.autograd.grad(found, leaf, weights)
        (truth,) = torch.autograd.grad(wanted, exact, weights.double())
        # 0.4 half units of rounding, where positives and negatives cancel (focal) more
        assert 3e-6 < relative(grad, truth) < 2 * HALF_UNIT[precision]


def test_near_pairs_keep_their_digits() -> None:
    x = batch()[0]
    x = torch.cat([x, x + 1e-3 * batch(67, 31)[0].roll(1, 0)])
    found = ops.pairwise_distance(x, impl="strips", precision="bf16").diagonal(67)
    wanted = ops.pairwise_distance(x.double(), impl="reference").diagonal(67)
    assert relative(found, wanted) < 1e-6


@pytest.mark.parametrize("impl", ["auto", "strips", "reference"])
@pytest.mark.parametrize("name", OPS)
def test_what_is_refused(name: str, impl: Any) -> None:
    x, labels = batch(5, 3)
    with pytest.raises(ValueError, match="precision must be 'fp32', 'tf32' or 'bf16', got 'fp16'"):
        call(name, x, labels, impl=impl, precision="fp16")
    with pytest.raises(ValueError, match=r"precision='tf32' is for float32, .* got torch.float64"):
        call(name, x.double(), labels, impl=impl, precision="tf32")
    assert call(name, x.double(), labels, impl=impl, precision="fp32").dtype == torch.float64


def test_what_the_operators_refuse() -> None:
    if not ala.native_info().available:
        pytest.skip(ala.native_info().reason)
    x = batch(5, 3)[0]
    for rows, precision in ((x, 3), (x, -1), (x.double(), 1)):
        with pytest.raises((ValueError, RuntimeError), match="precision must be"):
            torch.ops.ala_metric.pairwise_distance(rows, None, precision)


@pytest.mark.parametrize("make", [losses.DistanceMixtureLoss, losses.FocalWeightingLoss])
def test_losses_hand_it_down(make: Any) -> None:
    x, labels = batch()
    loss = make(impl="strips", precision="bf16")
    assert "precision='bf16'" in repr(loss)
    assert "precision='fp32'" in repr(make())
    exact, lowered = make(impl="strips")(x, labels), loss(x, labels)
    assert 3e-6 < abs(lowered.item() / exact.item() - 1) < HALF_UNIT["bf16"]
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), losses.DistributedLoss(loss)):
        assert torch.equal(other(x, labels), lowered)
    queue, plain = (
        losses.CrossBatchMemory(make(impl="strips", precision=p), 31, memory_size=80)
        for p in ("bf16", "fp32")
    )
    found = [queue(x, labels).item() for _ in range(2)]
    wanted = [plain(x, labels).item() for _ in range(2)]
    assert found != wanted
    assert found == pytest.approx(wanted, rel=2 * HALF_UNIT["bf16"])
    assert not torch.equal(loss.statistics(x, labels), make(impl="strips").statistics(x, labels))
    with pytest.raises(ValueError, match="precision must be"):
        make(precision="half")
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        loss(x.double(), labels)


def test_a_loss_pickled_before_there_was_a_precision() -> None:
    loss = losses.DistanceMixtureLoss()
    del loss.__dict__["precision"]
    assert pickle.loads(pickle.dumps(loss)).precision == "fp32"


def test_threads_that_want_float32_win() -> None:
    """The flags of torch are the process's: TF32 only while nobody in here needs float32."""
    flags = _products[0]
    before = flags.fp32_precision
    seen, entered, leave = [], threading.Event(), threading.Event()

    def exact() -> None:
        with products():
            entered.set()
            leave.wait(60)

    with products(tf32=True):
        seen.append(flags.fp32_precision)
        other = threading.Thread(target=exact)
        other.start()
        entered.wait(60)
        seen.append(flags.fp32_precision)
        leave.set()
        other.join()
        seen.append(flags.fp32_precision)
    assert [value == "tf32" for value in seen] == [True, False, True]
    assert flags.fp32_precision == before


BLAS = r"""
#define ALA_WITH_CUDA 1
#include "torch/cuda.h"
static int told[2];
extern "C" int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int a_type, int,
                            const void*, int, int, const void*, void*, int, int, int compute, int) {
  told[0] = a_type, told[1] = compute;
  return 0;
}
extern "C" int cublasCreate_v2(void** handle) { return *handle = told, 0; }
extern "C" int cublasSetStream_v2(void*, void*) { return 0; }
extern "C" int cublasSetWorkspace_v2(void*, void*, size_t) { return 0; }
extern "C" int compute(int dtype, int precision) {
  ala::cuda_binding::Blas blas(0, nullptr, nullptr);
  const double x = 1;
  double y = 0;
  if (!blas.works()) return -1;
  const int32_t failed = ala::cuda_binding::Blas::multiply(
      &blas, nullptr, ala_dtype(dtype), ala_precision(precision), 0, 1, 1, 1, &x, 1, &x, 1, &y, 1);
  if (failed) return -2;
  return told[0] * 1000 + told[1];
}
"""


def test_the_type_of_every_product_is_said(tmp_path: Path) -> None:
    """To a cuBLAS of our own making: CUDA_R_32F = 0, CUDA_R_64F = 1; the compute types of cublas_api.h."""
    (tmp_path / "blas.cpp").write_text(BLAS)
    command = [compiler(), "-std=c++17", "-shared", "-fPIC", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
    subprocess.run([*command, tmp_path / "blas.cpp", "-o", tmp_path / "blas.so"], check=True)
    compute = ctypes.CDLL(str(tmp_path / "blas.so")).compute
    assert compute(0, 0) == 68  # CUBLAS_COMPUTE_32F, which no flag of torch's lowers
    assert compute(0, 1) == 77  # CUBLAS_COMPUTE_32F_FAST_TF32
    assert compute(0, 2) == 75  # CUBLAS_COMPUTE_32F_FAST_16BF
    assert compute(1, 0) == 1070  # CUBLAS_COMPUTE_64F of CUDA_R_64F
