"""The paper's children: models of their own that share one policy, one replay memory and one baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ala_metric import ALALoss
from ala_metric.data import ClassBalancedSampler

from .tasks import Problem, Task, make_miner
from .trial import Trial, history_of, phi_of


def paper_with_children(task: Task, problem: Problem, seed: int, count: int) -> dict[str, Any]:
    """Train the children in turns of K iterations; the best on validation at the end is tested."""
    trials = [Trial(task, problem, seed + 1000 * child) for child in range(count)]
    losses = [trial.adaptive("paper") for trial in trials]
    for loss_fn in losses[1:]:
        loss_fn.scheme.learner = losses[0].scheme.learner  # type: ignore[attr-defined]
    runs = [_turns(trial, loss_fn) for trial, loss_fn in zip(trials, losses)]
    for _ in range(0, task.steps, task.every):
        for run in runs:
            next(run)
    batch = problem.batch_classes * problem.per_class
    seen = sum(trial.validation.seen for trial in trials)
    spent = count + seen / (3 * batch * task.steps) + count * trials[0].pass_cost
    scores = [trial.score() for trial in trials]
    best = max(range(count), key=scores.__getitem__)
    return trials[best].outcome(
        spent, phi=phi_of(losses[best]), history=history_of(losses[best]), children=scores
    )


def _turns(trial: Trial, loss_fn: ALALoss) -> Iterator[None]:
    """Train, and give way after every K iterations."""
    miner = make_miner(trial.task.miner)
    images = trial.problem.batches(trial.problem.train, trial.seed)
    sampler = ClassBalancedSampler(
        images.labels, classes=trial.problem.batch_classes, per_class=trial.problem.per_class, seed=trial.seed
    )
    trial.model.train()
    done = 0
    while done < trial.task.steps:
        for inputs, labels in DataLoader(images, batch_sampler=sampler):
            outputs = trial.model(inputs)
            mined = () if miner is None else (miner(outputs, labels),)
            loss = loss_fn(outputs, labels, *mined)
            trial.optimizer.zero_grad()
            loss.backward()
            trial.optimizer.step()
            done += 1
            if done % trial.task.every == 0 or done == trial.task.steps:
                yield
            if done == trial.task.steps:
                return
