"""CUDA kernels: time and memory, as ratios to the two products that any dense implementation must spend.

Run by ``benchmarks/gpu.sh``. Times are medians of CUDA events; several input sets take turns, so that no
cache keeps one of them. TF32 is pinned: the unit is cuBLAS in true float32, and its TF32 time is a row of its
own. ``--dry-run`` walks the same cases at small sizes through the emulation, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ala_metric import ops

from . import kernels

SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK = (1024, 4096)
DIMS = (128, 512)
DENSE_LIMIT = 16384  # beyond it an N x N autograd graph needs tens of GiB
BLOCK = 8192  # rows of the unit's products at a time: the whole S of N = 65,536 is 16 GiB
SETS = 3
Call = Callable[[int], object]  # of the number of an input set


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring per provider and case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.dry_run:
        found = list(emulated())
        where = {"device": "emulation on a CPU: times mean nothing", "date": date.today().isoformat()}
    elif not torch.cuda.is_available():
        print("no CUDA device; --dry-run walks the cases without one")
        return 1
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
        where = conditions()
        found = list(measured(QUICK if options.quick else SIZES, options.seconds))
    name = "gpu-dry-run" if options.dry_run else "gpu"
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"conditions": where, "rows": found}
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    text = markdown(where, found)
    (options.out / f"{name}.md").write_text(text)
    print(text)
    return 0


def conditions() -> dict[str, str]:
    """What a result depends on: card, driver, clocks, versions."""
    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total"
    smi = "nvidia-smi was not found"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        smi = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return {
        "device": torch.cuda.get_device_name(),
        query: smi,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def milliseconds(call: Call, seconds: float) -> tuple[float, float, int]:
    """Median and interquartile range of one call, after a warm-up."""
    for turn in range(SETS):
        call(turn)
    torch.cuda.synchronize()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 200):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call(len(times) % SETS)
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    q1, middle, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return middle, q3 - q1, len(times)


def row(case: str, provider: str, call: Call, seconds: float) -> dict[str, Any]:
    """Time and extra memory of one provider; what failed is a row too."""
    try:
        call(0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - held
        middle, spread, rounds = milliseconds(call, seconds)
    except Exception as error:  # out of memory, or a peer that cannot: the others go on
        torch.cuda.empty_cache()
        return {"case": case, "provider": provider, "failed": f"{type(error).__name__}: {error}"[:200]}
    return {
        "case": case,
        "provider": provider,
        "ms": middle,
        "ms_iqr": spread,
        "rounds": rounds,
        "peak_mib": peak / 2**20,
    }


def measured(sizes: tuple[int, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of all cases, each with its ratio to the unit."""
    for d in DIMS:
        for n in sizes:
            yield from with_ratios(pair_losses(n, d, seconds))
            yield from with_ratios(retrieval(n, d, seconds))


def with_ratios(found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ratios to the first row, which is the unit."""
    unit: float | None = None
    for one in found:
        if unit is None:
            unit = one.get("ms")
        if unit and "ms" in one:
            one["ratio"] = one["ms"] / unit
        text = f"{one.get('ratio', float('nan')):.3f}x" if "ms" in one else one["failed"]
        print(one["case"], one["provider"], text, flush=True)
        yield one


def inputs(n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(n, d, generator=generator) for _ in range(SETS)]
    return [torch.nn.functional.normalize(x).to("cuda", dtype) for x in sets]


def two_products(sets: list[Tensor]) -> Call:
    n, d = sets[0].shape
    s = torch.empty(min(n, BLOCK), n, device="cuda", dtype=sets[0].dtype)
    g = torch.empty(n, d, device="cuda", dtype=sets[0].dtype)

    def call(turn: int) -> None:
        x = sets[turn]
        for first in range(0, n, BLOCK):
            rows = slice(first, first + BLOCK)
            torch.mm(x[rows], x.T, out=s)
            torch.mm(s, x, out=g[rows])

    return call


def with_tf32(call: Call) -> Call:
    def pinned(turn: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            call(turn)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return pinned


def step(loss: Callable[[Tensor, Tensor], Tensor], sets: list[Tensor], labels: Tensor) -> Call:
    leaves = [x.clone().requires_grad_() for x in sets]

    def call(turn: int) -> None:
        leaves[turn].grad = None
        loss(leaves[turn], labels).backward()

    return call


def dense(name: str, x: Tensor, labels: Tensor) -> Tensor:
    """What a careful user writes; see benchmarks/kernels.py."""
    square = (x * x).sum(1)
    distance = (square[:, None] + square - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    phi = kernels.PHI[name].to(x.device)
    if name == "mixture":
        return ops.mixture_of_matrix(distance, positive, ~same, phi).mean()
    return ops.focal_of_matrix(distance, positive, ~same, phi, 1.0).mean()


def fused(name: str, impl: Any, x: Tensor, labels: Tensor) -> Tensor:
    op = ops.distance_mixture if name == "mixture" else ops.focal_weighting
    return op(x, labels, kernels.PHI[name].to(x.device), impl=impl).mean()


def pair_losses(n: int, d: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Forward and gradient of the mixture and of focal weighting, against their peers."""
    case = f"{n}x{d}"
    sets, labels = inputs(n, d), torch.arange(n, device="cuda") // 8
    products = two_products(sets)
    yield row(case, "two products (cuBLAS, float32)", products, seconds)
    yield row(case, "two products (cuBLAS, TF32)", with_tf32(products), seconds)
    for name in ("mixture", "focal"):
        native, strips = partial(fused, name, "native"), partial(fused, name, "strips")
        yield row(case, f"{name} native", step(native, sets, labels), seconds)
        half = [x.bfloat16() for x in sets]
        yield row(case, f"{name} native, bfloat16 in", step(native, half, labels), seconds)
        yield row(case, f"{name} strips", step(strips, sets, labels), seconds)
        if n > DENSE_LIMIT:
            continue
        yield row(case, f"{name} eager", step(partial(dense, name), sets, labels), seconds)
        torch._dynamo.reset()
        compiled = torch.compile(partial(dense, name), dynamic=False)
        yield row(case, f"{name} torch.compile", step(compiled, sets, labels), seconds)
    if n <= DENSE_LIMIT:
        from pytorch_metric_learning import losses

        peer = losses.MultiSimilarityLoss()
        yield row(case, "PML MultiSimilarity", step(lambda x, y: peer(x, y), sets, labels), seconds)
    yield row(case, "statistics native", lambda t: ops.distance_statistics(sets[t], labels), seconds)


def retrieval(n: int, d: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Ranks of all positives, leave-one-out, against searches for the nearest 1,000."""
    case = f"ranks {n}x{d}"
    sets, labels = inputs(n, d), torch.arange(n, device="cuda") // 4
    k = min(n, 1001)

    def topk(turn: int) -> None:
        x = sets[turn]
        for first in range(0, n, BLOCK):
            (x[first : first + BLOCK] @ x.T).topk(k, dim=1)

    yield row(case, "torch mm + topk", topk, seconds)
    yield row(case, "native, all", lambda t: ops.positive_ranks(sets[t], labels, impl="native"), seconds)
    first = lambda t: ops.positive_ranks(sets[t], labels, impl="native", first_only=True)  # noqa: E731
    yield row(case, "native, first", first, seconds)
    try:
        import faiss
        import faiss.contrib.torch_utils

        resources = faiss.StandardGpuResources()
    except (ImportError, RuntimeError, AttributeError) as error:
        yield {"case": case, "provider": "faiss-gpu", "failed": f"not here: {error}"[:200]}
        return

    def search(turn: int) -> None:
        index = faiss.GpuIndexFlatL2(resources, d)
        index.add(sets[turn])
        for begin in range(0, n, BLOCK):
            index.search(sets[turn][begin : begin + BLOCK], k)

    yield row(case, "faiss-gpu", search, seconds)


def emulated() -> Iterator[dict[str, Any]]:
    """The cases of this script at small sizes, on the emulated kernels, compared with float64."""
    from tests.cuda_emulation import cases, library

    lib = library.Emulated(library.build())
    pair_ops = {"mixture": cases.mixture, "focal": cases.focal, "statistics": cases.statistics}
    for d in DIMS:
        for name, go in (pair_ops | {"ranks": cases.ranks}).items():
            case = cases.Case(97, None, d, "float32")
            start = time.perf_counter()
            go(lib.use(), case)
            yield {
                "case": f"97x{d}",
                "provider": f"{name}, emulated: agrees with float64",
                "ms": 1000 * (time.perf_counter() - start),
                "rounds": 1,
            }


def markdown(where: dict[str, str], found: list[dict[str, Any]]) -> str:
    lines = ["# CUDA kernels", "", *(f"- {key}: {value}" for key, value in where.items()), ""]
    lines += ["| case | provider | ms | ratio | extra MiB |", "|---|---|---|---|---|"]
    for one in found:
        if "failed" in one:
            lines.append(f"| {one['case']} | {one['provider']} | {one['failed']} | | |")
            continue
        ratio = f"{one['ratio']:.3f}" if "ratio" in one else ""
        memory = f"{one['peak_mib']:.0f}" if "peak_mib" in one else ""
        lines.append(f"| {one['case']} | {one['provider']} | {one['ms']:.3f} | {ratio} | {memory} |")
    return "\n".join(lines) + "\n"
