"""``ala-metric train``: one run with a checkpoint, its history and its test metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .. import data, training
from . import experiment, lines, runs, tasks
from .arguments import UsageError
from .console import progress
from .options import TrainOptions


def run(options: TrainOptions) -> int:
    """Train, or go on training, and write the run's folder."""
    options = experiment.resolve(options)
    folder = options.out or Path("runs") / f"{options.data}-{options.loss}-{options.mode}-{options.seed}"
    _check_folder(folder, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    splits = experiment.load_data(options.data, options.root, options.image_size)
    _note_a_subset(splits)
    parts = experiment.build(options, splits)
    experiment.batch_classes(options, parts.splits)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_options(folder, options)
    status = 0
    result = None
    with progress({"train": parts.all_steps}) as bar:

        def show(step: int, loss: float) -> None:
            seen = [record["metric"] for record in parts.loss_fn.history]
            note = f"loss {loss:.4f}" + (f"  validation {parts.metric_name} {seen[-1]:.3f}" if seen else "")
            bar.update("train", step, note)

        try:
            result = parts.fit(
                checkpoint=folder / runs.CHECKPOINT,
                checkpoint_every=options.save_every,
                resume=options.resume,
                on_step=show,
            )
        except training.Interrupted as stop:
            status = int(stop.code or 0)
            print(f"ala-metric train: {stop}; go on with --out {folder} --resume", file=sys.stderr)
    records = [dict(record) for record in parts.loss_fn.history]
    metric = parts.metric_name
    if result is not None and options.mode in ("paired", "race"):
        records = lines.of_the_winner(result)
        metric = f"{training.smooth_metric(parts.loss_fn.metric).name} at the rungs"
    runs.write_history(folder, options, parts.phi_names, parts.phi_start, metric, records)
    if result is not None:
        if result.records:
            runs.write_json(folder / runs.CHILDREN, lines.of_all(result, options.steps))
        measured = tasks.measure(splits, *parts.test(), impl=options.impl)
        runs.write_json(folder / runs.METRICS, measured)
        print(tasks.title(f"{options.data}, test split, after {options.steps} steps", measured))
        print(tasks.table(measured))
        compute, overhead = result.compute.in_units_of(options.steps), result.compute.overhead
        print(f"compute {compute:.2f} trainings; {100 * overhead:.1f} % of the time was not training steps")
        print(f"written to {folder}")
    return status


def _check_folder(folder: Path, options: TrainOptions) -> None:
    """Refuse to overwrite a run, or to go on with another one."""
    exists = (folder / runs.CHECKPOINT).exists()
    if exists and not options.resume:
        raise UsageError(f"{folder} holds a run already; go on with --resume, or choose another --out")
    if not options.resume:
        return
    if not exists:
        raise UsageError(f"{folder} has no {runs.CHECKPOINT} to go on from")
    before = runs.read_options(folder)
    for name in vars(options):
        was, now = getattr(before, name), getattr(options, name)
        if name not in (*runs.NOT_OF_THE_RUN, "root") and was != now:
            raise UsageError(f"the run in {folder} has {name} = {was}, got {now}; start another with --out")


def _note_a_subset(splits: data.Splits) -> None:
    """Say so where numbers will not be comparable with published ones, or say nothing at all."""
    found, expected = data.counts(splits), data.EXPECTED.get(splits.name, {})
    differing = [
        f"{key} {found.get(key, 0):,}, not {n:,}" for key, n in expected.items() if found.get(key) != n
    ]
    if differing:
        print(f"ala-metric train: not the published {splits.name}: {'; '.join(differing)}", file=sys.stderr)
    if tasks.task_of(splits.name) == "retrieval" and len(splits.validation.classes) == 1:
        print(f"ala-metric train: the validation set is {tasks.ONE_CLASS}", file=sys.stderr)
