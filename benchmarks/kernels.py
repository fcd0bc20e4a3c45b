"""Pair losses, forward and gradient, as ratios to the two matrix products that they cannot do without.

The unit is ``mm(X, X^T)`` followed by ``mm(G, X)`` by ``torch.mm``: what any dense implementation must spend.
"native operator" is, as those are, called outside of any graph, and returns losses and gradient; all other
columns are a loss as users call it, and ``backward()``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ala_metric import ops

from . import measure

PHI = {
    "mixture": torch.tensor([1.0, 0.3, 0.7, 0.2, 0.9, 0.8, 0.4, 0.6, 0.5, 0.1]),
    "focal": torch.tensor([2.0, 8.0]),
}
UNIT, OPERATOR = "two products", "native operator"
BLOCK = 0.02  # seconds that the calls of a turn fill
SIZES = ((256, 128), (1024, 128), (4096, 128), (4096, 512), (16384, 512))
# Beyond this many rows peers take tens of seconds, and an N x N autograd graph gigabytes; they are left out.
DENSE_LIMIT = 4096
MINED = 1_000_000


def data(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Unit rows and labels, eight rows to a class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    return x.requires_grad_(), torch.arange(n) // 8


def step(loss: Callable[[Tensor, Tensor], Tensor], n: int, d: int) -> measure.Call:
    """One forward and backward pass of ``loss`` as a call without arguments."""
    x, labels = data(n, d)

    def call() -> None:
        x.grad = None
        loss(x, labels).backward()

    return call


def two_products(n: int, d: int) -> measure.Call:
    x = data(n, d)[0].detach()
    s, g = torch.empty(n, n), torch.empty(n, d)

    def call() -> None:
        torch.mm(x, x.T, out=s)
        torch.mm(s, x, out=g)

    return call


def fused(loss: str, impl: str, x: Tensor, labels: Tensor) -> Tensor:
    op = ops.distance_mixture if loss == "mixture" else ops.focal_weighting
    return op(x, labels, PHI[loss], impl=impl, reduction="mean")


def dense(loss: str, x: Tensor, labels: Tensor) -> Tensor:
    """What a careful user writes: a distance matrix by one product, boolean masks, autograd."""
    square = (x * x).sum(1)
    distance = (square[:, None] + square - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool)
    if loss == "mixture":
        return ops.mixture_of_matrix(distance, positive, ~same, PHI[loss]).mean()
    return ops.focal_of_matrix(distance, positive, ~same, PHI[loss], 1.0).mean()


def compiled(loss: str, n: int, d: int) -> measure.Call:
    return step(torch.compile(partial(dense, loss), dynamic=False), n, d)


def pml(name: str, n: int, d: int) -> measure.Call:
    from pytorch_metric_learning import losses

    return step(getattr(losses, name)(), n, d)


def native(loss: str, n: int, d: int) -> measure.Call:
    return step(partial(fused, loss, "native"), n, d)


def operator(loss: str, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Losses per anchor and the gradient of their sum by the native operator: no graph, as in the unit."""
    import ala_metric.ops.native  # noqa: F401  registers the operators

    wanted = None, None, True, False, False  # no references; the gradient of the rows
    if loss == "mixture":
        return torch.ops.ala_metric.distance_mixture.default(x, labels, PHI[loss], *wanted)
    return torch.ops.ala_metric.focal_weighting.default(x, labels, PHI[loss], 1.0, *wanted)


def without_graph(loss: str, n: int, d: int) -> measure.Call:
    x, labels = data(n, d)
    rows = x.detach()
    return lambda: operator(loss, rows, labels)


def strips(loss: str, n: int, d: int) -> measure.Call:
    return step(partial(fused, loss, "strips"), n, d)


def eager(loss: str, n: int, d: int) -> measure.Call:
    return step(partial(dense, loss), n, d)


def keops(loss: str, n: int, d: int) -> measure.Call | None:
    """The same loss with lazy tensors, where pykeops is installed (mixture only)."""
    try:
        from pykeops.torch import LazyTensor
    except Exception:  # it compiles on import, and fails in as many ways as compilers do
        return None
    if loss != "mixture":
        return None

    def mixture(x: Tensor, labels: Tensor) -> Tensor:
        distance = ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(-1).sqrt()
        other = LazyTensor(labels[:, None, None].float()) - LazyTensor(labels[None, :, None].float())
        negative = other.abs().sign()
        count = negative.sum(1)
        return ((0.5 / (distance + 1e-6) * negative).sum(1) / count).mean()

    return step(mixture, n, d)


def providers(loss: str, n: int) -> dict[str, Callable[[int, int], measure.Call]]:
    """Name -> setup(n, d), fair baselines first."""
    found = {UNIT: two_products, OPERATOR: partial(without_graph, loss), "native": partial(native, loss)}
    if n <= DENSE_LIMIT:
        found |= {
            "strips": partial(strips, loss),
            "torch.compile": partial(compiled, loss),
            "dense PyTorch": partial(eager, loss),
            "PML MultiSimilarity": partial(pml, "MultiSimilarityLoss"),
            "PML Contrastive": partial(pml, "ContrastiveLoss"),
        }
    if keops(loss, 8, 2) is not None:
        found["KeOps"] = partial(keops, loss)
    return found


# ------------------------------------------------------------------------------------------ mined triplets
def triplets(n: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, n, (count,), generator=generator) for _ in range(3))


def mined_native(n: int, d: int, count: int) -> measure.Call:
    a, p, q = triplets(n, count)
    return step(lambda x, _: ops.mixture_triplets(x, a, p, q, PHI["mixture"], impl="native").mean(), n, d)


def mined_gather(n: int, d: int, count: int) -> measure.Call:
    """The gather path of pytorch-metric-learning's distances: rows of both sides, then their distances."""
    from pytorch_metric_learning.distances import LpDistance

    a, p, q = triplets(n, count)
    distance, phi = LpDistance(normalize_embeddings=False), PHI["mixture"]

    def loss(x: Tensor, _: Tensor) -> Tensor:
        near, far = distance.pairwise_distance(x[a], x[p]), distance.pairwise_distance(x[a], x[q])
        pull = ops.mixture_of_distance(near, phi[:5], positive=True)
        return (pull + ops.mixture_of_distance(far, phi[5:], positive=False)).mean()

    return step(loss, n, d)


# ------------------------------------------------------------------------------------------------ the runs
def run_case(loss: str, n: int, d: int, threads: int, rounds: int, memory: bool) -> list[measure.Row]:
    torch.set_num_threads(threads)
    setups = providers(loss, n)
    calls = {name: setup(n, d) for name, setup in setups.items()}
    times = measure.interleaved(calls, rounds, block=BLOCK)
    peaks = {}
    if memory:
        peaks = {name: measure.peak_extra_mib(setup, (64, d), (n, d)) for name, setup in setups.items()}
    return measure.rows("kernels", f"{loss} {n}x{d}", UNIT, times, threads, peaks)


def run_mined(n: int, d: int, count: int, threads: int, rounds: int, memory: bool) -> list[measure.Row]:
    torch.set_num_threads(threads)
    setups = {"PML gather": mined_gather, "native": mined_native}
    times = measure.interleaved({name: setup(n, d, count) for name, setup in setups.items()}, rounds)
    peaks = {}
    if memory:
        for name, setup in setups.items():
            peaks[name] = measure.peak_extra_mib(setup, (n, d, 64), (n, d, count))
    return measure.rows("mined", f"{count} triplets {n}x{d}", "PML gather", times, threads, peaks)


def plot(found: list[measure.Row], path: str) -> None:
    """Bars of time per case at one thread, as ratios to the two products, on a log scale."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ala_metric"
    import matplotlib.pyplot as plt

    shown = [r for r in found if r.threads == 1 and r.benchmark == "kernels"]
    shown = [r for r in shown if r.provider not in (UNIT, OPERATOR)]
    cases = list(dict.fromkeys(r.case for r in shown))
    names = list(dict.fromkeys(r.provider for r in shown))
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for k, name in enumerate(names):
        at = [(cases.index(r.case) + (k - len(names) / 2 + 0.5) * 0.8 / len(names), r) for r in shown]
        at = [(x, r.ratio_median) for x, r in at if r.provider == name]
        axes.bar([x for x, _ in at], [y for _, y in at], 0.8 / len(names), label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", ylabel="time / two matrix products", title="Forward + gradient, CPU, one thread")
    axes.set_xticks(range(len(cases)), [c.replace(" ", "\n") for c in cases])
    axes.legend(ncols=3, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="*", default=None, help="default: 1 and all cores")
    parser.add_argument("--sizes", nargs="*", default=None, metavar="NxD")
    parser.add_argument("--losses", nargs="*", default=["mixture", "focal"], choices=["mixture", "focal"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-mined", action="store_true")
    measure.add_csv_option(parser)
    parser.add_argument("--plot", default=None, metavar="FILE.svg")
    options = parser.parse_args(argv)
    sizes = [tuple(map(int, s.split("x"))) for s in options.sizes] if options.sizes else SIZES
    found: list[measure.Row] = []
    for threads in options.threads or sorted({1, os.cpu_count() or 1}):
        memory = not options.no_memory and threads == 1
        for loss in options.losses:
            for n, d in sizes:
                print(f"{loss} {n}x{d}, {threads} thread(s) ...", flush=True)
                found += run_case(loss, n, d, threads, options.rounds, memory)
        if not options.no_mined:
            print(f"mined triplets, {threads} thread(s) ...", flush=True)
            found += run_mined(4096, 128, MINED, threads, options.rounds, memory)
    for name in ("kernels", "mined"):
        part = [row for row in found if row.benchmark == name]
        if part:
            print(f"\n{name}: time / {part[0].unit} (peak extra memory)\n\n{measure.markdown(part)}")
    print(f"\n{measure.conditions()}")
    measure.write_csv(options.csv, found)
    if options.plot:
        plot(found, options.plot)
    return 0
