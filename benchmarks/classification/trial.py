"""One training and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ala_metric import ALALoss, classification, metrics, training
from ala_metric.data import ImageSet

from .tasks import Batches, Problem

FORWARD = 1 / 3  # of a training step on the same images: the backward pass costs two forward passes
WATCHED = 20  # points of an error curve


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Parameters
    ----------
    steps
        T, training steps; the unit of compute.
    every
        K, training steps per controller step.
    batch
        Images in a batch.
    lr
        Of momentum SGD; a tenth of it after half of the run, and again after three quarters.
    """

    steps: int = 600
    every: int = 10
    batch: int = 40
    lr: float = 0.05


class Normalised(nn.Module):
    """A network behind fixed centring and scaling of its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs of images in [0, 1]."""
        return self.network((images - 0.5) * 4.0)


@dataclass
class Validation:
    """Outputs for the validation set; counts the images."""

    model: nn.Module
    images: Any
    seen: int = 0

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and labels of the validation set."""
        self.seen += len(self.images)
        return outputs_of(self.model, self.images)


@dataclass
class Best:
    """The weights with the best validation metric so far; of equals the latest."""

    metric: Any
    validation: Validation
    score: float = -math.inf
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def look(self, model: nn.Module) -> None:
        """Validate (which is charged) and keep the weights if they are the best."""
        value = self.metric(*self.validation())
        score = value if self.metric.higher_is_better else -value
        if score >= self.score:
            self.score = score
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}


def outputs_of(model: nn.Module, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and labels of all images."""
    if isinstance(images, ImageSet):
        pairs = zip(images.images.split(1024), images.labels.split(1024))
        return training.embed(model, ((pixels.float() / 255, labels) for pixels, labels in pairs))
    return training.embed(model, torch.utils.data.DataLoader(images, batch_size=128))


def make_optimizer(name: str, parameters: Any, size: Size) -> torch.optim.Optimizer:
    """Momentum SGD, or what Table 4 compares."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=size.lr, momentum=0.9, weight_decay=1e-4)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=size.lr / 50, weight_decay=1e-4)
    return training.PowerSign(parameters, lr=size.lr, total_steps=size.steps, weight_decay=1e-4)


@dataclass
class Trial:
    """Model, optimizer and validation of one run; weights and batches depend on the seed alone."""

    problem: Problem
    network: str
    size: Size
    seed: int
    optimizer_name: str = "sgd"
    outputs: int | None = None
    model: nn.Module = field(init=False)
    validation: Validation = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    curve: list[tuple[int, float]] = field(init=False, default_factory=list)
    early: Any = field(init=False, default=None)
    loss_fn: Any = field(init=False, default=None)
    extra: float = field(init=False, default=0.0)  # compute that neither steps nor validation count

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        outputs = self.outputs or self.problem.classes
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Normalised(training.models.make(self.network, outputs, self.problem.shape)).to(device)
        self.validation = Validation(self.model, self.problem.validation)
        self.optimizer = make_optimizer(self.optimizer_name, self.model.parameters(), self.size)

    def adaptive(self, loss: Any, mode: str = "paper", metric: Any = None, **options: Any) -> ALALoss:
        """A loss inside an ``ALALoss`` with its default settings."""
        options = {"every": self.size.every, "seed": self.seed} | options
        return ALALoss(
            loss, metric or self.problem.metric, self.validation, self.size.steps, mode=mode, **options
        )

    def fit(
        self, loss_fn: Any, images: Any = None, stop_early: bool = False, **options: Any
    ) -> training.FitResult:
        """Train to the end; with ``stop_early`` go back to where the validation metric was best."""
        self.loss_fn = loss_fn
        if hasattr(loss_fn, "to"):
            loss_fn.to(next(self.model.parameters()).device)
        if own := [p for p in getattr(loss_fn, "parameters", list)() if p.requires_grad]:
            self.optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        steps = self.size.steps
        scheduler = None
        if self.optimizer_name != "powersign":
            scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [steps // 2, 3 * steps // 4])
        train = self.problem.train if images is None else images
        watched = options.get("mode") is None
        best = Best(self.problem.metric, self.validation) if stop_early else None

        def on_step(step: int, loss: float) -> None:
            if step % max(1, self.size.steps // WATCHED):
                return
            if best is not None:
                best.look(self.model)
            self._watch(step)

        fitted = training.fit(
            self.model,
            loss_fn,
            Batches(train, self.size.batch, self.seed, self.problem.augment),
            total_steps=steps,
            optimizer=self.optimizer,
            scheduler=scheduler,
            batch_classes=self.size.batch,
            per_class=1,
            seed=self.seed,
            on_step=on_step if watched else None,
            **options,
        )
        if best is not None:
            self.model.load_state_dict(best.weights)
        return fitted

    def _watch(self, step: int) -> None:
        """Validation error on the way; only drawn, so not charged."""
        scores, labels = self.scores(self.problem.validation)
        self.curve.append((step, self.problem.metric(scores, labels)))
        if len(self.curve) == 1:
            self.early = confusion(scores, labels, self.problem.classes)

    def scores(self, images: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the images are classified by, and their labels."""
        outputs, labels = outputs_of(self.model, images)
        with torch.no_grad():
            return classification.class_scores(self.loss_fn, outputs), labels

    @property
    def compute(self) -> float:
        """Of a run without children, in trainings of T steps."""
        return 1.0 + self.extra + FORWARD * self.validation.seen / (self.size.batch * self.size.steps)

    def outcome(self, compute: float | None = None, fitted: Any = None, **more: Any) -> dict[str, Any]:
        """What a cell keeps."""
        scores, labels = self.scores(self.problem.test)
        own, own_labels = self.scores(self.problem.train)
        held, held_labels = self.scores(self.problem.validation)
        found: dict[str, Any] = {
            "metrics": measure(scores, labels),
            "train_error": 100 * metrics.ClassificationError()(own, own_labels),
            "validation": self.problem.metric(held, held_labels),
            "compute": self.compute if compute is None else compute,
            "curve": self.curve,
            **more,
        }
        if fitted is not None and fitted.phi_history and self.problem.classes <= 10:
            found["phi_history"] = [(step, [round(v, 4) for v in phi]) for step, phi in fitted.phi_history]
            final = confusion(held, held_labels, self.problem.classes)
            found["confusions"] = [self.early, final]
        return found


def measure(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Percentages of a test set."""
    error = metrics.ClassificationError()(scores, labels)
    found = {
        "error": error,
        "balanced error": metrics.BalancedError()(scores, labels),
        "AUCPR": metrics.AUCPR()(scores, labels),
        "top-1": 1 - error,
    }
    if scores.shape[1] > 5:
        best = scores.topk(5, 1).indices.to(labels.device)
        found["top-5"] = float((best == labels[:, None]).any(1).double().mean())
    return {name: 100 * value for name, value in found.items()}


def confusion(scores: torch.Tensor, labels: torch.Tensor, classes: int) -> list[list[float]]:
    """Share of class i that is taken for j."""
    table = torch.zeros(classes, classes)
    table.index_put_((labels.cpu(), scores.argmax(1).cpu()), torch.ones(len(labels)), accumulate=True)
    return (table / table.sum(1, keepdim=True).clamp_min(1)).tolist()
