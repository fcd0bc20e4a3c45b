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
    """Gains over K iterations, ``[checkpoint][stream][action]``, of the paper's metric and the smooth one."""

    def run(task: Task, problem: Problem, seed: int, given: Any) -> dict[str, Any]:
        trial = Trial(task, problem, seed)
        loss = trial.adaptive().loss
        parts = Parts(trial.model, loss, trial.optimizer, miner=make_miner(task.miner))
        generator = torch.Generator().manual_seed(seed)
        phi = read_phi(loss)
        done, gains, smooth = 0, [], []
        rough, fine = problem.paper_metric, problem.metric
        for share in CHECKPOINTS:
            target = round(share * task.steps)
            _train(parts, trial, seed, done, target)
            done = target
            start = parts.snapshot()
            before = _scores(trial, rough, fine)
            moved = [phi] + [_random_action(loss, phi, generator) for _ in range(ACTIONS - 1)]
            table: list[list[tuple[float, float]]] = []
            for stream in range(STREAMS):
                row = []
                for values in moved:
                    parts.restore(start)
                    write_phi(loss, values)
                    _train(parts, trial, 1000 + STREAMS * seed + stream, done, done + every)
                    after = _scores(trial, rough, fine)
                    row.append((after[0] - before[0], after[1] - before[1]))
                table.append(row)
            parts.restore(start)
            write_phi(loss, phi)
            gains.append([[gain for gain, _ in row] for row in table])
            smooth.append([[gain for _, gain in row] for row in table])
        return trial.outcome(1.0, gains=gains, smooth_gains=smooth)

    return run


def _scores(trial: Trial, *judges: Any) -> tuple[float, ...]:
    """Each metric on the validation set, higher is better."""
    outputs = trial.validation()
    values = [float(metric(*outputs)) for metric in judges]
    return tuple(value if metric.higher_is_better else -value for value, metric in zip(values, judges))


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
