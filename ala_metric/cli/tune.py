"""``ala-metric tune``: which margin, temperature, scale? A race, and the winner against the defaults."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from .. import losses, metrics, training
from ..data import Splits
from ..losses import catalogue
from . import experiment, runs
from .arguments import UsageError
from .console import format_table, progress
from .options import TrainOptions, TuneOptions


def run(options: TuneOptions) -> int:
    """Race the parameters, train once with the defaults, and print both with their difference."""
    known = losses.available()
    if options.loss not in known:
        raise UsageError(f"loss must be one of {', '.join(sorted(known))}; got {options.loss}")
    runs.check_target(options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    splits = experiment.load_data(options.data, options.root, options.image_size)
    shared = {name: value for name, value in asdict(options).items() if name in _SHARED}
    settings = TrainOptions(**shared, loss="mixture", every=options.steps, out=None)
    race = _train(replace(settings, mode="race", budget=options.budget), options.loss, splits)
    plain = _train(replace(settings, mode="fixed"), options.loss, splits)
    answer = _answer(options, race, plain, splits)
    if options.out is not None:
        runs.write_json(options.out, answer)
    print(_text(answer))
    if options.out is not None:
        print(f"written to {options.out}")
    return 0


_SHARED = {
    *("data", "root", "image_size", "miner", "steps", "seed", "classes_per_batch", "samples_per_class"),
    *("lr", "dim", "device", "threads", "loader_workers"),
}


def _train(
    options: TrainOptions, loss: str, splits: Splits
) -> tuple[experiment.Experiment, training.FitResult, Tensor]:
    """One race or one training; its parts, its result, and the Recall@1 of every test query."""
    sizes = {"num_classes": int(splits.train.labels.max()) + 1, "embedding_size": options.dim}
    parts = experiment.build(options, splits, lambda: losses.AdaptPML(catalogue.make(loss, **sizes)))
    name = "race" if options.mode == "race" else "defaults"
    with progress({name: parts.all_steps}) as bar:
        result = parts.fit(on_step=lambda step, value: bar.update(name, step, f"loss {value:.4f}"))
    outputs, labels = parts.test()
    scores = metrics.retrieval(outputs, labels, k=(1,), distance="cosine", per_query=True).per_query
    assert scores is not None
    return parts, result, scores["recall_at_1"]


def _answer(options: TuneOptions, race: Any, plain: Any, splits: Splits) -> dict[str, Any]:
    parts, result, found = race
    _, fixed, default = plain
    _, labels = parts.test()
    interval = metrics.paired_bootstrap(default, found, labels)
    values = dict(zip(parts.phi_names, result.phi))
    return {
        "options": asdict(options),
        "parameters": {
            spec.name: {"default": start, "found": value, "low": spec.low, "high": spec.high}
            for spec, start, value in zip(parts.loss_fn.phi_spec, parts.phi_start, result.phi)
        },
        "call": catalogue.constructor_call(options.loss, values),
        "recall_at_1": {"default": float(default.nanmean()), "found": float(found.nanmean())},
        "difference": asdict(interval),
        "compute": {
            "race": result.compute.in_units_of(options.steps),
            "defaults": fixed.compute.in_units_of(options.steps),
            "seconds": result.seconds + fixed.seconds,
        },
        "queries": int((~found.isnan()).sum()),
        "history": [[step, list(phi)] for step, phi in result.phi_history],
    }


def _text(answer: dict[str, Any]) -> str:
    rows = [
        (name, f"{row['default']:.4g}", f"{row['found']:.4g}", f"{row['low']:g} to {row['high']:g}")
        for name, row in answer["parameters"].items()
    ]
    recall, difference, compute = answer["recall_at_1"], answer["difference"], answer["compute"]
    seed, data = answer["options"]["seed"], answer["options"]["data"]
    low, high = 100 * difference["low"], 100 * difference["high"]
    if low > 0:
        verdict = f"better than the defaults on this seed: {answer['call']}"
    elif high < 0:
        verdict = "worse than the defaults on this seed: keep the defaults"
    else:
        verdict = "no difference to the defaults can be told on this seed: keep the defaults"
    return "\n".join(
        [
            format_table((answer["options"]["loss"], "default", "found", "searched"), rows),
            "",
            f"Recall@1, test split of {data}, {answer['queries']:,} queries, seed {seed}: "
            f"defaults {100 * recall['default']:.2f} %, race {100 * recall['found']:.2f} %",
            f"difference {100 * difference['difference']:+.2f} points, 95 % interval over test classes "
            f"{low:+.2f} to {high:+.2f} (other seeds are not in it)",
            f"compute: race {compute['race']:.2f} trainings, defaults {compute['defaults']:.2f}, "
            f"{compute['seconds']:.0f} s in all",
            verdict,
        ]
    )
