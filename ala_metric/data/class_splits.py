"""A retrieval data set as a classification problem."""

from __future__ import annotations

import torch

from .sets import ImageSet, Splits


def class_splits(splits: Splits, classes: int, *, seed: int = 0) -> Splits:
    """Some of a data set's training classes, the images of each divided into the three sets.

    Half of the images of a class are for training, a quarter (at least one) for validation and the rest for
    the test. Classes are numbered anew from 0.

    Parameters
    ----------
    splits
        Splits with images in memory, such as ``data.load("glyphs")``.
    classes
        How many of the training classes, drawn at random.
    seed
        Of the draw of classes; the images of a class are divided in their order.

    Returns
    -------
    Splits
        All three sets have the same classes.

    Raises
    ------
    TypeError
        If the images are files.
    ValueError
        If there are fewer training classes than asked for, or a class has fewer than three images.

    Examples
    --------
    >>> images = torch.zeros(24, 1, 4, 4, dtype=torch.uint8)
    >>> many = ImageSet(images, torch.arange(24) // 8, "toy")
    >>> few = class_splits(Splits("toy", many, many, many, ("a", "b", "c"), class_disjoint=False), 2)
    >>> len(few.train), len(few.validation), len(few.test), few.train.classes.tolist()
    (8, 4, 4, [0, 1])
    """
    source = splits.train
    if not isinstance(source, ImageSet):
        raise TypeError(f"splits must have images in memory, got {type(source).__name__}")
    known = source.classes
    if not 2 <= classes <= len(known):
        raise ValueError(f"classes must lie in [2, {len(known)}] for {splits.name}, got {classes}")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    chosen = known[torch.randperm(len(known), generator=generator)[:classes]]
    rows: tuple[list[torch.Tensor], ...] = ([], [], [])
    for label in chosen:
        own = (source.labels == label).nonzero()[:, 0]
        if len(own) < 3:
            raise ValueError(
                f"class {int(label)} of {splits.name} must have 3 images or more, has {len(own)}"
            )
        train, held_out = len(own) // 2, max(1, len(own) // 4)
        for found, some in zip(rows, own.split([train, held_out, len(own) - train - held_out])):
            found.append(some)

    def part(number: int, name: str) -> ImageSet:
        counts = torch.tensor([len(some) for some in rows[number]])
        labels = torch.arange(classes).repeat_interleave(counts)
        return ImageSet(source.images[torch.cat(rows[number])], labels, f"{splits.name} classes, {name}")

    return Splits(
        splits.name,
        train=part(0, "train"),
        validation=part(1, "validation"),
        test=part(2, "test"),
        class_names=tuple(splits.class_names[label] for label in chosen.tolist()),
        class_disjoint=False,
    )
