"""How much faster the pair losses are with all threads, next to what the machine has to give.

Cores that share their caches, their clock or their hardware with others cannot be twice as fast as one. So
each round also runs as many independent copies of the one-thread step as there are threads, at the same time:
what they do together is the most that threads can bring. The two products by ``torch.mm`` are measured the
same way.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from . import kernels, measure

ONE = "one thread"
SIZES = ("4096x128", "4096x512", "16384x512")


def setup(what: str, n: int, d: int) -> measure.Call:
    return kernels.two_products(n, d) if what == kernels.UNIT else kernels.native(what, n, d)


def alone(call: measure.Call, threads: int) -> measure.Call:
    def run() -> None:
        torch.set_num_threads(threads)
        call()

    return run


def at_once(copies: list[measure.Call], pool: ThreadPoolExecutor) -> measure.Call:
    def run() -> None:
        list(pool.map(lambda copy: alone(copy, 1)(), copies))

    return run


def run_case(what: str, n: int, d: int, threads: int, rounds: int) -> list[measure.Row]:
    """Seconds per step: one thread, all threads, and (for one of them) as many one-thread copies at once."""
    with ThreadPoolExecutor(threads) as pool:
        copies = [setup(what, n, d) for _ in range(threads)]
        calls = {
            ONE: alone(copies[0], 1),
            f"{threads} threads": alone(copies[0], threads),
            f"{threads} copies at once": at_once(copies, pool),
        }
        times = measure.interleaved(calls, rounds, seconds=180, block=0.3)
    times[f"{threads} copies at once"] = [s / threads for s in times[f"{threads} copies at once"]]
    return measure.rows("threads", f"{what} {n}x{d}", ONE, times, threads, {})


def table(found: list[measure.Row]) -> str:
    """Cases down: how many times as fast as one thread, with quartiles."""
    providers = list(dict.fromkeys(row.provider for row in found if row.provider != ONE))
    lines = ["| case | " + " | ".join(providers) + " |", "|---" * (1 + len(providers)) + "|"]
    for case in dict.fromkeys(row.case for row in found):
        cells = {row.provider: row for row in found if row.case == case}
        shown = [
            f"{1 / r.ratio_median:.2f} ({1 / r.ratio_q3:.2f} to {1 / r.ratio_q1:.2f})"
            for r in (cells[name] for name in providers)
        ]
        lines.append(f"| {case} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks threads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="NxD")
    measure.add_csv_option(parser)
    options = parser.parse_args(argv)
    if options.threads < 2:
        parser.error(f"--threads must be at least 2, got {options.threads}")
    found: list[measure.Row] = []
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        for what in ("mixture", "focal", kernels.UNIT):
            print(f"{what} {size} ...", flush=True)
            found += run_case(what, n, d, options.threads, options.rounds)
    print(f"\ntimes as fast as one thread (quartiles)\n\n{table(found)}\n\n{measure.conditions()}")
    measure.write_csv(options.csv, found)
    return 0
