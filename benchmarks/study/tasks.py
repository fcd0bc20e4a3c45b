"""What is trained in the study: data, loss, miner, size of the run, and what counts as good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from ala_metric import classification, data, losses, metrics, training
from ala_metric._pml import TripletMarginMiner
from ala_metric.cli.experiment import SEMIHARD_MARGIN, load_data
from ala_metric.cli.tasks import retrieval, task_of
from ala_metric.data import ImageSet

SIDE = 14  # pixels of the glyphs, averaged from 28
TEST_IMAGES = 4000  # of the 11,912 of the glyphs' test set
MANY_CLASSES = 100
KEPT = 0.1  # share of the images that the second half of the digits keeps
DIGITS = 10
EPOCH_GROUPS = 40


@dataclass(frozen=True)
class Task:
    """One column of the study.

    Parameters
    ----------
    name
        Used on the command line and in files.
    data
        Name of the data set for ``ala_metric.data.load``.
    loss
        ``"mixture"``, ``"focal"`` or ``"correlation"``.
    miner
        ``"none"``, ``"semihard"`` or ``"distance"``.
    title
        For the tables.
    phi
        Where the parameters start; None is the loss's own default.
    base
        Task that runs the rows in which the adaptive loss plays no part; None is the task itself.
    steps, every
        Iterations of a run (T), and per controller step (K).
    variant
        Which classes and images: ``"all"``, ``"imbalanced"`` or ``"many"``.
    """

    name: str
    data: str
    loss: str
    miner: str
    title: str
    phi: tuple[float, ...] | None = None
    base: str | None = None
    steps: int = 600
    every: int = 10
    variant: str = "all"


BUILT_IN = (
    Task("glyphs-allpairs", "glyphs", "mixture", "none", "glyphs, distance mixture, all pairs"),
    Task(
        "glyphs-semihard",
        "glyphs",
        "mixture",
        "semihard",
        "glyphs, distance mixture, semi-hard triplets",
        base="glyphs-allpairs",
    ),
    Task(
        "glyphs-focal",
        "glyphs",
        "focal",
        "none",
        "glyphs, focal weighting from phi = (1, 1), all pairs",
        (1.0, 1.0),
        "glyphs-allpairs",
    ),
    Task("digits-clean", "digits", "correlation", "none", "digits"),
    Task(
        "digits-imbalanced",
        "digits",
        "correlation",
        "none",
        "digits, 10:1 imbalance in training and validation",
        variant="imbalanced",
    ),
    Task(
        "glyphs-aucpr",
        "glyphs",
        "correlation",
        "none",
        f"{MANY_CLASSES} glyph classes, AUCPR",
        variant="many",
    ),
    Task(
        "glyphs-distance",
        "glyphs",
        "mixture",
        "distance",
        "glyphs, distance mixture, distance-weighted triplets",
        base="glyphs-allpairs",
    ),
)


def tasks_of(name: str) -> list[Task]:
    """Tasks of a data set: those listed above, or the same kinds on files that the user has."""
    if found := [task for task in BUILT_IN if task.data == name]:
        return found
    if task_of(name) == "classification":
        return [Task(f"{name}-clean", name, "correlation", "none", name)]
    base = f"{name}-allpairs"
    return [
        Task(base, name, "mixture", "none", f"{name}, distance mixture, all pairs"),
        Task(
            f"{name}-semihard", name, "mixture", "semihard", f"{name}, distance mixture, semi-hard", base=base
        ),
        Task(f"{name}-focal", name, "focal", "none", f"{name}, focal from (1, 1)", (1.0, 1.0), base),
    ]


class Evenly:
    """A data set whose batches follow its own class distribution.

    ``fit`` balances its batches over ``labels``. Here these are groups that the images were dealt to at
    random, as many as a batch has images: one image of each group is a stratified draw from the whole set.
    """

    def __init__(self, images: Any, groups: int, seed: int) -> None:
        self.images = images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self.labels = torch.empty(len(images), dtype=torch.int64)
        self.labels[order] = torch.arange(len(images)) % groups

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index]

    def __getitems__(self, indices: list[int]) -> Any:
        """Items of one batch."""
        if hasattr(self.images, "__getitems__"):
            return self.images.__getitems__(indices)
        return [self.images[index] for index in indices]


@dataclass(frozen=True)
class Problem:
    """The parts of a task that no row changes.

    Parameters
    ----------
    train, validation, test
        Image sets.
    network
        Makes a model; its weights come from torch's global stream.
    paper_metric
        Rewards the published controller.
    metric
        Judges siblings on the validation set: smooth where the metric itself is coarse.
    measure
        Percentages of a test set by column name, the first is the one that the study is about.
    higher_is_better
        Of that first column.
    batch_classes, per_class
        For ``fit``.
    natural
        Whether batches follow the class distribution of the data.
    classes
        Outputs of a classifier, None for embeddings.
    """

    train: Any
    validation: Any
    test: Any
    network: Callable[[], nn.Module]
    paper_metric: Any
    metric: Any
    measure: Callable[[Tensor, Tensor], dict[str, float]]
    higher_is_better: bool
    batch_classes: int
    per_class: int
    natural: bool = False
    classes: int | None = None

    def batches(self, images: Any, seed: int) -> Any:
        """The data set to hand to ``fit``."""
        return Evenly(images, self.batch_classes, seed) if self.natural else images


@lru_cache(maxsize=4)
def problem(task: Task, seed: int, root: Path | None = None) -> Problem:
    """Data, network and metrics of a task. The split depends on the seed for digits and for AUCPR only."""
    if task.data == "digits":
        return _digits(task, seed)
    if task.data == "glyphs":
        return _many_glyphs(seed) if task.variant == "many" else _glyphs()
    return _from_files(task, root)


def make_loss(task: Task, classes: int | None) -> Any:
    """The loss that adapts, at its starting point."""
    if task.loss == "correlation":
        assert classes is not None
        return classification.AdaptiveClassificationLoss(classes, diagonal_low=0.05)
    loss = losses.FocalWeightingLoss if task.loss == "focal" else losses.DistanceMixtureLoss
    return loss() if task.phi is None else loss(phi=task.phi)


def make_miner(name: str) -> Any:
    """Triplets of a batch, or None for all pairs."""
    if name == "semihard":
        return TripletMarginMiner(margin=SEMIHARD_MARGIN, type_of_triplets="semihard")
    if name == "distance":
        from pytorch_metric_learning.miners import DistanceWeightedMiner

        return DistanceWeightedMiner()
    return None


def _perceptron(pixels: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def _smaller(images: ImageSet, count: int | None = None) -> ImageSet:
    pixels = F.adaptive_avg_pool2d(images.images[:count].float(), SIDE).round().to(torch.uint8)
    return ImageSet(pixels, images.labels[:count], images.name)


class Joined(ConcatDataset[Any]):
    """Image files of two sets, with their labels."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(parts)
        self.labels = torch.cat([part.labels for part in parts])


def joined(first: Any, second: Any) -> Any:
    """Training and validation images in one set."""
    if not isinstance(first, ImageSet):
        return Joined(first, second)
    return ImageSet(
        torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]), first.name
    )


def _retrieval(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    found = retrieval(outputs, labels)
    columns = {f"Recall@{k}": 100 * value for k, value in found["recall_at_k"].items()}
    return columns | {"MAP@R": 100 * found["map_at_r"]}


def _classification(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    error = 100 * metrics.ClassificationError()(outputs, labels)
    return {
        "balanced error": 100 * metrics.BalancedError()(outputs, labels),
        "accuracy": 100 - error,
        "error": error,
        "AUCPR": 100 * metrics.AUCPR()(outputs, labels),
    }


def _aucpr_first(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    found = _classification(outputs, labels)
    return {"AUCPR": found.pop("AUCPR"), **found}


@lru_cache(maxsize=1)
def _glyphs() -> Problem:
    splits = load_data("glyphs")
    judge = metrics.RecallAtK((1, 2, 4, 8), distance="cosine")
    return Problem(
        train=_smaller(splits.train),
        validation=_smaller(splits.validation),
        test=_smaller(splits.test, TEST_IMAGES),
        network=lambda: _perceptron(SIDE * SIDE, 128, 32),
        paper_metric=judge,
        metric=judge,
        measure=_retrieval,
        higher_is_better=True,
        batch_classes=16,
        per_class=4,
    )


def _many_glyphs(seed: int) -> Problem:
    """Half of the eight images of each class to train, a quarter to validate, a quarter to test."""
    splits = load_data("glyphs")
    images, labels = splits.train.images.view(-1, 8, 1, 28, 28), splits.train.labels.view(-1, 8)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:MANY_CLASSES]
    places = torch.arange(MANY_CLASSES)[:, None].expand(-1, 8)

    def part(start: int, end: int) -> ImageSet:
        pixels = images[chosen, start:end].reshape(-1, 1, 28, 28)
        return _smaller(ImageSet(pixels, places[:, start:end].reshape(-1), "glyph classes"))

    assert labels.shape[1] == 8
    return Problem(
        train=part(0, 4),
        validation=part(4, 6),
        test=part(6, 8),
        network=lambda: _perceptron(SIDE * SIDE, 128, MANY_CLASSES),
        paper_metric=metrics.AUCPR(),
        metric=metrics.AUCPR(),
        measure=_aucpr_first,
        higher_is_better=True,
        batch_classes=EPOCH_GROUPS,
        per_class=1,
        natural=True,
        classes=MANY_CLASSES,
    )


def _digits(task: Task, seed: int) -> Problem:
    splits = data.load("digits", seed=seed)
    train, validation = splits.train, splits.validation
    if task.variant == "imbalanced":
        train, validation = _imbalanced(train), _imbalanced(validation)
    return Problem(
        train=train,
        validation=validation,
        test=splits.test,
        network=lambda: _perceptron(64, 64, DIGITS),
        paper_metric=metrics.BalancedError(),
        metric=training.MeanLogProbability(),
        measure=_classification,
        higher_is_better=False,
        batch_classes=EPOCH_GROUPS,
        per_class=1,
        natural=True,
        classes=DIGITS,
    )


def _imbalanced(images: ImageSet) -> ImageSet:
    """Digits 0 to 4 as they are, a tenth of 5 to 9."""
    rows = []
    for label in range(DIGITS):
        own = (images.labels == label).nonzero().squeeze(1)
        rows.append(own if label < DIGITS // 2 else own[: max(1, round(KEPT * len(own)))])
    kept = torch.cat(rows)
    return ImageSet(images.images[kept], images.labels[kept], images.name)


def _from_files(task: Task, root: Path | None) -> Problem:
    """The user's own files with the small convolutional network."""
    splits = load_data(task.data, root)
    kind = task_of(task.data)
    outputs = len(splits.class_names) if kind == "classification" else 64
    channels = splits.train[0][0].shape[0]
    judge: Any = metrics.RecallAtK((1, 2, 4, 8), distance="cosine")
    paper: Any = judge
    measure: Callable[[Tensor, Tensor], dict[str, float]] = _retrieval
    if kind == "classification":
        judge, paper, measure = training.MeanLogProbability(), metrics.ClassificationError(), _classification
    elif kind == "verification":
        judge = paper = metrics.VerificationAccuracy(
            splits.validation_pairs, splits.validation_folds, distance="cosine"
        )
        verify = metrics.VerificationAccuracy(splits.pairs, splits.folds, distance="cosine")

        def measure(outputs: Tensor, labels: Tensor) -> dict[str, float]:
            return {"accuracy": 100 * verify(outputs, labels)}

    return Problem(
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        network=lambda: training.SmallConvNet(dim=outputs, inputs=channels),
        paper_metric=paper,
        metric=judge,
        measure=measure,
        higher_is_better=kind != "classification",
        batch_classes=64 if kind == "classification" else min(16, len(splits.train.classes)),
        per_class=1 if kind == "classification" else 4,
        natural=kind == "classification",
        classes=outputs if kind == "classification" else None,
    )
