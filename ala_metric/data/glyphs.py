"""Glyphs: characters of many alphabets, a small retrieval problem that needs no download.

A class is a code point, its samples are font faces under a small random affine map with noise. The number
of classes and the class-disjoint split are in the proportions of Stanford Online Products.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .cache import Arrays, cache_folder, cached
from .fonts import render, verified_faces
from .pairs import verification_pairs
from .sets import ImageSet, Splits

RULES = 1  # raised when a rule below changes the pixels; part of the cache's file name
TRAIN_CLASSES, VALIDATION_CLASSES, TEST_CLASSES = 1316, 173, 1489
CLASSES = TRAIN_CLASSES + VALIDATION_CLASSES + TEST_CLASSES
SAMPLES = 8  # images per class, each of another face
SIZE = 28  # pixels
LOOK_ALIKE = 0.02  # mean relative squared distance below which two characters are one class


@dataclass(frozen=True)
class Augmentation:
    """Half widths of the uniform distributions that a sample is drawn from.

    Parameters
    ----------
    degrees
        Rotation.
    shift
        Each of x and y, in half image widths.
    log_scale
        Natural logarithm of the magnification.
    shear
        Horizontal shear, in widths per height.
    noise
        Standard deviation of the Gaussian noise, on grey values in [0, 1].
    """

    degrees: float
    shift: float
    log_scale: float
    shear: float
    noise: float


LEVELS = {
    "easy": Augmentation(5, 0.06, 0.08, 0.03, 0.04),
    "mid": Augmentation(10, 0.12, 0.15, 0.06, 0.08),
    "hard": Augmentation(15, 0.18, 0.22, 0.09, 0.12),
}


def load_glyphs(level: str = "mid", *, seed: int = 0, cache: str | os.PathLike[str] | None = None) -> Splits:
    """Glyphs: 2,978 characters x 8 samples of 28 x 28 pixels, in class-disjoint splits.

    Characters are drawn in 16 pinned faces (DejaVu Sans, Sans Mono and Serif in four styles each, and four
    STIXGeneral) at one em size with the baseline kept. A character must be in the character map of at least
    eight faces; look-alikes are one class. About 3,005 classes are left, of which 2,978 are kept at random:
    1,316 for training, 173 for validation, 1,489 for the test.

    Parameters
    ----------
    level
        Augmentation: ``"easy"``, ``"mid"`` or ``"hard"``.
    seed
        Non-negative; classes of the splits, faces, maps, noise and pairs are a function of it.
    cache
        Folder of the cache, see :func:`cache_folder`.

    Returns
    -------
    Splits
        With 6,000 verification pairs of the test set in 10 folds that share no class.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the level is unknown, the seed negative, or a font is not the pinned one.

    Examples
    --------
    >>> load_glyphs("extreme")
    Traceback (most recent call last):
    ...
    ValueError: level must be one of easy, mid, hard, got 'extreme'
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if seed < 0:
        raise ValueError(f"seed must be non-negative, got {seed}")
    path = cache_folder(cache) / f"glyphs-{level}-seed{seed}-rules{RULES}.bin"
    arrays = cached(path, lambda: build(LEVELS[level], seed))
    images = torch.from_numpy(arrays["images"])
    labels = torch.arange(CLASSES).repeat_interleave(SAMPLES)
    train, validation, test = (
        ImageSet(images[rows], labels[rows], f"glyphs {name}")
        for name, rows in zip(
            ("train", "validation", "test"),
            torch.arange(len(labels)).split(
                [SAMPLES * n for n in (TRAIN_CLASSES, VALIDATION_CLASSES, TEST_CLASSES)]
            ),
        )
    )
    pairs, folds = verification_pairs(test.labels, pairs=6000, folds=10, seed=seed)
    return Splits(
        name="glyphs" if level == "mid" else f"glyphs-{level}",
        train=train,
        validation=validation,
        test=test,
        class_names=tuple(map(chr, arrays["codes"].tolist())),
        class_disjoint=True,
        pairs=pairs,
        folds=folds,
    )


def build(augmentation: Augmentation, seed: int, faces: list[Path] | None = None) -> Arrays:
    """Draw, merge, sample: ``images`` uint8 [CLASSES * SAMPLES, 1, 28, 28] and ``codes`` [CLASSES]."""
    rng = np.random.default_rng(seed)
    codes, renders = render(verified_faces() if faces is None else faces, min_faces=SAMPLES)
    representatives = np.unique(merge_look_alikes(renders))
    if len(representatives) < CLASSES:
        raise ValueError(f"the faces give {len(representatives)} classes, {CLASSES} are needed")
    chosen = rng.permutation(representatives)[:CLASSES]
    return {"images": sample(renders[chosen], augmentation, rng), "codes": codes[chosen]}


def merge_look_alikes(renders: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Give look-alikes one label: the lowest index of the characters they are connected to.

    Two characters look alike when, over the faces that have both, at least half of the renders a, b are
    equal bit for bit, or the mean of ``|a - b|^2 / ((|a|^2 + |b|^2) / 2)`` is below ``LOOK_ALIKE``.

    Parameters
    ----------
    renders
        uint8 ``[C, F, H, W]``, all zero where a face lacks the character.

    Returns
    -------
    numpy.ndarray
        Labels int64 ``[C]``.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.eye(4, dtype=np.uint8), np.ones((4, 4), dtype=np.uint8)
    >>> merge_look_alikes(np.stack([a, b, a])[:, None]).tolist()
    [0, 1, 0]
    """
    count = len(renders)
    shared = np.zeros((count, count), dtype=np.float32)
    equal = np.zeros_like(shared)
    distance = np.zeros_like(shared)
    for face in renders.swapaxes(0, 1):
        rows = np.flatnonzero(face.any(axis=(1, 2)))
        pixels = face[rows].reshape(len(rows), -1)
        identity: dict[bytes, int] = {}
        kind = np.array([identity.setdefault(glyph.tobytes(), len(identity)) for glyph in pixels])
        x = pixels.astype(np.float32)
        energy = np.square(x).sum(axis=1)
        total = energy[:, None] + energy
        block = np.ix_(rows, rows)
        shared[block] += 1
        equal[block] += kind[:, None] == kind
        distance[block] += 2 - 4 * (x @ x.T) / total
    alike = (shared > 0) & ((equal >= shared / 2) | (distance < LOOK_ALIKE * shared))
    left, right = np.nonzero(alike)
    labels = np.arange(count)
    while True:
        lowest = labels.copy()
        np.minimum.at(lowest, left, labels[right])
        if np.array_equal(lowest, labels):
            return labels
        labels = lowest


def sample(
    renders: npt.NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Eight faces per character, each under its own affine map, resampled to 28 x 28, with noise."""
    lots = rng.random(renders.shape[:2])
    lots[~renders.any(axis=(2, 3))] = np.inf
    faces = np.argsort(lots, axis=1)[:, :SAMPLES]
    pictures = np.take_along_axis(renders, faces[:, :, None, None], axis=1).reshape(-1, 1, *renders.shape[2:])

    def uniform(half_width: float) -> npt.NDArray[np.float64]:
        return rng.uniform(-half_width, half_width, len(pictures))

    angle, shear = uniform(np.deg2rad(augmentation.degrees)), uniform(augmentation.shear)
    shrink = np.exp(-uniform(augmentation.log_scale))
    cos, sin = shrink * np.cos(angle), shrink * np.sin(angle)
    x, y = uniform(augmentation.shift), uniform(augmentation.shift)
    maps = np.array([[cos, shear * cos - sin, x], [sin, shear * sin + cos, y]]).transpose(2, 0, 1)
    noise = rng.standard_normal((len(pictures), 1, SIZE, SIZE), dtype=np.float32)
    grid = functional.affine_grid(
        torch.from_numpy(maps.astype(np.float32)), [len(pictures), 1, SIZE, SIZE], align_corners=False
    )
    grey = functional.grid_sample(torch.from_numpy(pictures).float() / 255, grid, align_corners=False)
    grey += augmentation.noise * torch.from_numpy(noise)
    bytes_: npt.NDArray[np.uint8] = (grey.clamp(0, 1) * 255).round().byte().numpy()
    return bytes_
