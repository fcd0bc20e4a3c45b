"""One training of the study and what it leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ala_metric import ALALoss, training
from ala_metric.cli import experiment
from ala_metric.controller.proposals import prior_draw
from ala_metric.data import ImageSet
from ala_metric.training.meter import FORWARD_SHARE

from .tasks import Problem, Task, make_loss, make_miner

LEARNING_RATE = 3e-3


def embed(model: nn.Module, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and labels of all images; small ones in memory go through in one batch."""
    if isinstance(images, ImageSet):
        return training.embed(model, [(images.images.float() / 255, images.labels)])
    return experiment.embed(model, images)


@dataclass
class Passes:
    """Embeds the validation set."""

    model: nn.Module
    images: Any

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and labels of the validation set."""
        return embed(self.model, self.images)


@dataclass
class Trial:
    """Model, optimiser, miner and loss of one run; weights and batches depend on the seed alone."""

    task: Task
    problem: Problem
    seed: int
    miner: str | None = None
    model: nn.Module = field(init=False)
    validation: Passes = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = self.problem.network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.validation = Passes(self.model, self.problem.validation)

    def adaptive(self, mode: str = "fixed", phi: Any = None, **options: Any) -> ALALoss:
        """The task's loss inside an ALALoss, started at ``phi``."""
        loss = make_loss(self.task, self.problem.classes)
        if phi is not None:
            loss.set_phi(torch.tensor(phi))
        metric = self.problem.paper_metric if mode == "paper" else self.problem.metric
        options = {
            "metric": metric,
            "validate": self.validation,
            "total_steps": self.task.steps,
            "every": self.task.every,
            "seed": self.seed,
        } | options
        return ALALoss(loss, mode=mode, **options)

    def fit(self, loss_fn: Any, images: Any = None, **options: Any) -> training.FitResult:
        """Train to the end."""
        images = self.problem.train if images is None else images
        return training.fit(
            self.model,
            loss_fn,
            self.problem.batches(images, self.seed),
            total_steps=self.task.steps,
            optimizer=self.optimizer,
            miner=make_miner(self.task.miner if self.miner is None else self.miner),
            batch_classes=self.problem.batch_classes,
            per_class=self.problem.per_class,
            seed=self.seed,
            **options,
        )

    @property
    def pass_cost(self) -> float:
        """One pass over the validation set, in trainings."""
        batch = self.problem.batch_classes * self.problem.per_class
        return FORWARD_SHARE * len(self.problem.validation) / (batch * self.task.steps)

    def score(self) -> float:
        """The validation metric now, higher is better."""
        value = self.problem.metric(*embed(self.model, self.problem.validation))
        return float(value if self.problem.metric.higher_is_better else -value)

    def outcome(self, compute: float, **more: Any) -> dict[str, Any]:
        """What a cell keeps: test metrics, final validation score, compute in trainings."""
        return {
            "metrics": self.problem.measure(*embed(self.model, self.problem.test)),
            "validation": self.score(),
            "compute": compute,
            "pass_cost": self.pass_cost,
            **more,
        }


def phi_of(loss_fn: Any) -> list[float]:
    """Parameters in the order of ``phi_spec``."""
    loss = loss_fn.loss
    values = loss.phi if loss.phi.numel() == len(loss.phi_spec) else loss.phi_vector
    return [float(value) for value in values.flatten()]


def prior_draws(task: Task, problem: Problem, seed: int, count: int) -> list[list[float]]:
    """Random parameters from the prior that the race proposes from."""
    loss = Trial(task, problem, seed).adaptive().loss
    generator = torch.Generator().manual_seed(1000 + seed)
    groups = getattr(loss, "phi_groups", ())
    return [list(prior_draw(loss.phi_spec, groups, generator)) for _ in range(count)]


def mean_phi(phi_history: Any, steps: int) -> list[float]:
    """Parameters averaged over the steps that were trained with them."""
    ends = [*(start for start, _ in phi_history[1:]), steps]
    weighed = [(end - start, phi) for (start, phi), end in zip(phi_history, ends)]
    return [sum(share * phi[i] for share, phi in weighed) / steps for i in range(len(weighed[0][1]))]


def history_of(loss_fn: ALALoss) -> list[dict[str, Any]]:
    """Records of the controller, rounded to what a plot needs."""
    return [
        {
            "step": record.step,
            "metric": round(record.metric, 5),
            "reward": record.reward,
            "entropy": record.entropy,
            "action": [round(value, 3) for value in record.action],
            "phi": [round(value, 4) for value in record.phi],
        }
        for record in loss_fn.history
    ]


def timed(work: Any, *arguments: Any) -> dict[str, Any]:
    """Run a cell and add its wall-clock and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found: dict[str, Any] = work(*arguments)
    return found | {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - processor, 2),
    }
