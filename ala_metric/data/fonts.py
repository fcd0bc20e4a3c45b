"""The pinned font faces that matplotlib ships, and what they look like on a small canvas."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

CANVAS = 32  # pixels, width and height
EM = 24  # pixels
BASELINE = 24  # pixels below the upper edge, the same for every character


def verified_faces(folder: Path | None = None) -> list[Path]:
    """Paths of the pinned faces, each checked against its hash.

    Parameters
    ----------
    folder
        Where the files are; None takes matplotlib's own font folder.

    Returns
    -------
    list of pathlib.Path
        In the order of the pins.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If a file is missing or has another hash; the message names the file, both hashes and the
        matplotlib version that ships the right one.
    """
    pins = json.loads(resources.files(__package__).joinpath("fonts.json").read_text("utf-8"))
    if folder is None:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "glyphs are drawn with matplotlib's fonts: pip install 'ala-metric[cli]'"
            ) from error
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    release = f"matplotlib{pins['matplotlib']}"
    remedy = f"{release} ships the right one: pip install '{release}'"
    for name, expected in pins["faces"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"font {path} is missing (expected sha256 {expected}); {remedy}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"font {path} has sha256 {found}, expected {expected}; {remedy}")
    return [folder / name for name in pins["faces"]]


def is_drawable(code: int) -> bool:
    """Whether a code point stands for ink: no control, mark, private use, surrogate, unassigned or space."""
    return unicodedata.category(chr(code))[0] not in "CMZ"


def render(faces: list[Path], min_faces: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Draw every drawable character that at least ``min_faces`` faces have and leave ink for.

    Parameters
    ----------
    faces
        Font files.
    min_faces
        Characters of fewer faces are left out.

    Returns
    -------
    tuple of numpy.ndarray
        Code points ``[C]``, ascending, and renders uint8 ``[C, len(faces), CANVAS, CANVAS]``, all zero
        where the face's character map lacks the character.
    """
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    charmaps = [{c for c, glyph in FT2Font(str(face)).get_charmap().items() if glyph} for face in faces]
    candidates = sorted(c for c in set().union(*charmaps) if is_drawable(c))
    codes = [c for c in candidates if sum(c in charmap for charmap in charmaps) >= min_faces]
    renders = np.zeros((len(codes), len(faces), CANVAS, CANVAS), dtype=np.uint8)
    for f, face in enumerate(faces):
        font = ImageFont.truetype(str(face), EM, layout_engine=ImageFont.Layout.BASIC)
        for c, code in enumerate(codes):
            if code in charmaps[f]:
                canvas = Image.new("L", (CANVAS, CANVAS))
                ImageDraw.Draw(canvas).text(
                    (CANVAS // 2, BASELINE), chr(code), fill=255, font=font, anchor="ms"
                )
                renders[c, f] = np.asarray(canvas)
    inked = renders.any(axis=(2, 3)).sum(axis=1) >= min_faces
    return np.array(codes, dtype=np.int64)[inked], renders[inked]
