"""``ala-metric demo``: fixed and adaptive losses trained side by side, a table and a report page."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
import time
from typing import Any

import torch

from .. import __version__
from .._files import atomic_write_bytes
from . import experiment, figures, report, side_by_side, summary
from . import runs as files
from .arguments import UsageError
from .console import format_table, progress
from .options import DemoOptions, TrainOptions

QUICK: dict[str, Any] = {"data": "digits", "seeds": 2, "steps": 30, "every": 5, "queries": 3, "dim": 16}
EVERY = 30


def run(options: DemoOptions) -> int:
    """Train, print the table and write the page."""
    if options.quick:
        options = dataclasses.replace(options, **QUICK)
    every = options.every or min(EVERY, max(1, options.steps // 4))
    if every >= options.steps:
        raise UsageError(f"every must be below steps = {options.steps}, or nothing adapts; got {every}")
    options = dataclasses.replace(options, every=every)
    for path, suffixes in ((options.out, (".html", ".htm")), (options.picture, (".png", ".svg"))):
        if path is not None and path.suffix not in suffixes:
            raise UsageError(f"{path} must end in {' or '.join(suffixes)}")
        files.check_target(path)
    start = time.perf_counter()
    splits = experiment.load_data(options.data)
    test = splits.test
    print(
        f"{splits.name}: {len(splits.train):,} training, {len(splits.validation):,} validation and "
        f"{len(test):,} test images ({time.perf_counter() - start:.0f} s)"
    )
    drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed))
    queries = drawn[: options.queries].tolist()
    jobs = {
        f"{mode} {seed}": (train_options(options, mode, seed), queries)
        for seed in range(options.seed, options.seed + options.seeds)
        for mode in ("fixed", "paper")
    }
    start = time.perf_counter()
    with progress({name: options.steps for name in jobs}) as bars:
        runs = side_by_side.run_all(jobs, options.workers, bars)
    seconds = time.perf_counter() - start
    results = collect(options, splits, queries, runs, seconds)
    rows = summary.compare(runs)
    atomic_write_bytes(options.out, report.render(results).encode())
    if options.picture is not None:
        figures.save(picture(results), options.picture)
    print(format_table(summary.HEADER, [row.cells() for row in rows]))
    print(*summary.compute_lines(runs), sep="\n")
    print(summary.verdict(rows[0]))
    print(f"training took {seconds:.0f} s; the report is {options.out.resolve()}")
    return 0


def train_options(options: DemoOptions, mode: Any, seed: int) -> TrainOptions:
    """The options of one run of the demo."""
    shared = {field.name for field in dataclasses.fields(TrainOptions)} & set(vars(options)) - {"seed", "out"}
    values = {name: getattr(options, name) for name in shared}
    return TrainOptions(**values, mode=mode, seed=seed, device="cpu")


def collect(
    options: DemoOptions, splits: Any, queries: list[int], runs: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Everything that the page shows; see :func:`ala_metric.cli.report.render`."""
    fixed, adaptive = summary.split_pairs(runs)
    shown = sorted(
        {*queries, *(i for run in (fixed[0], adaptive[0]) for row in run["neighbours"] for i in row)}
    )
    seen = "never trained on" if splits.class_disjoint else "trained on with other images"
    arguments = shlex.join(sys.argv[1:]) if sys.argv[1:2] == ["demo"] else "demo"
    return {
        "runs": runs,
        "images": {i: splits.test.images[i, 0].numpy() for i in shown},
        "labels": {i: int(splits.test.labels[i]) for i in shown},
        "queries": queries,
        "phi_names": runs[0]["phi_names"],
        "phi_start": runs[0]["phi_start"],
        "metric": "Recall@1",
        "introduction": (
            "Two copies of one small network learn to put images of the same class close together "
            f"({splits.name}, {len(splits.train.classes):,} classes). Both start from the same weights and "
            "see the same batches in the same order. One keeps the parameters of its loss; the other lets a "
            f"controller move them every {options.every} steps, rewarded when Recall@1 on the validation set "
            "rises."
        ),
        "conditions": {
            "command": f"ala-metric {arguments}",
            "data": f"{splits.name}: {len(splits.train):,} training, {len(splits.validation):,} validation, "
            f"{len(splits.test):,} test images; test classes were {seen}",
            "loss": f"{options.loss}, {miner_in_words(options.miner)}",
            "training": f"{options.steps} steps of Adam at {options.lr:g}, embeddings of {options.dim} "
            "numbers; the network after the last step is tested, none is picked",
            "batch": f"{runs[0]['batch_classes']} classes × {options.samples_per_class} images",
            "seeds": ", ".join(str(run["seed"]) for run in fixed),
            "controller": f"mode paper, an action every {options.every} steps",
            "versions": f"ala-metric {__version__}, Python {platform.python_version()}, "
            f"torch {torch.__version__}",
            "machine": f"{options.workers} runs at a time, one thread each; {seconds:.0f} s in all",
        },
    }


def miner_in_words(miner: str) -> str:
    """How the triplets were chosen."""
    return {
        "semihard": f"semi-hard triplets (margin {experiment.SEMIHARD_MARGIN:g})",
        "none": "all pairs of the batch",
    }[miner]


def picture(results: dict[str, Any]) -> Any:
    """The page's figures as one picture, with the first four queries."""
    fixed, adaptive = summary.split_pairs(results["runs"])
    groups = {"fixed": [run["history"] for run in fixed], "adaptive": [run["history"] for run in adaptive]}
    grids = {
        name: report.neighbour_rows(results, group[0]["neighbours"])[:4]
        for name, group in (("fixed", fixed), ("adaptive", adaptive))
    }
    return figures.overview(groups, results["phi_names"], results["phi_start"], results["metric"], grids)
