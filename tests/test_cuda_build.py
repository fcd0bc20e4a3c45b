"""What nvcc makes of the CUDA kernels, and what a machine without CUDA is told."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

import ala_metric as ala
from ala_metric import _native, ops
from ala_metric.ops import _select
from benchmarks import ptxas
from tests.cuda_emulation import library
from tests.toolchain import compiler

ROOT = Path(__file__).resolve().parents[1]
MOST_REGISTERS = 255


@pytest.mark.slow
def test_no_kernel_spills_or_outgrows_its_bounds() -> None:
    """On every architecture of the wheel; what did not change is not compiled again."""
    if ptxas.nvcc() is None:
        pytest.skip("no nvcc: the CUDA kernels were not compiled")
    found = ptxas.compile_all(ptxas.architectures(), 2)
    assert {kernel.arch for kernel in found} == {75, 80, 86, 89, 90, 100, 120}
    names = {kernel.name.split("<")[0] for kernel in found}
    assert {"fused_kernel", "strip_kernel", "rank_count", "mined_gradient", "product_kernel"} <= names
    for kernel in found:
        assert kernel.spill_bytes == 0, kernel
        assert kernel.registers <= MOST_REGISTERS, kernel
        assert kernel.static_shared == 0, kernel  # all of it is dynamic, and in the table of bounds
        if kernel.arch in ptxas.SM:
            assert kernel.blocks() >= (1 if kernel.arch == 80 or kernel.threads == 256 else 2), kernel


def test_spills_are_seen() -> None:
    """In the words of ptxas."""
    text = (
        "ptxas info    : Compiling entry function '_ZN3ala4cuda10rank_countENS0_7RankSetE' for 'sm_90'\n"
        "ptxas info    : Function properties for _ZN3ala4cuda10rank_countENS0_7RankSetE\n"
        "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 1 barriers, 16 bytes smem\n"
    )
    (kernel,) = ptxas.kernels(text, 90)
    assert kernel == ptxas.Kernel("rank_count", 90, 168, 8, 8, 16)


def test_the_committed_table_is_of_all_kernels() -> None:
    table = (ROOT / "docs" / "ptxas.md").read_text()
    for path in (ROOT / "csrc" / "cuda").iterdir():
        for name in re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", path.read_text()):
            assert f"`{name}" in table, f"{name}: run make cuda-report"


def test_one_list_of_architectures() -> None:
    assert ptxas.architectures() == [75, 80, 86, 89, 90, 100, 120]


def test_a_large_batch_needs_little_memory() -> None:
    """N = 65,536 in less than 1 GiB; the size query looks at no data."""
    emulated = library.Emulated(library.build(compiler=compiler()))
    for d, path in ((128, 1), (512, 2)):
        emulated.use(path=path)
        request = library.REQUESTS["distance_mixture"]()
        request.x = request.y = library.Matrix(256, 0, 65_536, d, d, 1)
        request.symmetric = 1
        request.loss = request.grad_x = request.grad_phi = request.phi = request.x_labels = 256
        size = ctypes.c_int64()
        function = emulated.library.ala_cuda_distance_mixture_workspace
        assert function(ctypes.byref(request), ctypes.byref(emulated.context), ctypes.byref(size), None) == 0
        outputs = 65_536 * (d + 1) * 4
        assert size.value + outputs + (32 << 20) < 1 << 30


def test_cuda_tensors_go_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    info = _native.native_info()
    if not info.available:
        pytest.skip(info.reason)
    for available in (True, False):
        fields = {**vars(info), "cuda_available": available, "cuda_reason": "" if available else "no driver"}
        monkeypatch.setattr(
            _select._native, "native_info", lambda fields=fields: _native.NativeInfo(**fields)
        )
        choice = ops.explain("cuda")["distance_mixture"]
        assert choice.impl == ("native" if available else "strips")
        assert available or choice.reason == "no driver"
    assert ops.explain("meta")["distance_mixture"].impl == "strips"


def test_why_cuda_is_off_is_said() -> None:
    info = ala.native_info()
    if torch.cuda.is_available():
        pytest.skip("CUDA is on here")
    assert not info.cuda_available
    assert info.cuda_reason


def test_an_expanded_gradient_scales_what_is_there() -> None:
    from ala_metric.ops import native

    class OnCuda:  # a tensor that says it is on CUDA; no values are read
        is_cuda, ndim, shape = True, 1, (4,)

        def __init__(self, stride: int) -> None:
            self.steps = stride

        def stride(self, _: int) -> int:
            return self.steps

        def __getitem__(self, _: int) -> float:
            return 0.5

    units = [torch.ones(2), torch.empty(0)]
    assert native._scaled(OnCuda(0), units) is None  # a second derivative may follow
    with torch.no_grad():
        scaled = native._scaled(OnCuda(0), units)
        assert scaled is not None
        assert [t.tolist() for t in scaled] == [[0.5, 0.5], []]
        assert native._scaled(OnCuda(1), units) is None
