"""Retrieval metrics: counted ranks against the searches that others sort.

The unit is Recall@k by faiss's exact search (IndexFlatL2), to the depth that the largest k needs. Rows are
unit vectors around class centres, as many per class as in Stanford Online Products. The ranks themselves are
compared too: with faiss's, and with float64 for all queries.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ala_metric import metrics, ops

from . import measure

SIZES = ((7000, 128), (7000, 512), (60_502, 128), (60_502, 512))
ROWS_PER_CLASS = 60_502 / 11_316
NOISE = {128: 1.6, 512: 2.4}  # spread about a class centre for which Recall@1 is neither 0 nor 1
STRIP = 1024
SLOW = ("PML calculator", "torch mm + topk", "scikit-learn")  # one round only where that takes minutes


def depths(n: int) -> tuple[int, ...]:
    return (1, 10, 100, 1000) if n > 10_000 else (1, 10, 100)


def data(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows and labels; another seed draws other rows of the same classes."""
    classes = max(2, round(n / ROWS_PER_CLASS))
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, classes, (n,), generator=generator)
    noise = NOISE.get(d, 2.0) * torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(centres[labels] + noise), labels


def gallery(n: int, d: int, separate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, labels = data(n, d)
    return (x, labels, *(data(n, d, seed=1) if separate else (x, labels)))


def first_positive(near: Tensor, labels: Tensor, ref_labels: Tensor, own: bool) -> Tensor:
    """Rank of the first positive among neighbours [N, k] (0: not among them), itself left out by index."""
    hit = ref_labels[near] == labels[:, None]
    if not own:
        return torch.where(hit.any(1), hit.int().argmax(1) + 1, 0)
    itself = near == torch.arange(len(near))[:, None]
    hit &= ~itself
    first = hit.int().argmax(1)
    before = (itself & (torch.arange(near.shape[1]) < first[:, None])).sum(1)
    return torch.where(hit.any(1), first + 1 - before, 0)


def recalls(near: Tensor, labels: Tensor, ref_labels: Tensor, own: bool, n: int) -> list[float]:
    first = first_positive(near, labels, ref_labels, own)
    return [float(((first > 0) & (first <= k)).double().mean()) for k in depths(n)]


# ------------------------------------------------------------------- providers: setup(n, d, separate) -> call
def faiss_neighbours(n: int, d: int, separate: bool) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x, _, y, _ = gallery(n, d, separate)
    index = faiss.IndexFlatL2(d)
    index.add(y.numpy())
    return torch.from_numpy(index.search(x.numpy(), min(n, depths(n)[-1] + 1))[1])


def faiss_search(n: int, d: int, separate: bool) -> measure.Call:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x, labels, y, ref_labels = gallery(n, d, separate)
    k = min(n, depths(n)[-1] + 1)

    def call() -> list[float]:
        index = faiss.IndexFlatL2(d)
        index.add(y.numpy())
        near = torch.from_numpy(index.search(x.numpy(), k)[1])
        return recalls(near, labels, ref_labels, not separate, n)

    return call


def matrix_topk(n: int, d: int, separate: bool) -> measure.Call:
    x, labels, y, ref_labels = gallery(n, d, separate)
    k = min(n, depths(n)[-1] + 1)

    def call() -> list[float]:
        near = torch.cat([(x[i : i + STRIP] @ y.T).topk(k, dim=1).indices for i in range(0, n, STRIP)])
        return recalls(near, labels, ref_labels, not separate, n)

    return call


def scikit_learn(n: int, d: int, separate: bool) -> measure.Call:
    from sklearn.neighbors import NearestNeighbors

    x, labels, y, ref_labels = gallery(n, d, separate)
    k = min(n, depths(n)[-1] + 1)

    def call() -> list[float]:
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(y.numpy())
        near = torch.from_numpy(search.kneighbors(x.numpy(), return_distance=False))
        return recalls(near, labels, ref_labels, not separate, n)

    return call


def pml_calculator(n: int, d: int, separate: bool) -> measure.Call:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    x, labels, y, ref_labels = gallery(n, d, separate)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    calculator = AccuracyCalculator(include=names, k=min(n - 1, depths(n)[-1]), device=torch.device("cpu"))
    return partial(calculator.get_accuracy, x, labels, *((y, ref_labels) if separate else ()))


def counted(impl: str, report: bool, n: int, d: int, separate: bool) -> measure.Call:
    x, labels, y, ref_labels = gallery(n, d, separate)
    refs = {"ref_emb": y, "ref_labels": ref_labels} if separate else {}
    if report:
        return partial(metrics.retrieval, x, labels, k=depths(n), impl=impl, **refs)

    def call() -> list[float]:
        first = ops.positive_ranks(x, labels, first_only=True, impl=impl, **refs)
        return [float(((first > 0) & (first <= k)).double().mean()) for k in depths(n)]

    return call


def providers(n: int, separate: bool) -> dict[str, Callable[[int, int, bool], measure.Call]]:
    found: dict[str, Callable[[int, int, bool], measure.Call]] = {
        unit(n): faiss_search,
        "native Recall@k": partial(counted, "native", False),
        "native all metrics": partial(counted, "native", True),
    }
    if not separate:
        found |= {
            "PML calculator": pml_calculator,
            "torch mm + topk": matrix_topk,
            "scikit-learn": scikit_learn,
        }
    return found


def unit(n: int) -> str:
    return f"faiss k={depths(n)[-1] + 1}"


# ------------------------------------------------------------------------------------------------ the runs
def compare_ranks(n: int, d: int, separate: bool) -> str:
    """Whether all first-positive ranks are those of faiss, and of float64."""
    x, labels, y, ref_labels = gallery(n, d, separate)
    refs = {"ref_emb": y, "ref_labels": ref_labels} if separate else {}
    ours = ops.positive_ranks(x, labels, first_only=True, impl="native", **refs)
    exact = ops.positive_ranks(x, labels, first_only=True, impl="strips", **refs)
    near = faiss_neighbours(n, d, separate)
    theirs = first_positive(near, labels, ref_labels, not separate)
    reached = theirs > 0
    reached, same = theirs > 0, ours == theirs
    settled = reached & ~same & (ours == exact)
    return (
        f"first-positive ranks: {int((ours == exact).sum())} of {n} equal to float64's; of "
        f"{int(reached.sum())} within faiss's depth {int((reached & same).sum())} equal to faiss's, "
        f"{int(settled.sum())} more confirmed by float64. Recall@1 {float((ours == 1).double().mean()):.3f}"
    )


def run_case(
    n: int, d: int, separate: bool, threads: int, rounds: int, memory: bool, left_out: list[str]
) -> list[measure.Row]:
    torch.set_num_threads(threads)
    setups = {name: setup for name, setup in providers(n, separate).items() if name not in left_out}
    small = n <= 10_000
    for setup in setups.values():
        setup(1000, d, separate)()
    times = measure.interleaved(
        {name: setup(n, d, separate) for name, setup in setups.items()},
        rounds,
        warm_up=small,
        once=() if small else SLOW,
        clock=time.process_time if threads == 1 else time.perf_counter,
    )
    peaks = {}
    if memory:
        for name, setup in setups.items():
            peaks[name] = measure.peak_extra_mib(setup, (300, d, separate), (n, d, separate))
    case = f"{n}x{d}" + (", separate gallery" if separate else "")
    return measure.rows("evaluation", case, unit(n), times, threads, peaks)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks evaluation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="at most; three where they take over a minute")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--sizes", nargs="*", default=None, metavar="NxD")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-times", action="store_true", help="compare the ranks only")
    parser.add_argument("--without", nargs="*", default=[], metavar="PROVIDER", choices=SLOW)
    parser.add_argument("--galleries", nargs="*", default=["own", "separate"], choices=["own", "separate"])
    parser.add_argument("--no-ranks", action="store_true", help="leave out the comparison with float64")
    measure.add_csv_option(parser)
    options = parser.parse_args(argv)
    sizes = [tuple(map(int, s.split("x"))) for s in options.sizes] if options.sizes else SIZES
    found: list[measure.Row] = []
    for threads in options.threads:
        for n, d in sizes:
            for separate in (name == "separate" for name in options.galleries):
                what = f"{n}x{d}{', separate gallery' if separate else ''}, {threads} thread(s)"
                print(f"{what} ...", flush=True)
                if threads == options.threads[0] and not options.no_ranks:
                    print(compare_ranks(n, d, separate), flush=True)
                if options.no_times:
                    continue
                memory = not options.no_memory and threads == 1
                found += run_case(n, d, separate, threads, options.rounds, memory, options.without)
                measure.write_csv(options.csv, found)
    print("\ntime (CPU seconds with one thread) / faiss's (peak extra memory)\n")
    print(f"{measure.markdown(found)}\n\n{measure.conditions()}")
    return 0
