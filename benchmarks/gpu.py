"""CUDA kernels: time and memory, as ratios to the two products that any dense implementation must spend.

Run by ``benchmarks/gpu.sh``. Times are medians of CUDA events; several input sets take turns, so that no
cache keeps one of them. TF32 is pinned: the unit is cuBLAS in true float32, and its TF32 time is a row of its
own. ``--dry-run`` walks the same cases at small sizes through the emulation, without a GPU.
"""

from __future__ import annotations

import argparse
import functools
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

SIZES = (8192, 4096, 16384, 65536, 32768, 1024, 2048)  # what matters most comes first
QUICK = (4096, 1024)
DIMS = (128, 512)
DENSE_LIMIT = 16384  # beyond it an N x N autograd graph needs tens of GiB
BLOCK = 8192  # rows of the unit's products at a time: the whole S of N = 65,536 is 16 GiB
SETS = 3
UNIT = "two products (cuBLAS, float32)"
Call = Callable[[int], object]  # of the number of an input set
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--stage", choices=["ours", "peers"], help="one half of the rows; default: both")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring per provider and case")
    parser.add_argument("--minutes", type=float, default=600, help="no row is begun after so many")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--state", type=Path, help="folder of the rows so far; default: none are kept")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device; --dry-run walks the cases without one")
        return 1
    if options.dry_run:
        where = {"device": "emulation on a CPU: times mean nothing", "date": date.today().isoformat()}
    else:
        exact_products(True)
        where = conditions()
    record = Record(where, options.out, "gpu-dry-run" if options.dry_run else "gpu", options.state)
    until = time.monotonic() + 60 * options.minutes
    stages = [options.stage] if options.stage else ["ours", "peers"]
    sizes = QUICK if options.quick else SIZES
    tasks = emulated() if options.dry_run else [t for s in stages for t in planned(s, sizes)]
    for number, (case, provider, make) in enumerate(tasks):
        if record.has(case, provider):
            continue
        if time.monotonic() > until:
            print(f"out of time with {len(tasks) - number} rows to go; the same command goes on from here")
            return 1
        record.add(row(case, provider, make, options.seconds, timed=not options.dry_run))
    # a peer may be missing; in emulation nothing may fail
    return int(options.dry_run and any("failed" in one for one in record.rows))


class Record:
    """The rows so far. Each is appended to a file at once, and the tables are written anew."""

    def __init__(self, where: dict[str, str], out: Path, name: str, state: Path | None) -> None:
        self.where, self.out, self.name, self.rows = where, out, name, list[Row]()
        self.kept = None if state is None else state / f"{name}-{where['device'].replace('/', ' ')}.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        if self.kept is not None:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            if self.kept.exists():  # the last line may have been cut short
                lines = self.kept.read_text().split("\n")[:-1]
                self.rows = [json.loads(line) for line in lines]
        self.write()

    def has(self, case: str, provider: str) -> bool:
        """Whether this row was measured before; one that failed is tried again."""
        return any((r["case"], r["provider"]) == (case, provider) and "failed" not in r for r in self.rows)

    def add(self, one: Row) -> None:
        """Keep a row."""
        self.rows = [r for r in self.rows if (r["case"], r["provider"]) != (one["case"], one["provider"])]
        self.rows.append(one)
        if self.kept is not None:
            with self.kept.open("a") as file:
                file.write(json.dumps(one) + "\n")
        self.write()
        shown = f"{one['ms']:.3f} ms, {one.get('ratio', float('nan')):.3f}x" if "ms" in one else one["failed"]
        print(one["case"], one["provider"], shown, flush=True)

    def write(self) -> None:
        """The tables, with ratios to the two products of the case where it has them."""
        units = {r["case"]: r["ms"] for r in self.rows if r["provider"] == UNIT and "ms" in r}
        for one in self.rows:
            if "ms" in one and one["case"] in units:
                one["ratio"] = one["ms"] / units[one["case"]]
        record = {"conditions": self.where, "rows": self.rows}
        (self.out / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (self.out / f"{self.name}.md").write_text(markdown(self.where, self.rows))


def exact_products(exact: bool) -> None:
    torch.set_float32_matmul_precision("highest" if exact else "high")


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


def row(case: str, provider: str, make: Callable[[], Call], seconds: float, timed: bool = True) -> Row:
    """Time and extra memory of one provider; what failed is a row too."""
    try:
        call = make()
        if not timed:
            start = time.perf_counter()
            call(0)
            elapsed = 1000 * (time.perf_counter() - start)
            return {"case": case, "provider": provider, "ms": elapsed, "rounds": 1}
        call(0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - held
        middle, spread, rounds = milliseconds(call, seconds)
    except Exception as error:  # out of memory, or a peer that is not here: the others go on
        if timed:
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


Task = tuple[str, str, Callable[[], Call]]  # case, provider, what makes the call


def planned(stage: str, sizes: tuple[int, ...]) -> list[Task]:
    """What is to be measured, the dearest peers last."""
    every = [(n, d) for n in sizes for d in DIMS]
    if stage == "ours":
        return [task for n, d in every for task in ours(n, d)]
    dense_sizes = [(n, d) for n, d in every if n <= DENSE_LIMIT]
    return [
        *(task for n, d in every for task in searches(n, d)),
        *(task for n, d in dense_sizes for task in peers(n, d)),
        *(task for n, d in dense_sizes for task in compiled(n, d)),
    ]


@functools.lru_cache(maxsize=2)
def inputs(n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    sets = [torch.randn(n, d, generator=generator, device="cuda") for _ in range(SETS)]
    return [torch.nn.functional.normalize(x).to(dtype) for x in sets]


def classes(n: int, size: int) -> Tensor:
    return torch.arange(n, device="cuda") // size


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
        exact_products(False)
        try:
            call(turn)
        finally:
            exact_products(True)

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


def fused(name: str, impl: Any, x: Tensor, labels: Tensor, precision: Any = "fp32") -> Tensor:
    op = ops.distance_mixture if name == "mixture" else ops.focal_weighting
    return op(x, labels, kernels.PHI[name].to(x.device), impl=impl, precision=precision, reduction="mean")


def ours(n: int, d: int) -> Iterator[Task]:
    """The unit, forward and gradient of the pair losses, and ranks of all positives, leave-one-out."""
    case = f"{n}x{d}"
    yield case, UNIT, lambda: two_products(inputs(n, d))
    half = functools.partial(inputs, n, d, torch.bfloat16)
    for name in ("mixture", "focal"):
        native, strips = partial(fused, name, "native"), partial(fused, name, "strips")
        yield case, f"{name} native", lambda f=native: step(f, inputs(n, d), classes(n, 8))
        yield case, f"{name} native, bfloat16 in", lambda f=native: step(f, half(), classes(n, 8))
        yield case, f"{name} strips", lambda f=strips: step(f, inputs(n, d), classes(n, 8))
        for precision in ("tf32", "bf16"):
            lowered = partial(native, precision=precision)
            yield case, f"{name} native, {precision}", lambda f=lowered: step(f, inputs(n, d), classes(n, 8))
    yield case, "mixture native, default shapes", lambda: step(default_shapes, inputs(n, d), classes(n, 8))
    yield case, "two products (cuBLAS, TF32)", lambda: with_tf32(two_products(inputs(n, d)))
    yield case, "statistics native", lambda: partial(statistics_of, inputs(n, d), classes(n, 8))
    for kind, first in (("all", False), ("first", True)):
        make = lambda f=first: partial(ranks_of, inputs(n, d), classes(n, 4), f)  # noqa: E731
        yield f"ranks {case}", f"native, {kind}", make


def default_shapes(x: Tensor, labels: Tensor) -> Tensor:
    phi = torch.zeros(10, device=x.device)
    phi[0] = phi[5] = 1
    return ops.distance_mixture(x, labels, phi, impl="native", reduction="mean")


def statistics_of(sets: list[Tensor], labels: Tensor, turn: int) -> Tensor:
    return ops.distance_statistics(sets[turn], labels, impl="native")


def ranks_of(sets: list[Tensor], labels: Tensor, first: bool, turn: int) -> object:
    return ops.positive_ranks(sets[turn], labels, impl="native", first_only=first)


def peers(n: int, d: int) -> Iterator[Task]:
    """The pair losses as plain PyTorch, and a loss of pytorch-metric-learning."""
    case = f"{n}x{d}"
    for name in ("mixture", "focal"):
        eager = partial(dense, name)
        yield case, f"{name} eager", lambda f=eager: step(f, inputs(n, d), classes(n, 8))

    def similarity() -> Call:
        from pytorch_metric_learning import losses

        peer = losses.MultiSimilarityLoss()
        return step(lambda x, y: peer(x, y), inputs(n, d), classes(n, 8))

    yield case, "PML MultiSimilarity", similarity


def compiled(n: int, d: int) -> Iterator[Task]:
    def make(name: str) -> Call:
        torch._dynamo.reset()
        return step(torch.compile(partial(dense, name), dynamic=False), inputs(n, d), classes(n, 8))

    for name in ("mixture", "focal"):
        yield f"{n}x{d}", f"{name} torch.compile", partial(make, name)


def searches(n: int, d: int) -> Iterator[Task]:
    """Searches for the nearest 1,000, from which ranks could be read."""
    k = min(n, 1001)

    def topk() -> Call:
        sets = inputs(n, d)

        def call(turn: int) -> None:
            x = sets[turn]
            for first in range(0, n, BLOCK):
                (x[first : first + BLOCK] @ x.T).topk(k, dim=1)

        return call

    def faiss_gpu() -> Call:
        import faiss
        import faiss.contrib.torch_utils

        sets, resources = inputs(n, d), faiss.StandardGpuResources()

        def call(turn: int) -> None:
            index = faiss.GpuIndexFlatL2(resources, d)
            index.add(sets[turn])
            for begin in range(0, n, BLOCK):
                index.search(sets[turn][begin : begin + BLOCK], k)

        return call

    yield f"ranks {n}x{d}", "torch mm + topk", topk
    yield f"ranks {n}x{d}", "faiss-gpu", faiss_gpu


def emulated() -> list[Task]:
    """The ops of this script at a small size, on the emulated kernels, compared with float64."""
    from tests.cuda_emulation import cases, library

    lib = library.Emulated(library.build())
    pair_ops = {"mixture": cases.mixture, "focal": cases.focal, "statistics": cases.statistics}
    lowered = [
        (
            f"97x{d}",
            f"{name}, {word}, emulated: agrees with float64 at rounded rows",
            lambda name=name, d=d, p=p: (
                lambda _: cases.lowered(
                    lib.use(precision=p, multiply=library.blas), cases.Case(97, None, d, "float32"), name, 2.0
                )
            ),
        )
        for d in DIMS
        for name in ("mixture", "focal")
        for word, p in (("tf32", library.TF32), ("bf16", library.BF16))
    ]
    return lowered + [
        (
            f"97x{d}",
            f"{name}, emulated: agrees with float64",
            lambda go=go, d=d: lambda _: go(lib.use(), cases.Case(97, None, d, "float32")),
        )
        for d in DIMS
        for name, go in (pair_ops | {"ranks": cases.ranks}).items()
    ]


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
