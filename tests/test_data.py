"""Glyphs and digits: the rules they are drawn by, their splits, pairs and cache."""

from __future__ import annotations

import json
import shutil
import unicodedata
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from ala_metric import data
from ala_metric.data import fonts, glyphs
from ala_metric.data.cache import cached


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def splits(cache: Path) -> data.Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a first build has nothing to complain about
        return data.load("glyphs", cache=cache)


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Path], np.ndarray, np.ndarray]:
    faces = fonts.verified_faces()
    return faces, *fonts.render(faces, min_faces=8)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pinned() -> dict[str, str]:
    return json.loads(resources.files("ala_metric.data").joinpath("fonts.json").read_text())["faces"]


# --- what is drawn


def test_sixteen_text_faces_are_pinned() -> None:
    names = list(pinned())
    assert sum(name.startswith("DejaVu") for name in names) == 12
    assert sum(name.startswith("STIXGeneral") for name in names) == 4
    assert len(names) == 16


def test_no_class_is_the_box_of_a_missing_glyph(drawn: tuple[list[Path], np.ndarray, np.ndarray]) -> None:
    from PIL import Image, ImageDraw, ImageFont

    faces, codes, renders = drawn
    for f, face in enumerate(faces):
        font = ImageFont.truetype(str(face), fonts.EM, layout_engine=ImageFont.Layout.BASIC)
        canvas = Image.new("L", (fonts.CANVAS, fonts.CANVAS))
        # U+10FFFF is a noncharacter: no font maps it, so this draws .notdef.
        ImageDraw.Draw(canvas).text(
            (fonts.CANVAS // 2, fonts.BASELINE), "\U0010ffff", 255, font=font, anchor="ms"
        )
        box = np.asarray(canvas)
        assert box.any() == face.name.startswith("DejaVu")  # STIXGeneral's .notdef has no ink
        is_box = (renders[:, f] == box).all(axis=(1, 2)) & box.any()
        assert not is_box.any(), [hex(code) for code in codes[is_box]]


def test_only_ink_is_drawn(drawn: tuple[list[Path], np.ndarray, np.ndarray]) -> None:
    _, codes, renders = drawn
    assert not {unicodedata.category(chr(code))[0] for code in codes} & set("CMZ")
    assert (renders.any(axis=(2, 3)).sum(axis=1) >= 8).all()
    assert 0x2800 not in codes  # the blank Braille pattern is a symbol by category, without ink


def test_a_character_that_no_face_maps_is_not_drawn(
    drawn: tuple[list[Path], np.ndarray, np.ndarray],
) -> None:
    from matplotlib.ft2font import FT2Font

    faces, codes, renders = drawn
    for f in (4, 15):
        charmap = FT2Font(str(faces[f])).get_charmap()
        unmapped = np.array([code not in charmap for code in codes.tolist()])
        assert unmapped.any()
        assert not renders[unmapped, f].any()


def test_look_alikes_are_one_class_and_others_are_not(
    drawn: tuple[list[Path], np.ndarray, np.ndarray],
) -> None:
    _, codes, renders = drawn
    wanted = {"A", "Α", "А", "o", "ο", "о", "B", "8", "É", "E"}
    rows = [i for i, code in enumerate(codes.tolist()) if chr(code) in wanted]
    labels = dict(zip((chr(codes[i]) for i in rows), glyphs.merge_look_alikes(renders[rows]).tolist()))
    assert len(labels) == len(wanted)
    assert labels["A"] == labels["Α"] == labels["А"]  # Latin, Greek, Cyrillic
    assert labels["o"] == labels["ο"] == labels["о"]
    assert len({labels[name] for name in "Ao8BÉE"}) == 6


@pytest.mark.parametrize(
    ("equal_faces", "noise", "together"),
    [
        (2, 200, True),  # bit-identical in 2 of 4 faces: half is enough
        (1, 200, False),  # in 1 of 4, and far apart in the others
        (0, 20, True),  # nowhere identical, (20/255)^2 = 0.006 of relative squared distance
        (0, 60, False),  # (60/255)^2 = 0.055 is above 0.02
    ],
)
def test_look_alike_thresholds(equal_faces: int, noise: int, together: bool) -> None:
    first = np.zeros((4, 8, 8), dtype=np.uint8)
    first[:, 2:6, 2:6] = 255
    second = first.copy()
    second[equal_faces:, 2:6, 2:6] -= np.uint8(noise)
    labels = glyphs.merge_look_alikes(np.stack([first, second]))
    assert labels.tolist() == ([0, 0] if together else [0, 1])


def test_faces_that_lack_a_character_do_not_count_for_it() -> None:
    square = np.zeros((3, 8, 8), dtype=np.uint8)
    square[:, 2:6, 2:6] = 255
    bar = np.zeros_like(square)
    bar[:, :, 1] = 255
    bar[0] = square[0]
    square[1:] = 0  # only face 0 has both, and there they are the same
    assert glyphs.merge_look_alikes(np.stack([square, bar])).tolist() == [0, 0]
    square[0] = 0  # no face in common: nothing to compare
    assert glyphs.merge_look_alikes(np.stack([square, bar])).tolist() == [0, 1]


def test_merging_is_transitive() -> None:
    chain = np.full((4, 1, 4, 4), 255, dtype=np.uint8)
    for i, grey in enumerate((255, 225, 198, 175)):  # each neighbour within 0.02, the ends 0.13 apart
        chain[i] = grey
    assert glyphs.merge_look_alikes(chain[[0, 2, 1, 3]]).tolist() == [0, 0, 0, 0]
    assert glyphs.merge_look_alikes(chain[[0, 3]]).tolist() == [0, 1]


# --- the splits


def test_split_sizes(splits: data.Splits) -> None:
    classes = [len(images.classes) for images in (splits.train, splits.validation, splits.test)]
    assert classes == [1316, 173, 1489]
    assert [len(images) for images in (splits.train, splits.validation, splits.test)] == [10528, 1384, 11912]
    for images in (splits.train, splits.validation, splits.test):
        assert images.images.shape[1:] == (1, 28, 28)
        assert set(images.labels.bincount().tolist()) <= {0, 8}


def test_splits_share_no_class(splits: data.Splits) -> None:
    train, validation, test = (set(s.labels.tolist()) for s in (splits.train, splits.validation, splits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(splits.class_names) == len(set(splits.class_names)) == 2978


def test_shared_classes_are_refused(splits: data.Splits) -> None:
    mixed = data.ImageSet(splits.test.images[:16], splits.train.labels[8:24], "mixed")
    with pytest.raises(ValueError, match=r"train and test must share no class, but share 2: 1, 2"):
        data.Splits("toy", splits.train, splits.validation, mixed, (), class_disjoint=True)


def test_items(splits: data.Splits) -> None:
    image, label = splits.validation[3]
    assert image.dtype == torch.float32
    assert image.shape == (1, 28, 28)
    assert 0 <= image.min() < image.max() <= 1
    assert isinstance(label, int)
    batch = splits.validation.__getitems__([3, 0, 3])
    assert torch.equal(batch[0][0], image)
    assert [entry[1] for entry in batch] == [label, int(splits.validation.labels[0]), label]


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\[N, 1 or 3, H, W\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \[2\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "float32"),
    ],
)
def test_image_set_refuses(images: torch.Tensor, labels: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.ImageSet(images, labels, "bad")


def test_raw_pixels_retrieve_a_quarter(splits: data.Splits, one_thread: None) -> None:
    pixels, labels = splits.test.images.flatten(1).float(), splits.test.labels
    energy = pixels.square().sum(1)
    hits = 0
    for start in range(0, len(pixels), 1024):
        rows = torch.arange(start, min(start + 1024, len(pixels)))
        distance = energy - 2 * pixels[rows] @ pixels.T
        distance[torch.arange(len(rows)), rows] = torch.inf
        hits += int((labels[distance.argmin(1)] == labels[rows]).sum())
    # The design promises .25 +- .03; the default seed gives .255.
    assert hits / len(labels) == pytest.approx(0.25, abs=0.03)


def test_digits_are_stratified() -> None:
    digits = data.load("digits")
    assert not digits.class_disjoint
    assert digits.pairs is None
    assert digits.train.images.shape == (1077, 1, 8, 8)
    assert int(digits.train.images.max()) == 255
    for images in (digits.train, digits.validation, digits.test):
        # 1,797 digits have 174 to 183 of each class: shares between .0968 and .1018, then rounding to one.
        shares = images.labels.bincount(minlength=10) / len(images)
        assert ((shares - 0.1).abs() < 0.006).all()
    again, other = data.load("digits"), data.load("digits", seed=1)
    assert torch.equal(digits.test.images, again.test.images)
    assert not torch.equal(digits.test.images, other.test.images)


def test_digits_splits_partition_the_images() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    parts = torch.cat([s.images for s in (digits.train, digits.validation, digits.test)]).flatten(1)
    original = torch.from_numpy(np.rint(load_digits().data * 255 / 16)).to(torch.uint8)
    assert sorted(map(bytes, parts.numpy())) == sorted(map(bytes, original.numpy()))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.load("mnist"), r"name must be one of cifar10, .*glyphs.*, got 'mnist'"),
        (lambda: data.load("glyphs", root="/data"), r"root must be None, got '/data'"),
        (lambda: data.load("digits", root="/data"), r"root must be None"),
        (lambda: data.load("glyphs", seed=-1), r"seed must be non-negative, got -1"),
        (lambda: data.load("digits", seed=-1), r"seed must be non-negative, got -1"),
        (lambda: data.load("digits", seed=2**32), r"seed must be below 2\*\*32, got 4294967296"),
        (lambda: data.load(["digits"]), r"name must be one of cifar10, .*, got \['digits'\]"),
        (lambda: data.load(None), r"name must be one of cifar10, .*, got None"),
    ],
)
def test_load_refuses(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"size": "a"}, "size must be an integer, got 'a'"),
        ({"size": 8.5}, "size must be an integer, got 8.5"),
    ],
)
def test_load_wants_integers(options: dict, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        data.load("digits", **options)
    assert len(data.load("digits", seed=np.int64(3)).test) == 360


def test_a_size_that_is_no_integer_is_refused_where_it_is_used() -> None:
    with pytest.raises(TypeError, match=r"ImageFiles\.size must be an integer, got 8\.5"):
        data.ImageFiles("/data", ("a.png",), torch.tensor([0]), "one", size=8.5)  # type: ignore[arg-type]


# --- verification pairs


def test_pairs_are_balanced_and_folds_share_no_class(splits: data.Splits) -> None:
    pairs, folds, labels = splits.pairs, splits.folds, splits.test.labels
    assert pairs.shape == (6000, 2)
    assert pairs.dtype == folds.dtype == torch.int64
    assert folds.bincount().tolist() == [600] * 10
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    assert [int(same[folds == f].sum()) for f in range(10)] == [300] * 10
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 6000
    seen = [set(labels[pairs[folds == f]].flatten().tolist()) for f in range(10)]
    assert all(not seen[f] & seen[g] for f in range(10) for g in range(f))


def test_pairs_depend_on_the_seed_alone() -> None:
    labels = torch.arange(60).repeat_interleave(5)
    torch.manual_seed(0)
    first, _ = data.verification_pairs(labels, pairs=200, folds=5, seed=3)
    torch.manual_seed(1)
    again, _ = data.verification_pairs(labels, pairs=200, folds=5, seed=3)
    other, _ = data.verification_pairs(labels, pairs=200, folds=5, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("labels", "pairs", "folds", "match"),
    [
        (torch.arange(40), 20, 10, "fold 0 needs 1 same-class pairs"),
        (torch.zeros(40, dtype=torch.int64), 2, 1, "needs 1 different-class pairs"),
        (torch.arange(4).repeat_interleave(2), 21, 10, "multiple of 2"),
        (torch.arange(4).repeat_interleave(2), 0, 10, "multiple of 2"),
        (torch.zeros(4, 2, dtype=torch.int64), 20, 10, "labels must be"),
        (torch.empty(0, dtype=torch.int64), 20, 10, "0 images"),
    ],
)
def test_impossible_pairs_are_refused(labels: torch.Tensor, pairs: int, folds: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        data.verification_pairs(labels, pairs=pairs, folds=folds)


# --- fonts and cache


@pytest.fixture
def font_folder(tmp_path: Path) -> Path:
    for face in fonts.verified_faces():
        shutil.copy(face, tmp_path)
    return tmp_path


def test_a_changed_font_is_named_with_both_hashes(font_folder: Path) -> None:
    name = "DejaVuSerif.ttf"
    content = bytearray((font_folder / name).read_bytes())
    content[1000] ^= 1
    (font_folder / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name} has sha256 [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"
    ) as error:
        fonts.verified_faces(font_folder)
    assert pinned()[name] in str(error.value)
    assert "matplotlib>=3.8,<3.12" in str(error.value)


def test_a_missing_font_is_named(font_folder: Path) -> None:
    (font_folder / "STIXGeneral.ttf").unlink()
    with pytest.raises(ValueError, match=r"STIXGeneral\.ttf is missing \(expected sha256 [0-9a-f]{64}"):
        fonts.verified_faces(font_folder)


def test_a_damaged_cache_is_rebuilt_to_the_same_bits(splits: data.Splits, cache: Path) -> None:
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match=r"unusable \(its checksum does not match\); building it again"):
        rebuilt = data.load("glyphs", cache=cache)
    assert torch.equal(rebuilt.test.images, splits.test.images)
    assert rebuilt.class_names == splits.class_names
    assert torch.equal(rebuilt.pairs, splits.pairs)
    assert file.read_bytes()[32:64] == whole[32:64]
    assert [entry.name for entry in cache.iterdir()] == [file.name]


def test_another_seed_draws_other_classes_faces_and_noise(
    drawn: tuple[list[Path], np.ndarray, np.ndarray],
) -> None:
    few = drawn[2][:5]
    draw = lambda seed: glyphs.sample(few, glyphs.LEVELS["mid"], np.random.default_rng(seed))  # noqa: E731
    assert np.array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


@pytest.mark.parametrize("position", [0, 31, 32, 40, 200, -30, -1])
def test_one_flipped_bit_in_the_cache_is_seen(tmp_path: Path, position: int) -> None:
    file, builds = tmp_path / "numbers.bin", []

    def build() -> dict[str, np.ndarray]:
        builds.append(1)
        return {"numbers": np.arange(50)}

    cached(file, build)
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum"):
        assert cached(file, build)["numbers"].tolist() == list(range(50))
    assert cached(file, build)["numbers"].tolist() == list(range(50))
    assert len(builds) == 2


def test_an_unusable_cache_folder_costs_only_the_cache(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.warns(UserWarning, match="unusable|cannot keep"):
        arrays = cached(blocker / "numbers.bin", lambda: {"numbers": np.arange(3)})
    assert arrays["numbers"].tolist() == [0, 1, 2]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALA_METRIC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.cache_folder() == tmp_path / "home" / ".cache" / "ala_metric"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "ala_metric"
    monkeypatch.setenv("ALA_METRIC_CACHE", str(tmp_path / "own"))
    assert data.cache_folder() == tmp_path / "own"
    assert data.cache_folder(tmp_path / "asked") == tmp_path / "asked"
