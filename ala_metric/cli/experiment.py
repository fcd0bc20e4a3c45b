"""What ``train`` and ``demo`` have in common: the parts of one run, made from its options and seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import classification, losses, training
from .._pml import TripletMarginMiner
from ..ala_loss import ALALoss
from ..controller import rungs_for
from ..data import ImageFiles, ImageSet, Splits, load
from ..training.paired import schedule
from ..training.race import in_steps
from . import tasks
from .arguments import UsageError
from .console import optional
from .options import TrainOptions

Images = ImageSet | ImageFiles
SEMIHARD_MARGIN = 0.2


NEEDS = {"digits": ("sklearn",), "glyphs": ("matplotlib", "PIL"), "cifar10": (), "cifar100": ()}


def load_data(name: str, root: Path | None = None, image_size: int | None = None) -> Splits:
    """Load a data set, or name the command that installs what it needs."""
    for module in NEEDS.get(name, ("PIL",)):
        optional(module, f"the {name} data set")
    return load(name, root=root, size=image_size)


def resolve(options: TrainOptions) -> TrainOptions:
    """Fill in the loss and the miner that the task of the data set asks for."""
    classes = tasks.task_of(options.data) == "classification"
    loss = options.loss or ("correlation" if classes else "mixture")
    miner = options.miner or ("none" if classes else "semihard")
    if classes != (loss == "correlation") or (classes and miner != "none"):
        fitting = "loss correlation without a miner" if classes else "loss mixture or focal"
        raise UsageError(f"{options.data} is trained with {fitting}, got loss {loss} and miner {miner}")
    if options.mode == "race" and options.budget <= 1:
        raise UsageError(f"budget must be above 1, one training; got {options.budget}")
    if options.children > 1 and options.mode != "paper":
        raise UsageError(f"children share the controller of mode paper, got mode {options.mode}")
    return replace(options, loss=loss, miner=miner)


@dataclass
class Experiment:
    """Everything that one run trains with."""

    options: TrainOptions
    splits: Splits
    model: nn.Module
    loss_fn: ALALoss
    optimizer: torch.optim.Optimizer
    miner: Any
    validation: training.Validation
    phi_start: list[float]

    def fit(self, **keywords: Any) -> training.FitResult:
        """Train for the steps that the options ask for; see :func:`ala_metric.training.fit`."""
        return training.fit(
            self.model,
            self.loss_fn,
            self.splits.train,
            total_steps=self.options.steps,
            optimizer=self.optimizer,
            miner=self.miner,
            batch_classes=batch_classes(self.options, self.splits),
            per_class=self.options.samples_per_class,
            seed=self.options.seed,
            workers=self.validation.workers,
            mode=fit_mode(self.options),
            budget=self.options.budget,
            children=self.options.children,
            **keywords,
        )

    @property
    def all_steps(self) -> int:
        """Training steps of all children together."""
        steps = self.options.steps
        if self.options.mode == "race":
            rungs = in_steps(rungs_for(self.options.budget), steps)
            starts = (0, *(end for end, _ in rungs))
            return sum((end - start) * rows for start, (end, rows) in zip(starts, rungs))
        if self.options.mode == "paired":
            ends, rows = schedule(training.PairedSettings(), steps)
            return sum((end - start) * arms for start, end, arms in zip((0, *ends), ends, rows))
        return steps * self.options.children

    def test(self) -> tuple[Tensor, Tensor]:
        """Outputs and labels of the test set."""
        return embed(self.model, self.splits.test, self.validation.workers)

    @property
    def metric_name(self) -> str:
        """What the validation metric is called."""
        return tasks.METRIC_NAMES[tasks.task_of(self.splits.name)]

    @property
    def phi_names(self) -> list[str]:
        """Names of the loss's parameters."""
        return [spec.name for spec in self.loss_fn.phi_spec]


def build(options: TrainOptions, splits: Splits, loss: Callable[[], Any] | None = None) -> Experiment:
    """Make the parts of one run; weights, batches and controller are functions of the seed alone.

    ``loss`` makes the adaptive loss; without it, it is that of the options.
    """
    torch.manual_seed(options.seed)
    device = pick_device(options.device)
    model = make_network(options, splits).to(device)
    validation = validating(model, splits.validation, loader_workers(options.loader_workers, splits))
    loss_fn = ALALoss(
        make_loss(options, splits) if loss is None else loss(),
        metric=tasks.validation_metric(splits),
        validate=validation,
        total_steps=options.steps,
        every=options.every,
        seed=options.seed,
        mode="fixed" if options.mode == "paired" or options.mode == "race" else options.mode,
    ).to(device)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=options.lr)
    miner = None
    if options.miner == "semihard":
        miner = TripletMarginMiner(margin=SEMIHARD_MARGIN, type_of_triplets="semihard")
    phi = getattr(loss_fn.loss, "phi_vector", loss_fn.phi)
    start = [float(value) for value in phi]
    return Experiment(options, splits, model, loss_fn, optimizer, miner, validation, start)


def fit_mode(options: TrainOptions) -> Literal["paper", "paired", "race"] | None:
    """The mode of ``training.fit``; None where the loss does everything itself."""
    if options.mode == "paper" or options.mode == "paired" or options.mode == "race":
        return options.mode
    return None


def batch_classes(options: TrainOptions, splits: Splits) -> int:
    """Classes in a training batch."""
    available = len(splits.train.classes)
    asked = options.classes_per_batch
    if asked is not None and asked > available:
        raise UsageError(f"classes_per_batch must be at most {available} for {splits.name}, got {asked}")
    return asked or min(32, available)


def pick_device(name: str) -> torch.device:
    """The device to train on."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no CUDA device; see ala-metric doctor")
    return torch.device(name)


def make_network(options: TrainOptions, splits: Splits) -> training.SmallConvNet:
    """The network for the images of a data set: an embedding, or one output per class."""
    classes = tasks.task_of(splits.name) == "classification"
    image, _ = splits.train[0]
    return training.SmallConvNet(
        dim=len(splits.class_names) if classes else options.dim, inputs=image.shape[0]
    )


def make_loss(options: TrainOptions, splits: Splits) -> Any:
    """The loss that adapts."""
    if options.loss == "correlation":
        return classification.AdaptiveClassificationLoss(len(splits.class_names))
    loss = losses.FocalWeightingLoss if options.loss == "focal" else losses.DistanceMixtureLoss
    return loss(impl=options.impl)


def loader_workers(asked: int | None, splits: Splits) -> int:
    """Processes that decode images; none where the images are in memory."""
    if not isinstance(splits.train, ImageFiles):
        return 0
    return min(8, os.cpu_count() or 1) if asked is None else asked


def embed(model: nn.Module, images: Images, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and labels of all images."""
    return validating(model, images, workers)()


def validating(model: nn.Module, images: Images, workers: int = 0) -> training.Validation:
    """Embeds images whenever it is called."""
    return training.Validation(model, images, 64 if isinstance(images, ImageFiles) else 512, workers)
