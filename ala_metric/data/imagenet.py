"""ImageNet (ILSVRC 2012) in one folder per class."""

from __future__ import annotations

import os

from .folders import image_folders
from .list_files import checked_root
from .sets import Splits, split_rows

HELD_OUT = 25


def load_imagenet(root: str | os.PathLike[str], *, size: int = 64, seed: int = 0) -> Splits:
    """Load ImageNet from ``train`` and ``val`` with one folder per class each.

    The official validation images, whose labels everybody reports on, are the test set. A 25th of the
    training images (about 51,000) is drawn as the validation set that the loss adapts to.

    Parameters
    ----------
    root
        Holds ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``.
    size
        Height and width of the items, in pixels.
    seed
        Of the draw of validation images.

    Returns
    -------
    Splits
        All three sets have the same classes, numbered in the order of the folder names.

    Raises
    ------
    ValueError
        If the class folders of ``train`` and ``val`` differ, a folder has no image, or a link leaves it.
    FileNotFoundError
        If ``root`` or one of the two folders is missing.

    Examples
    --------
    >>> load_imagenet("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of imagenet is not a folder: /nowhere
    """
    folder = checked_root("imagenet", root)
    names, images = image_folders(checked_root("imagenet train", folder / "train"), "imagenet train", size)
    test_names, test = image_folders(checked_root("imagenet val", folder / "val"), "imagenet test", size)
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise ValueError(
            f"imagenet: train and val must have the same class folders, {len(odd)} are in one only: "
            + ", ".join(odd[:10])
        )
    rows, held_out = split_rows(len(images), max(1, len(images) // HELD_OUT), seed)
    return Splits(
        "imagenet",
        train=images.subset(rows, "imagenet train"),
        validation=images.subset(held_out, "imagenet validation"),
        test=test,
        class_names=names,
        class_disjoint=False,
    )
