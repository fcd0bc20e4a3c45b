"""Images in memory, and the splits that one data set is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from .image_files import ImageFiles


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[torch.Tensor, int]]):
    """A labelled set of small grey or RGB images, held as bytes.

    An item is ``(image, label)``: float32 ``[1 or 3, H, W]`` in [0, 1] and an int.

    Parameters
    ----------
    images
        uint8 ``[N, 1, H, W]`` or ``[N, 3, H, W]``.
    labels
        int64 ``[N]``, one class per image.
    name
        Shown in tables and reports.

    Raises
    ------
    ValueError
        If a shape or a dtype is another one.

    Examples
    --------
    >>> import torch
    >>> images = ImageSet(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 0, 1]), "white")
    >>> image, label = images[2]
    >>> len(images), tuple(image.shape), image.max().item(), label
    (3, (1, 2, 2), 1.0, 1)
    """

    images: torch.Tensor
    labels: torch.Tensor
    name: str

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(
                f"ImageSet.images must be uint8 [N, 1 or 3, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"ImageSet.labels must be int64 [{len(self.images)}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """Items of one batch: what a DataLoader asks for, converted in one go."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return list(zip(self.images[rows].float() / 255, self.labels[rows].tolist()))

    @property
    def classes(self) -> torch.Tensor:
        """The distinct labels, ascending: int64 ``[C]``."""
        return self.labels.unique()


@dataclass(frozen=True, eq=False)
class Splits:
    """Train, validation and test images of one data set, with its verification protocol.

    Parameters
    ----------
    name
        Name that :func:`ala_metric.data.load` knows.
    train, validation, test
        The three sets. The test set is for the final number only.
    class_names
        ``class_names[label]`` for people to read.
    class_disjoint
        Whether the three sets must share no class (retrieval of unseen classes).
    pairs, folds
        Verification pairs of the test set: int64 ``[P, 2]`` indices into ``test``, and the fold of each
        pair, int64 ``[P]``. None where the data set has no verification protocol.
    validation_pairs, validation_folds
        The same for the validation set.

    Raises
    ------
    ValueError
        If ``class_disjoint`` sets share classes (the message lists them), or ``pairs`` and ``folds`` do
        not belong together.

    Examples
    --------
    >>> import torch
    >>> one = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), "one")
    >>> Splits("toy", one, one, one, ("a", "b"), class_disjoint=True)
    Traceback (most recent call last):
    ...
    ValueError: toy: train and validation must share no class, but share 2: a, b
    """

    name: str
    train: ImageSet | ImageFiles
    validation: ImageSet | ImageFiles
    test: ImageSet | ImageFiles
    class_names: tuple[str, ...]
    class_disjoint: bool
    pairs: torch.Tensor | None = None
    folds: torch.Tensor | None = None
    validation_pairs: torch.Tensor | None = None
    validation_folds: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.class_disjoint:
            refuse_shared_classes(
                self.name,
                {"train": self.train, "validation": self.validation, "test": self.test},
                self.class_names,
            )
        for pairs, folds in ((self.pairs, self.folds), (self.validation_pairs, self.validation_folds)):
            if (pairs is None) != (folds is None):
                raise ValueError(f"{self.name}: pairs and folds come together, got only one of them")
            if pairs is not None and folds is not None:
                _check_pairs(self.name, pairs, folds)


def _check_pairs(name: str, pairs: torch.Tensor, folds: torch.Tensor) -> None:
    if pairs.dtype != torch.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{name}: pairs must be int64 [P, 2], got {pairs.dtype} {list(pairs.shape)}")
    if folds.dtype != torch.int64 or folds.shape != pairs.shape[:1]:
        raise ValueError(f"{name}: folds must be int64 [{len(pairs)}], got {folds.dtype} {list(folds.shape)}")


def refuse_shared_classes(
    name: str, sets: Mapping[str, ImageSet | ImageFiles], class_names: Sequence[str]
) -> None:
    """ValueError with the overlap if a class is in two of the sets."""
    known: dict[int, str] = {}
    for split, images in sets.items():
        labels = images.classes.tolist()
        shared = [label for label in labels if label in known]
        if shared:
            names = dict(enumerate(class_names))
            shown = [names.get(label, str(label)) for label in shared[:10]]
            listed = ", ".join(shown) + (", ..." if len(shared) > 10 else "")
            raise ValueError(
                f"{name}: {known[shared[0]]} and {split} must share no class, "
                f"but share {len(shared)}: {listed}"
            )
        known.update(dict.fromkeys(labels, split))


def split_rows(total: int, held_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ``held_out`` of ``total`` rows; the others and the drawn ones, each ascending."""
    order = np.random.default_rng(seed).permutation(total)
    return torch.from_numpy(np.sort(order[held_out:])), torch.from_numpy(np.sort(order[:held_out]))
