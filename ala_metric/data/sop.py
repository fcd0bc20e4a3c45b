"""Stanford Online Products (SOP): retrieval of products that were never trained on."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .image_files import ImageFiles
from .list_files import Inside, checked_root, read_rows, whole_number
from .sets import Splits

HEADER = ["image_id", "class_id", "super_class_id", "path"]
TRAIN_OF, OFFICIAL_TRAIN = 10_000, 11_318


def load_sop(root: str | os.PathLike[str], *, size: int = 64) -> Splits:
    """Load Stanford Online Products with the split of the paper.

    The classes of ``Ebay_train.txt`` in ascending order of their number: the first 10,000 of the 11,318 are
    the training set, the other 1,318 the validation set; of a subset with another number of classes the same
    share, rounded down. ``Ebay_test.txt`` is the test set.

    Parameters
    ----------
    root
        Holds ``Ebay_train.txt``, ``Ebay_test.txt`` and the folders that they name.
    size
        Height and width of the items, in pixels.

    Returns
    -------
    Splits
        ``class_names`` are the class numbers of the lists.

    Raises
    ------
    ValueError
        Naming file and line: if a list is malformed, names a file outside ``root`` or a missing one, or an
        image twice; if the lists share a class; if there are fewer than two training classes.
    FileNotFoundError
        If ``root`` or a list is missing.

    Examples
    --------
    >>> load_sop("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of sop is not a folder: /nowhere
    """
    folder = checked_root("sop", root)
    inside, seen = Inside(folder), dict[str, str]()
    paths, classes = _read_list(folder / "Ebay_train.txt", inside, seen)
    test_paths, test_classes = _read_list(folder / "Ebay_test.txt", inside, seen)
    numbers = sorted(set(classes) | set(test_classes))
    label = {number: index for index, number in enumerate(numbers)}
    names = tuple(map(str, numbers))
    labels = torch.tensor([label[number] for number in classes])
    images = ImageFiles(folder, paths, labels, "sop", size)
    test_labels = torch.tensor([label[number] for number in test_classes])
    ordered = images.classes
    first = len(ordered) * TRAIN_OF // OFFICIAL_TRAIN
    if first < 1:
        raise ValueError(f"{folder / 'Ebay_train.txt'} must hold at least 2 classes, got {len(ordered)}")
    training = labels < ordered[first]
    return Splits(
        "sop",
        train=images.subset(training.nonzero()[:, 0], "sop train"),
        validation=images.subset((~training).nonzero()[:, 0], "sop validation"),
        test=ImageFiles(folder, test_paths, test_labels, "sop test", size),
        class_names=names,
        class_disjoint=True,
    )


def _read_list(path: Path, inside: Inside, seen: dict[str, str]) -> tuple[tuple[str, ...], list[int]]:
    """Paths and class numbers of one list; ``seen`` remembers where each path was listed."""
    rows = read_rows(path, columns=(len(HEADER),))
    if not rows or rows[0][1] != HEADER:
        raise ValueError(f"{path} must begin with the line {' '.join(HEADER)!r}")
    if len(rows) == 1:
        raise ValueError(f"{path} lists no image")
    paths, classes = [], []
    for number, (_, class_id, _, name) in rows[1:]:
        where = f"{path}, line {number}"
        classes.append(whole_number(class_id, where, "class_id"))
        name = inside.check(name, where)
        paths.append(name)
        if name in seen:
            raise ValueError(f"{where}: {name!r} was listed before, in {seen[name]}")
        seen[name] = where
    return tuple(paths), classes
