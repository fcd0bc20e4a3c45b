"""Data sets, their splits and verification pairs, and class-balanced batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from .._arguments import integer
from .cache import cache_folder
from .cifar import load_cifar10, load_cifar100
from .class_splits import class_splits
from .digits import load_digits
from .expected import EXPECTED, counts
from .glyphs import load_glyphs
from .image_files import ImageFiles
from .imagenet import load_imagenet
from .lfw import load_lfw
from .list_files import checked_root
from .pairs import verification_pairs
from .sampler import ClassBalancedSampler
from .sets import ImageSet, Splits
from .sop import load_sop
from .webface import load_webface

__all__ = [
    "DATASETS",
    "EXPECTED",
    "ClassBalancedSampler",
    "ImageFiles",
    "ImageSet",
    "Splits",
    "cache_folder",
    "class_splits",
    "counts",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_glyphs",
    "load_imagenet",
    "load_lfw",
    "load_sop",
    "load_webface",
    "verification_pairs",
]

_Path = str | os.PathLike[str] | None


class Loader(Protocol):
    """Builds the splits of one data set."""

    def __call__(self, *, root: _Path, seed: int, cache: _Path, size: int | None) -> Splits:
        """Load from ``root``, or draw with ``seed``, keeping what is slow to build in ``cache``."""
        ...


def _built_in(name: str, build: Callable[[int, _Path], Splits]) -> Loader:
    """A data set that needs no files."""

    def loader(*, root: _Path, seed: int, cache: _Path, size: int | None) -> Splits:
        if root is not None:
            raise ValueError(f"{name} needs no files: root must be None, got {os.fspath(root)!r}")
        _refuse_size(name, size)
        return build(seed, cache)

    return loader


def _records(name: str, build: Callable[..., Splits]) -> Loader:
    """A data set whose images have one size already."""

    def loader(*, root: _Path, seed: int, cache: _Path, size: int | None) -> Splits:
        _refuse_size(name, size)
        return build(checked_root(name, root), seed=seed)

    return loader


def _files(name: str, build: Callable[..., Splits], *, random: bool) -> Loader:
    """A data set of image files; ``random`` where its splits depend on a seed."""

    def loader(*, root: _Path, seed: int, cache: _Path, size: int | None) -> Splits:
        drawn = {"seed": seed} if random else {}
        return build(checked_root(name, root), size=DEFAULT_SIZE if size is None else size, **drawn)

    return loader


def _refuse_size(name: str, size: int | None) -> None:
    if size is not None:
        raise ValueError(f"the images of {name} have a size of their own: size must be None, got {size}")


DEFAULT_SIZE = 64

DATASETS: dict[str, Loader] = {
    "digits": _built_in("digits", lambda seed, cache: load_digits(seed=seed)),
    "glyphs": _built_in("glyphs", lambda seed, cache: load_glyphs("mid", seed=seed, cache=cache)),
    "glyphs-easy": _built_in("glyphs", lambda seed, cache: load_glyphs("easy", seed=seed, cache=cache)),
    "glyphs-hard": _built_in("glyphs", lambda seed, cache: load_glyphs("hard", seed=seed, cache=cache)),
    "sop": _files("sop", load_sop, random=False),
    "lfw": _files("lfw", load_lfw, random=False),
    "webface": _files("webface", load_webface, random=True),
    "imagenet": _files("imagenet", load_imagenet, random=True),
    "cifar10": _records("cifar10", load_cifar10),
    "cifar100": _records("cifar100", load_cifar100),
}


def load(
    name: str, *, root: _Path = None, seed: int = 0, cache: _Path = None, size: int | None = None
) -> Splits:
    """Load a data set by name.

    Nothing is downloaded: the real data sets are read from a folder that the user has filled.

    Parameters
    ----------
    name
        A key of ``DATASETS``: ``"digits"``, ``"glyphs"`` (also ``"glyphs-easy"``, ``"glyphs-hard"``), and
        from files ``"sop"``, ``"lfw"``, ``"webface"``, ``"cifar10"``, ``"cifar100"``, ``"imagenet"``.
    root
        Folder with the user's files; None for the data sets that need none.
    seed
        Non-negative; everything random in the data set is a function of it.
    cache
        Folder for what is slow to build; None takes the user's cache folder, see :func:`cache_folder`.
    size
        Height and width that image files are brought to; None is 64. Not for images in memory.

    Returns
    -------
    Splits
        Train, validation and test: an :class:`ImageSet` in memory, or :class:`ImageFiles` decoded when asked
        for.

    Raises
    ------
    ValueError
        If the name is unknown, the seed negative, a root given to a data set that needs none or missing where
        one is needed, or a file malformed: the message names file and line.
    TypeError
        If the seed or size is no integer.
    FileNotFoundError
        If the root or a file of the data set is missing.
    ImportError
        If the data set needs an optional package that is missing.

    Examples
    --------
    >>> digits = load("digits")
    >>> image, label = digits.train[0]
    >>> tuple(image.shape), digits.train.classes.tolist()
    ((1, 8, 8), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(sorted(DATASETS))}, got {name!r}")
    seed = integer("seed", seed)
    size = None if size is None else integer("size", size)
    if seed < 0:
        raise ValueError(f"seed must be non-negative, got {seed}")
    return DATASETS[name](root=root, seed=seed, cache=cache, size=size)
