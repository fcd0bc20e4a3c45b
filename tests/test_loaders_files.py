"""Image files become RGB in one fixed way, and damaged or hostile ones are refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ala_metric import data
from ala_metric.data.image_files import MAX_PIXELS, decode

# Rows and columns of a picture whose orientation shows: red left half, blue right half; its top row white.
MARKED = np.zeros((8, 8, 3), dtype=np.uint8)
MARKED[:, :4, 0] = 255
MARKED[:, 4:, 2] = 255
MARKED[0] = 255


def png(width: int, height: int, data_chunk: bytes = b"") -> bytes:
    """A PNG by its specification, of any announced size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data_chunk) + chunk(b"IEND", b"")


def test_pixels_arrive_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(MARKED).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 8) == MARKED).all()
    files = data.ImageFiles(tmp_path, ("a.png",), torch.tensor([3]), "one", size=8)
    image, label = files[0]
    assert torch.equal(image, torch.from_numpy(MARKED).permute(2, 0, 1) / 255)
    assert label == 3


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = MARKED
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 8) == MARKED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    # By the EXIF standard: how the stored rows and columns must be turned to stand upright.
    stored = {
        1: MARKED,
        2: MARKED[:, ::-1],
        3: MARKED[::-1, ::-1],
        4: MARKED[::-1],
        5: MARKED.transpose(1, 0, 2),
        6: np.rot90(MARKED, 1),
        7: np.rot90(MARKED, 2).transpose(1, 0, 2),
        8: np.rot90(MARKED, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (decode(tmp_path / "a.png", 8) == MARKED).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        found = decode(tmp_path / name, 8)
        assert (found == np.rint(grey / 257)[:, :, None]).all()


def test_palette_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(MARKED).quantize(4)
    palette.save(tmp_path / "p.png")
    assert (decode(tmp_path / "p.png", 8) == MARKED).all()
    alpha = np.dstack([MARKED, np.full((8, 8), 255, np.uint8)])
    alpha[4:, :, 3] = 0  # transparent: white shows, not the colour beneath
    Image.fromarray(alpha).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", 8)
    assert (found[:4] == MARKED[:4]).all()
    assert (found[4:] == 255).all()
    palette.save(tmp_path / "t.png", transparency=palette.getpixel((0, 7)))
    assert (decode(tmp_path / "t.png", 8)[7, 0] == 255).all()
    Image.fromarray(MARKED[:, :, 0]).convert("1").save(tmp_path / "b.png")
    assert (decode(tmp_path / "b.png", 8)[3] == MARKED[3, :, [0]].T).all()


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(MARKED).resize((64, 64), Image.Resampling.NEAREST).convert("CMYK").save(
        tmp_path / "a.jpg", quality=95
    )
    found = decode(tmp_path / "a.jpg", 64).astype(int)
    # JPEG moves colours by a few levels away from the edges.
    assert abs(found[40, 8] - [255, 0, 0]).max() <= 6
    assert abs(found[40, 56] - [0, 0, 255]).max() <= 6


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (decode(path, 8) == [255, 0, 0]).all()


def test_a_large_jpeg_is_decoded_small_but_not_too_small(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((1600, 1600), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)).astype(int)
    # At a quarter 2.3 levels apart on average; at an eighth, enlarged afterwards, 14.
    assert abs(decode(tmp_path / "a.jpg", 256) - whole).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.8])
def test_a_truncated_file_is_named(suffix: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"cannot decode .*cut\.{suffix}"):
        decode(cut, 16)


@pytest.mark.parametrize("limit", [None, 10**12])
def test_a_bomb_is_refused_by_its_header(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another library has lifted Pillow's own limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000, zlib.compress(b"")))
    with pytest.raises(ValueError, match=r"bomb\.png.*20000 x 20000"):
        decode(tmp_path / "bomb.png", 16)
    side = int(MAX_PIXELS**0.5)
    (tmp_path / "over.png").write_bytes(png(side + 1, side))
    with pytest.raises(ValueError, match="announces"):
        decode(tmp_path / "over.png", 16)


def test_a_bomb_is_refused_with_the_limit_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000))
    with pytest.raises(ValueError, match=r"cannot decode .*bomb\.png"):
        decode(tmp_path / "bomb.png", 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.jpg", b"not an image at all"),
        ("empty.jpg", b""),
        ("program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        ("flat.png", png(0, 5)),
        ("short.png", png(5, 5, zlib.compress(b"\0"))),
    ],
)
def test_what_is_no_image_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot decode .*{name}"):
        decode(tmp_path / name, 16)


def test_formats_outside_the_list_are_refused(tmp_path: Path) -> None:
    for suffix in ("pcx", "tga", "eps"):
        Image.fromarray(MARKED).save(tmp_path / f"a.{suffix}")
        with pytest.raises(ValueError, match="cannot identify"):
            decode(tmp_path / f"a.{suffix}", 8)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decode(tmp_path / "f.tif", 4)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        decode(tmp_path / "gone.png", 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_names_the_file(workers: int, tmp_path: Path) -> None:
    Image.fromarray(MARKED).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"junk")
    files = data.ImageFiles(tmp_path, ("good.png", "bad.png"), torch.tensor([0, 1]), "two", size=8)
    with pytest.raises(ValueError, match=r"cannot decode .*bad\.png"):
        list(DataLoader(files, batch_size=2, num_workers=workers))


def test_workers_give_the_same_bits(tmp_path: Path) -> None:
    for sample in range(5):
        noise = np.random.default_rng(sample).integers(0, 256, (30, 41, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{sample}.jpg")
    files = data.ImageFiles(tmp_path, tuple(f"{s}.jpg" for s in range(5)), torch.arange(5), "noise", size=13)
    alone, shared = (list(DataLoader(files, batch_size=2, num_workers=workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, shared))


@pytest.mark.parametrize(
    ("labels", "size", "match"),
    [
        (torch.tensor([0]), 8, r"int64 \[2\]"),
        (torch.tensor([0.0, 1.0]), 8, "int64"),
        (torch.tensor([0, 1]), 0, "size must be at least 1"),
    ],
)
def test_sets_of_files_check_their_arguments(labels: torch.Tensor, size: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.ImageFiles(".", ("a", "b"), labels, "bad", size)
