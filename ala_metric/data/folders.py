"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .image_files import ImageFiles
from .list_files import Inside

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def image_folders(
    root: Path, name: str, size: int, first_label: int = 0
) -> tuple[tuple[str, ...], ImageFiles]:
    """Names of the folders below ``root`` in order, and their images with the folder's number as label.

    Raises
    ------
    ValueError
        If there is no folder, one holds no image, or a link leaves the root.
    """
    inside = Inside(root)
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{root} must hold one folder per class, got none")
    paths: list[str] = []
    counts: list[int] = []
    for folder in names:
        files = sorted(
            entry
            for entry in os.listdir(root / folder)
            if entry.lower().endswith(SUFFIXES) and not entry.startswith(".")
        )
        if not files:
            raise ValueError(f"folder {root / folder} holds no image ({', '.join(SUFFIXES)})")
        paths += (inside.check(f"{folder}/{file}", str(root)) for file in files)
        counts.append(len(files))
    labels = torch.arange(first_label, first_label + len(names)).repeat_interleave(torch.tensor(counts))
    return tuple(names), ImageFiles(root, tuple(paths), labels, name, size)
