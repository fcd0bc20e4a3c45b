"""Rows with children: paired forks and races, through the modes of ``training.fit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ala_metric import training
from ala_metric.data import ImageSet

from .tasks import Problem, Task
from .trial import Passes, Trial, mean_phi

Run = Callable[[Task, Problem, int, Any], dict[str, Any]]


def race(budget: float = 4.0, twins: bool = False, **settings: Any) -> Run:
    """Arms with different parameters; ``twins`` adds copies that hypergradients move."""

    def run(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
        trial = Trial(task, problem, seed)
        use = twins and task.variant != "many"  # where there is a surrogate
        how = training.RaceSettings(
            metric=problem.metric,
            validate=cheaper(trial),
            hypergradient=_hypergradient(trial) if use else None,
            **settings,
        )
        return _finish(trial, trial.fit(trial.adaptive(), mode="race", budget=budget, race=how))

    return run


def paired(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
    """Draws from the prior, then forks with proposals of the policy and at random, in turn."""
    trial = Trial(task, problem, seed)
    how = training.PairedSettings(metric=problem.metric, validate=cheaper(trial))
    return _finish(trial, trial.fit(trial.adaptive(), mode="paired", paired=how))


def guarded(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
    """Forks in which one branch follows hypergradients and the other stays.

    A tenth of the run long: over half of that, hypergradients won with gains that turned into losses later.
    """
    trial = Trial(task, problem, seed)
    how = training.PairedSettings(
        forks=10,
        draws=0,
        metric=problem.metric,
        validate=cheaper(trial),
        proposals=("hypergradient",),
        hypergradient=_hypergradient(trial),
    )
    return _finish(trial, trial.fit(trial.adaptive(), mode="paired", paired=how))


def _finish(trial: Trial, result: training.FitResult) -> dict[str, Any]:
    steps = trial.task.steps
    return trial.outcome(
        result.compute.in_units_of(steps),
        phi=list(result.phi),
        phi_mean=mean_phi(result.phi_history, steps),
        phi_history=[[step, [round(value, 4) for value in phi]] for step, phi in result.phi_history],
        stages=[_stage(record) for record in result.records],
    )


def _stage(record: training.StageRecord) -> dict[str, Any]:
    """Who was there and who lived."""
    arms = [[arm.number, arm.source, arm.metric, arm.lives] for arm in record.arms]
    return {"end": record.end, "arms": arms, "dropped": record.dropped}


def cheaper(trial: Trial) -> Passes:
    """Half of the validation classes where they are retrieved, all images where they are classified."""
    images = trial.problem.validation
    if trial.problem.classes is None and isinstance(images, ImageSet):
        classes = images.classes
        half = (images.labels[:, None] == classes[: len(classes) // 2]).any(1)
        images = ImageSet(images.images[half], images.labels[half], images.name)
    return Passes(trial.model, images)


def _hypergradient(trial: Trial) -> training.HypergradientSettings:
    """Hypergradients of the task's surrogate on batches of the validation set."""
    parts = trial.problem
    surrogate = training.nca if parts.classes is None else training.balanced_cross_entropy
    labels = parts.validation.labels
    batch = min(parts.batch_classes, len(torch.unique(labels)), len(labels) // parts.per_class)
    images: Any = parts.validation
    if parts.natural:
        images = parts.batches(images, trial.seed)
        batch = min(parts.batch_classes, len(torch.unique(images.labels)))
    return training.HypergradientSettings(
        surrogate=surrogate, dataset=images, batch_classes=batch, per_class=parts.per_class, seed=trial.seed
    )
