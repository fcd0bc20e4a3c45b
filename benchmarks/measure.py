"""Fair timing: providers take turns within a round, and what counts is the median of the rounds' ratios."""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One provider on one case. ``ratio`` is to the unit's time in the same round."""

    benchmark: str
    case: str
    provider: str
    unit: str
    threads: int
    ratio_median: float
    ratio_q1: float
    ratio_q3: float
    seconds_median: float
    rounds: int
    peak_extra_mib: float | None
    device: str
    torch: str
    date: str


def conditions() -> dict[str, str]:
    """Machine and versions that a result depends on."""
    return {"device": cpu_name(), "torch": torch.__version__, "date": date.today().isoformat()}


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    seconds: float = 60.0,
    *,
    warm_up: bool = True,
    once: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
    block: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds per call, one list per provider; providers alternate so that drift hits all alike.

    A turn is one call, or, for calls shorter than ``block`` seconds, as many as fill them (counted in the
    thrown-away round): what a call takes when it is one of many, with warm caches and predictors.

    With ``warm_up`` a first round is thrown away. Stops after three rounds when ``seconds`` are spent.
    Providers in ``once`` take part in the first round that counts only. ``time.process_time`` as ``clock``
    counts CPU seconds, which another process on the machine disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    start = time.perf_counter()
    for turn in range(0 if warm_up else 1, rounds + 1):
        for name, call in calls.items():
            if name in once and turn != 1:
                continue
            begin = clock()
            for _ in range(repeats[name]):
                call()
            elapsed = (clock() - begin) / repeats[name]
            if turn > 0:
                times[name].append(elapsed)
            elif block > 0:
                begin = clock()
                call()  # not the first one: that one compiles
                repeats[name] = max(1, math.ceil(block / max(clock() - begin, 1e-6)))
        if turn >= 3 and time.perf_counter() - start > seconds:
            break
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def rows(
    benchmark: str,
    case: str,
    unit: str,
    times: Mapping[str, list[float]],
    threads: int,
    memory: Mapping[str, float],
) -> list[Row]:
    """Ratios of every provider to ``unit``, round by round."""
    found = []
    for name, seconds in times.items():
        q1, median, q3 = quartiles([s / u for s, u in zip(seconds, times[unit])])
        found.append(
            Row(
                benchmark,
                case,
                name,
                unit,
                threads,
                round(median, 4),
                round(q1, 4),
                round(q3, 4),
                round(statistics.median(seconds), 6),
                len(seconds),
                memory.get(name),
                **conditions(),
            )
        )
    return found


def _status_mib(field: str) -> float:
    # not ru_maxrss: a new process starts with its parent's
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def _peak_of(setup: Callable[..., Call], small: tuple, large: tuple) -> float:
    torch.set_num_threads(1)
    setup(*small)()
    call = setup(*large)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would serve the call unseen
        Path("/proc/self/clear_refs").write_text("5")  # imports and data can peak higher than the call
    before = _status_mib("VmRSS")
    call()
    return round(_status_mib("VmHWM") - before, 1)


def peak_extra_mib(setup: Callable[..., Call], small: tuple, large: tuple) -> float:
    """Peak memory of ``setup(*large)()`` beyond its inputs, in a process of its own.

    ``setup(*small)()`` runs first there, so that libraries and thread pools are not counted.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of, setup, small, large).result()


def add_csv_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, help="file for the rows; none if not given")


def write_csv(path: Path | None, found: list[Row]) -> None:
    """Write the rows, where a file was asked for: nothing committed is overwritten by default."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)


def markdown(found: list[Row]) -> str:
    """Cases down, providers across: ratio (peak extra MiB)."""
    providers = list(dict.fromkeys(row.provider for row in found))
    lines = [
        "| case | threads | " + " | ".join(providers) + " |",
        "|---" * (2 + len(providers)) + "|",
    ]
    for case, threads in dict.fromkeys((row.case, row.threads) for row in found):
        cells = {row.provider: row for row in found if (row.case, row.threads) == (case, threads)}
        text = []
        for name in providers:
            row = cells.get(name)
            memory = "" if row is None or row.peak_extra_mib is None else f" ({row.peak_extra_mib:.0f} MiB)"
            text.append("" if row is None else f"{row.ratio_median:.2f}{memory}")
        lines.append(f"| {case} | {threads} | " + " | ".join(text) + " |")
    return "\n".join(lines)
