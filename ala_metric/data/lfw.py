"""Labeled Faces in the Wild (LFW): verification, with the training faces of CASIA-WebFace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from .folders import image_folders
from .image_files import ImageFiles
from .list_files import Inside, checked_root, read_rows, whole_number
from .sets import Splits, refuse_shared_classes

IMAGES, TRAINING = "lfw", "webface"
VIEW_1, VIEW_2 = ("pairsDevTrain.txt", "pairsDevTest.txt"), "pairs.txt"

_Image = tuple[str, str]
"""Person, and path below the image folder."""


def load_lfw(root: str | os.PathLike[str], *, size: int = 64) -> Splits:
    """Load the faces to train on and the verification pairs of LFW.

    Training on the folder ``webface``, one folder per person (CASIA-WebFace in the paper). Validation on
    View 1, which LFW has for choosing between models: two folds, ``pairsDevTrain.txt`` and
    ``pairsDevTest.txt``, so a threshold found on the one is judged on the other. Test on View 2, the 10
    folds of ``pairs.txt``. By LFW's design the two views share people; neither shares any with the training
    set, as far as the names of the folders tell.

    Parameters
    ----------
    root
        Holds ``lfw/PERSON/PERSON_0001.jpg``, the three lists of pairs, and ``webface/PERSON/*.jpg``. The two
        folders may be links.
    size
        Height and width of the items, in pixels.

    Returns
    -------
    Splits
        ``test`` and ``validation`` hold the images that a pair names, in order of their paths.

    Raises
    ------
    ValueError
        Naming file and line: if a list is malformed, has fewer or more pairs than its header says, or names
        a missing image or one outside the folder; if a person is in the training set and in LFW.
    FileNotFoundError
        If a folder or a list is missing.

    Examples
    --------
    >>> load_lfw("/nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: root of lfw is not a folder: /nowhere
    """
    folder = checked_root("lfw", root)
    faces = checked_root("lfw images", folder / IMAGES)
    inside = Inside(faces)
    view_1 = [read_pairs(folder / name, inside) for name in VIEW_1]
    view_2 = read_pairs(folder / VIEW_2, inside)
    of_view_1 = [pair for fold, view in enumerate(view_1) for pair in _in_fold(view, fold)]
    people, train = image_folders(checked_root("lfw training", folder / TRAINING), "lfw train", size)
    names = {name: label for label, name in enumerate(people)}
    for left, right, _ in (*of_view_1, *view_2):
        for person, _path in (left, right):
            names.setdefault(person, len(names))
    validation, validation_pairs = _split(of_view_1, faces, names, "lfw view 1", size)
    test, pairs = _split(view_2, faces, names, "lfw view 2", size)
    for split, images in (("validation", validation), ("test", test)):
        refuse_shared_classes("lfw", {"train": train, split: images}, tuple(names))
    return Splits(
        "lfw",
        train,
        validation,
        test,
        class_names=tuple(names),
        class_disjoint=False,
        pairs=pairs,
        folds=torch.tensor([fold for *_, fold in view_2]),
        validation_pairs=validation_pairs,
        validation_folds=torch.tensor([fold for *_, fold in of_view_1]),
    )


def read_pairs(path: Path, inside: Inside) -> list[tuple[_Image, _Image, int]]:
    """Pairs of one list with their fold: per fold n pairs of one person, then n of two people.

    The header is ``folds n``, or ``n`` alone for a single fold.
    """
    rows = read_rows(path, columns=(1, 2, 3, 4))
    if not rows or len(rows[0][1]) > 2:
        raise ValueError(f"{path} must begin with a line 'folds pairs' or 'pairs'")
    header = [whole_number(field, f"{path}, line {rows[0][0]}", "a count") for field in rows[0][1]]
    folds, half = header if len(header) == 2 else (1, header[0])
    expected, found = 2 * folds * half, len(rows) - 1
    if found != expected:
        raise ValueError(f"{path} must hold {expected} pairs, as its header says, but holds {found}")
    pairs = []
    for index, (line, fields) in enumerate(rows[1:]):
        where = f"{path}, line {line}"
        same = index % (2 * half) < half
        if len(fields) != (3 if same else 4):
            kind = "3 columns (one person)" if same else "4 columns (two people)"
            raise ValueError(f"{where}: pair {index + 1} must have {kind}, got {len(fields)} columns")
        first, second = (fields[0], fields[1]), (fields[0] if same else fields[2], fields[-1])
        if not same and first[0] == second[0]:
            raise ValueError(f"{where}: a pair of two people names {first[0]!r} twice")
        left, right = _image(*first, inside, where), _image(*second, inside, where)
        if left == right:
            raise ValueError(f"{where}: a pair of two images names image {first[1]} twice")
        pairs.append((left, right, index // (2 * half)))
    return pairs


def _image(person: str, number: str, inside: Inside, where: str) -> _Image:
    """``PERSON/PERSON_0001.jpg``, which must exist."""
    count = whole_number(number, where, "the number of an image")
    return person, inside.check(f"{person}/{person}_{count:04d}.jpg", where)


def _in_fold(pairs: list[tuple[_Image, _Image, int]], fold: int) -> Iterator[tuple[_Image, _Image, int]]:
    return ((left, right, fold) for left, right, _ in pairs)


def _split(
    pairs: list[tuple[_Image, _Image, int]], root: Path, labels: dict[str, int], name: str, size: int
) -> tuple[ImageFiles, torch.Tensor]:
    """The images of the pairs, each once, and the pairs as rows of them."""
    person_of = {path: person for left, right, _ in pairs for person, path in (left, right)}
    paths = sorted(person_of)
    row = {path: index for index, path in enumerate(paths)}
    of_path = torch.tensor([labels[person_of[path]] for path in paths])
    index = torch.tensor([[row[left[1]], row[right[1]]] for left, right, _ in pairs])
    return ImageFiles(root, tuple(paths), of_path, name, size), index
