"""Digits: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np
import torch

from .._arguments import integer
from .sets import ImageSet, Splits


def load_digits(*, seed: int = 0) -> Splits:
    """Digits in stratified splits: 60 % train, 20 % validation, 20 % test; all ten classes in each.

    Parameters
    ----------
    seed
        Non-negative; which image is in which set is a function of it.

    Returns
    -------
    Splits
        Images uint8 ``[N, 1, 8, 8]``, no verification pairs.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    ValueError
        If the seed is negative or not below 2**32.
    TypeError
        If it is no integer.

    Examples
    --------
    >>> digits = load_digits()
    >>> len(digits.train), len(digits.validation), len(digits.test)
    (1077, 360, 360)
    """
    if integer("seed", seed) < 0:
        raise ValueError(f"seed must be non-negative, got {seed}")
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    try:
        from sklearn.datasets import load_digits as sklearn_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: pip install 'ala-metric[cli]'") from error
    images, labels = sklearn_digits(return_X_y=True)
    pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=seed)
    return Splits(
        name="digits",
        train=ImageSet(pixels[train], targets[train], "digits train"),
        validation=ImageSet(pixels[validation], targets[validation], "digits validation"),
        test=ImageSet(pixels[test], targets[test], "digits test"),
        class_names=tuple("0123456789"),
        class_disjoint=False,
    )
