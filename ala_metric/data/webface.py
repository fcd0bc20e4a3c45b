"""Faces in one folder per person, as CASIA-WebFace comes."""

from __future__ import annotations

import os

import numpy as np
import torch

from .folders import image_folders
from .image_files import ImageFiles
from .list_files import checked_root
from .sets import Splits

HELD_OUT = 10
FEWEST = 2
"""People in a set: with one, no query has a negative and every answer is right."""


def load_webface(root: str | os.PathLike[str], *, size: int = 64, seed: int = 0) -> Splits:
    """Load a folder of faces, one folder per person.

    The paper trains on all of CASIA-WebFace and verifies on LFW: that is :func:`load_lfw`. For retrieval
    within this set a tenth of the people, at least two, is drawn for validation and as many for test.

    Parameters
    ----------
    root
        Holds ``PERSON/*.jpg``.
    size
        Height and width of the items, in pixels.
    seed
        Of the draw of people.

    Returns
    -------
    Splits
        No person is in two of the three sets.

    Raises
    ------
    ValueError
        If there are fewer than six people, a folder has no image, or a link leaves the root.
    FileNotFoundError
        If ``root`` is not a folder.

    Examples
    --------
    >>> load_webface("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of webface is not a folder: /nowhere
    """
    folder = checked_root("webface", root)
    names, files = image_folders(folder, "webface", size)
    if len(names) < 3 * FEWEST:
        raise ValueError(
            f"webface: three splits need at least {3 * FEWEST} people, {folder} has {len(names)}"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(names)))
    held = max(FEWEST, len(names) // HELD_OUT)

    def part(people: torch.Tensor, name: str) -> ImageFiles:
        return files.subset(torch.isin(files.labels, people).nonzero()[:, 0], f"webface {name}")

    return Splits(
        "webface",
        train=part(order[2 * held :], "train"),
        validation=part(order[:held], "validation"),
        test=part(order[held : 2 * held], "test"),
        class_names=names,
        class_disjoint=True,
    )
