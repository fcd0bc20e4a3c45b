"""How many classes, images and pairs the published data sets have."""

from __future__ import annotations

import torch

from .sets import Splits

EXPECTED: dict[str, dict[str, int]] = {
    "sop": {
        "train classes": 10_000,
        "validation classes": 1_318,
        "test classes": 11_316,
        "train and validation images": 59_551,
        "test images": 60_502,
    },
    "lfw": {
        "train classes": 10_575,
        "train images": 494_414,
        "validation pairs": 3_200,
        "test pairs": 6_000,
        "test folds": 10,
    },
    "webface": {"all classes": 10_575, "all images": 494_414},
    "cifar10": {
        "train classes": 10,
        "train images": 40_000,
        "validation images": 10_000,
        "test images": 10_000,
    },
    "cifar100": {
        "train classes": 100,
        "train images": 40_000,
        "validation images": 10_000,
        "test images": 10_000,
    },
    "imagenet": {"train classes": 1_000, "train and validation images": 1_281_167, "test images": 50_000},
}
"""Keys as :func:`counts` makes them."""


def counts(splits: Splits) -> dict[str, int]:
    """What a data set holds, under the keys of ``EXPECTED``.

    Parameters
    ----------
    splits
        A loaded data set.

    Returns
    -------
    dict
        Classes and images of every split, and pairs and folds where there are any.

    Examples
    --------
    >>> from ala_metric import data
    >>> data.counts(data.load("digits"))["test classes"]
    10
    """
    sets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found = {f"{name} classes": len(images.classes) for name, images in sets.items()}
    found |= {f"{name} images": len(images) for name, images in sets.items()}
    found["train and validation images"] = len(splits.train) + len(splits.validation)
    found["all classes"] = len(torch.cat([images.classes for images in sets.values()]).unique())
    found["all images"] = sum(map(len, sets.values()))
    if splits.validation_pairs is not None:
        found["validation pairs"] = len(splits.validation_pairs)
    if splits.pairs is not None and splits.folds is not None:
        found |= {"test pairs": len(splits.pairs), "test folds": len(splits.folds.unique())}
    return found
