"""CIFAR-10 and CIFAR-100 from their binary versions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .list_files import checked_root, read_rows
from .sets import ImageSet, Splits, split_rows

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class _Layout:
    """Files of one version; a record is its label bytes, the class in the last of them, then the pixels."""

    name: str
    folder: str
    python_folder: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int
    site_name: str


CIFAR_10 = _Layout(
    "cifar10",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    classes=10,
    label_bytes=1,
    site_name="CIFAR-10 binary version",
)
CIFAR_100 = _Layout(
    "cifar100",
    "cifar-100-binary",
    "cifar-100-python",
    ("train.bin",),
    "test.bin",
    "fine_label_names.txt",
    classes=100,
    label_bytes=2,
    site_name="CIFAR-100 binary version",
)


def load_cifar10(root: str | os.PathLike[str], *, seed: int = 0) -> Splits:
    """Load CIFAR-10: 40,000 images to train on, 10,000 for validation as in the paper, 10,000 for test.

    Parameters
    ----------
    root
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or the folder
        ``cifar-10-batches-bin`` with them.
    seed
        Of the draw of a fifth of the training images for validation.

    Returns
    -------
    Splits
        Images uint8 ``[N, 3, 32, 32]``.

    Raises
    ------
    ValueError
        If a file is not whole records, a label is above 9, or only the Python version is there: pickles are
        never loaded.
    FileNotFoundError
        If ``root`` or a file is missing.

    Examples
    --------
    >>> load_cifar10("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of cifar10 is not a folder: /nowhere
    """
    return _load(CIFAR_10, root, seed)


def load_cifar100(root: str | os.PathLike[str], *, seed: int = 0) -> Splits:
    """Load CIFAR-100 with its 100 fine classes: 40,000 / 10,000 / 10,000 images.

    Parameters
    ----------
    root
        Holds ``train.bin`` and ``test.bin``, or the folder ``cifar-100-binary`` with them.
    seed
        As in :func:`load_cifar10`.

    Returns
    -------
    Splits
        Images uint8 ``[N, 3, 32, 32]``.

    Raises
    ------
    ValueError
        As in :func:`load_cifar10`; labels go up to 99.
    FileNotFoundError
        If ``root`` or a file is missing.

    Examples
    --------
    >>> load_cifar100("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of cifar100 is not a folder: /nowhere
    """
    return _load(CIFAR_100, root, seed)


def _load(layout: _Layout, root: str | os.PathLike[str], seed: int) -> Splits:
    folder = checked_root(layout.name, root)
    if (folder / layout.folder).is_dir():
        folder = folder / layout.folder
    images, labels = zip(*(_read(folder / file, layout) for file in layout.train))
    whole = ImageSet(torch.cat(images), torch.cat(labels), layout.name)
    rows, held_out = split_rows(len(whole), len(whole) // 5, seed)
    if not len(held_out):
        raise ValueError(f"{folder} must hold at least 5 training images, got {len(whole)}")

    def part(of: torch.Tensor, name: str) -> ImageSet:
        return ImageSet(whole.images[of], whole.labels[of], f"{layout.name} {name}")

    return Splits(
        layout.name,
        train=part(rows, "train"),
        validation=part(held_out, "validation"),
        test=ImageSet(*_read(folder / layout.test, layout), f"{layout.name} test"),
        class_names=_class_names(folder, layout),
        class_disjoint=False,
    )


def _read(path: Path, layout: _Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of one file."""
    if not path.is_file():
        folder = path.parent
        files = (path.with_suffix(""), folder / "batches.meta", folder / "meta")
        if (folder / layout.python_folder).is_dir() or any(file.is_file() for file in files):
            raise ValueError(
                f"{folder} holds the Python version of {layout.name}, whose pickles are not loaded; "
                f"unpack the {layout.site_name}"
            )
        raise FileNotFoundError(f"{layout.name} has no file {path}; unpack the {layout.site_name}")
    record = layout.label_bytes + PIXELS
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % record:
        raise ValueError(f"{path} must be whole records of {record} bytes, got {len(content)} bytes")
    rows = torch.from_numpy(content).view(-1, record)
    labels = rows[:, layout.label_bytes - 1].long()
    if int(labels.max()) >= layout.classes:
        first = int((labels >= layout.classes).nonzero()[0, 0])
        raise ValueError(
            f"{path}: labels must lie in [0, {layout.classes}), got {int(labels[first])} in record {first}"
        )
    return rows[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE), labels


def _class_names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    """Names from the file that comes with the images; numbers where it is missing."""
    path = folder / layout.names
    if not path.is_file():
        return tuple(map(str, range(layout.classes)))
    names = tuple(row[0] for _, row in read_rows(path, columns=(1,)))
    if len(names) != layout.classes:
        raise ValueError(f"{path} must name {layout.classes} classes, got {len(names)}")
    return names
