"""What is classified: data, its splits and its class distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ala_metric import data, metrics
from ala_metric.data import ImageSet

DATA = ("digits", "glyphs", "cifar10", "imagenet")
GLYPH_CLASSES, GLYPH_SIDE = 100, 14
KEPT = 0.1  # share of the images that the rare half of the classes keeps
FLIPPED = 0.4  # share of wrong labels


@dataclass(frozen=True)
class Task:
    """A data set and how its labels are distributed.

    Parameters
    ----------
    name
        On the command line and in files.
    data
        For ``ala_metric.data.load``.
    variant
        ``"clean"``, ``"imbalanced"`` (half of the classes have a tenth of their images, in training and
        validation alike) or ``"noisy"`` (40 % of the labels of training and validation are wrong).
    root
        Folder of the files, where the data set needs them.
    size
        Pixels that image files are resized to.
    """

    name: str
    data: str
    variant: str = "clean"
    root: Path | None = None
    size: int | None = None


def tasks_of(name: str, root: Path | None = None, size: int | None = None) -> list[Task]:
    """All tasks of a data set."""
    if name == "digits":
        return [Task(f"digits-{variant}", name, variant) for variant in ("clean", "imbalanced", "noisy")]
    return [Task(f"{name}-clean", name, root=root, size=size)]


@dataclass(frozen=True)
class Problem:
    """Images and metric of a task."""

    train: Any
    validation: Any
    test: Any
    classes: int
    shape: tuple[int, int, int]
    metric: Any
    augment: bool = False


@lru_cache(maxsize=2)
def problem(task: Task, seed: int) -> Problem:
    """The images of a seed. Splits of small data sets, rare classes and wrong labels depend on it."""
    if task.data == "glyphs":
        train, validation, test, classes = _glyphs(seed)
    else:
        options = {"root": task.root, "size": task.size} if task.root else {}
        splits = data.load(task.data, seed=0 if task.root else seed, **options)
        train, validation, test = splits.train, splits.validation, splits.test
        classes = len(splits.class_names)
    change: Callable[..., ImageSet] | None = {"imbalanced": _imbalanced, "noisy": _noisy}.get(task.variant)
    if change is not None:
        train, validation = change(train, classes, seed), change(validation, classes, seed + 1000)
    metric = metrics.BalancedError() if task.variant == "imbalanced" else metrics.ClassificationError()
    shape = tuple(train[0][0].shape)
    return Problem(train, validation, test, classes, shape, metric, augment=task.data == "cifar10")


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets in one."""
    images, labels = torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    return ImageSet(images, labels, first.name)


class Batches:
    """A data set whose batches follow its own class distribution.

    ``fit`` balances its batches over ``labels``: here those are as many groups, drawn at random, as a batch
    has images, so that one image of each is a stratified draw from the whole set.

    Parameters
    ----------
    images
        A labelled set.
    size
        Images in a batch.
    seed
        Of the groups.
    augment
        Shift by up to four pixels and mirror (from torch's global stream), as is usual for CIFAR.
    """

    def __init__(self, images: Any, size: int, seed: int, augment: bool = False) -> None:
        self.images, self.augment = images, augment
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self.labels = torch.empty(len(images), dtype=torch.int64)
        self.labels[order] = torch.arange(len(images)) % size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """Items of one batch."""
        if hasattr(self.images, "__getitems__"):
            found = self.images.__getitems__(indices)
        else:
            found = [self.images[index] for index in indices]
        return [(shifted(image), label) for image, label in found] if self.augment else found


def shifted(image: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """A random crop of the padded image, mirrored half of the time."""
    x, y, mirrored = torch.randint(2 * pad + 1, (3,)).tolist()
    height, width = image.shape[1:]
    crop = F.pad(image, (pad, pad, pad, pad))[:, y : y + height, x : x + width]
    return crop.flip(2) if mirrored % 2 else crop


def _glyphs(seed: int) -> tuple[ImageSet, ImageSet, ImageSet, int]:
    """Characters as classes, at half their resolution."""
    splits = data.class_splits(data.load("glyphs"), GLYPH_CLASSES, seed=seed)

    def smaller(images: Any) -> ImageSet:
        pixels = F.adaptive_avg_pool2d(images.images.float(), GLYPH_SIDE).round().to(torch.uint8)
        return ImageSet(pixels, images.labels, images.name)

    return smaller(splits.train), smaller(splits.validation), smaller(splits.test), GLYPH_CLASSES


def _imbalanced(images: ImageSet, classes: int, seed: int) -> ImageSet:
    """The second half of the classes keeps a tenth of its images."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(classes):
        own = (images.labels == label).nonzero()[:, 0]
        keep = len(own) if label < classes // 2 else max(1, round(KEPT * len(own)))
        rows.append(own[torch.randperm(len(own), generator=generator)[:keep]])
    kept = torch.cat(rows)
    return ImageSet(images.images[kept], images.labels[kept], images.name)


def _noisy(images: ImageSet, classes: int, seed: int) -> ImageSet:
    """40 % of the labels become another class, each equally likely."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(images), generator=generator) < FLIPPED
    shift = torch.randint(1, classes, (len(images),), generator=generator)
    labels = torch.where(wrong, (images.labels + shift) % classes, images.labels)
    return ImageSet(images.images, labels, images.name)
