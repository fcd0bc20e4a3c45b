"""Images on disk: one fixed way from a file to an RGB tensor, decoded when an item is asked for."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .._arguments import integer

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats that are decoded; the others of Pillow run programs or are no pictures."""
MAX_PIXELS = 2**26
"""Larger headers are refused before anything is decoded."""


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[tuple[torch.Tensor, int]]):
    """A labelled set of image files, decoded with Pillow when they are asked for.

    An item is ``(image, label)``: float32 ``[3, size, size]`` in [0, 1] and an int. What a file becomes is a
    function of its content and of ``size`` alone: first frame, EXIF orientation applied, 16 bits scaled to 8,
    transparency over white, converted to RGB, the middle square cut out and resized. Decoding parallelises
    over the workers of a ``DataLoader``.

    Parameters
    ----------
    root
        Folder of the files.
    paths
        ``[N]`` paths below ``root``.
    labels
        int64 ``[N]``, one class per file.
    name
        Shown in tables and reports.
    size
        Height and width of every item, in pixels.

    Raises
    ------
    ValueError
        If lengths disagree or ``size`` is not positive. For an item: if its file is truncated, is no image,
        or announces more than 2**26 pixels; the message names the file.
    TypeError
        If ``size`` is no integer.
    FileNotFoundError
        For an item whose file is gone.

    Examples
    --------
    >>> import tempfile, torch
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (40, 30), "red").save(f"{root}/a.png")
    ...     image, label = ImageFiles(root, ("a.png",), torch.tensor([7]), "red", size=8)[0]
    >>> tuple(image.shape), image.mean((1, 2)).tolist(), label
    ((3, 8, 8), [1.0, 0.0, 0.0], 7)
    """

    root: str | os.PathLike[str]
    paths: tuple[str, ...]
    labels: torch.Tensor
    name: str
    size: int = 64

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.paths),):
            raise ValueError(
                f"ImageFiles.labels must be int64 [{len(self.paths)}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if integer("ImageFiles.size", self.size) < 1:
            raise ValueError(f"ImageFiles.size must be at least 1, got {self.size}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = decode(Path(self.root) / self.paths[index], self.size)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, int(self.labels[index])

    @property
    def classes(self) -> torch.Tensor:
        """The distinct labels, ascending: int64 ``[C]``."""
        return self.labels.unique()

    def subset(self, rows: Sequence[int] | torch.Tensor, name: str) -> ImageFiles:
        """The files of some rows, under another name."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        paths = tuple(self.paths[row] for row in chosen.tolist())
        return ImageFiles(self.root, paths, self.labels[chosen], name, self.size)


def decode(path: Path, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one file as RGB, uint8 ``[size, size, 3]``; ValueError naming the file if that cannot be done."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"its header announces {width} x {height} pixels, at most {MAX_PIXELS}")
            # A large JPEG is decoded at a half, a quarter or an eighth of its size where that is enough.
            image.draft(None, (size, size))
            upright = ImageOps.exif_transpose(image)
            return np.array(ImageOps.fit(_rgb(upright), (size, size), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, OSError, ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"cannot decode {path}: {error}") from None
    except (ArithmeticError, LookupError, EOFError, struct.error) as error:  # Pillow on malformed headers
        raise ValueError(f"cannot decode {path}: {type(error).__name__}: {error}") from None


def _rgb(image: Image) -> Image:
    """Any mode of Pillow as RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError(f"its grey values lie in [{values.min()}, {values.max()}], not in [0, 65535]")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of unknown range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
