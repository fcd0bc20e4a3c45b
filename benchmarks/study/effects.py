"""How much of a reward is the action's doing: one action on other batches, other actions on the same ones."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch

from ala_metric._actions import allowed_actions, take_actions
from ala_metric._phi import read_phi, write_phi
from ala_metric.data import ClassBalancedSampler
from ala_metric.training.batches import endless_batches
from ala_metric.training.parts import Parts

from .tasks import Problem, Task, make_miner
from .trial import Trial

CHECKPOINTS = (0.1, 0.4, 0.8)
ACTIONS = 5  # the first takes none
STREAMS = 3
BETA = 0.1


def effects(every: int) -> Any:
    """Gains of the metric over K iterations, ``[checkpoint][stream][action]``, and the actions' sizes."""

    def run(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
        trial = Trial(task, problem, seed)
        loss = trial.adaptive().loss
        parts = Parts(trial.model, loss, trial.optimizer, miner=make_miner(task.miner))
        generator = torch.Generator().manual_seed(seed)
        phi = read_phi(loss)
        done, gains = 0, []
        for share in CHECKPOINTS:
            target = round(share * task.steps)
            _train(parts, trial, seed, done, target)
            done = target
            start = parts.snapshot()
            before = _score(trial)
            moved = [phi] + [_random_action(loss, phi, generator) for _ in range(ACTIONS - 1)]
            table = []
            for stream in range(STREAMS):
                row = []
                for values in moved:
                    parts.restore(start)
                    write_phi(loss, values)
                    _train(parts, trial, 1000 + STREAMS * seed + stream, done, done + every)
                    row.append(_score(trial) - before)
                table.append(row)
            parts.restore(start)
            write_phi(loss, phi)
            gains.append(table)
        return trial.outcome(1.0, gains=gains)

    return run


def _score(trial: Trial) -> float:
    """The metric as the published controller sees it, higher is better."""
    metric = trial.problem.paper_metric
    value = float(metric(*trial.validation()))
    return value if metric.higher_is_better else -value


def _random_action(loss: Any, phi: list[float], generator: torch.Generator) -> list[float]:
    allowed = allowed_actions(loss.phi_spec, phi, BETA)
    choice = torch.multinomial(allowed.double(), 1, generator=generator).squeeze(-1)
    return take_actions(loss.phi_spec, phi, choice, BETA)[0]


def _train(parts: Parts, trial: Trial, seed: int, start: int, end: int) -> None:
    """Steps ``start + 1`` to ``end`` of the batches of a seed."""
    images = trial.problem.batches(trial.problem.train, trial.seed)
    sampler = ClassBalancedSampler(
        images.labels, classes=trial.problem.batch_classes, per_class=trial.problem.per_class, seed=seed
    )
    sampler.position = start
    parts.model.train()
    with closing(endless_batches(images, sampler, 0)) as batches:
        for number in range(start, end):
            parts.step(number + 1, *next(batches))
