"""The real data sets: the paper's protocols, from tiny samples in the true formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ala_metric import data

from .make_datasets import (
    PEOPLE,
    cifar_records,
    make_cifar10,
    make_cifar100,
    make_imagenet,
    make_lfw,
    make_people,
    make_sop,
    pair_lines,
    save_image,
)


def edit(path: Path, line: int, new: str | None) -> None:
    """Replace one line (from 1), or take it out."""
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if new is None else [new]
    path.write_text("\n".join(lines) + "\n")


# --- SOP


def test_sop_splits_by_class(tmp_path: Path) -> None:
    splits = data.load("sop", root=make_sop(tmp_path, train_classes=10, test_classes=4), size=16)
    # 10 * 10,000 / 11,318 = 8.8 classes are trained on.
    assert (len(splits.train.classes), len(splits.validation.classes), len(splits.test.classes)) == (8, 2, 4)
    named = [
        [splits.class_names[c] for c in s.classes] for s in (splits.train, splits.validation, splits.test)
    ]
    assert named == [
        ["1", "2", "3", "4", "5", "6", "7", "8"],
        ["9", "10"],
        ["11", "12", "13", "14"],
    ]
    for images in (splits.train, splits.validation, splits.test):
        for path, label in zip(images.paths, images.labels.tolist()):
            assert path.split("/")[1].startswith(f"{110000 + int(splits.class_names[label])}_")
    image, _ = splits.train[0]
    assert image.shape == (3, 16, 16)


def test_sop_has_the_papers_numbers_at_full_size(tmp_path: Path) -> None:
    """All 22,634 classes, in an order of lines that is not the order of the numbers."""
    save_image(tmp_path / "one.JPG", 0, 0)
    for name, first, count in (("Ebay_train.txt", 1, 11_318), ("Ebay_test.txt", 11_319, 11_316)):
        rows = [f"{c} {c} 1 a/{c}.JPG" for c in range(first, first + count)][::-1]
        (tmp_path / name).write_text("\n".join(["image_id class_id super_class_id path", *rows]))
        (tmp_path / "a").mkdir(exist_ok=True)
        for c in range(first, first + count):
            (tmp_path / "a" / f"{c}.JPG").touch()
    splits = data.load("sop", root=tmp_path)
    assert [len(s.classes) for s in (splits.train, splits.validation, splits.test)] == [10_000, 1_318, 11_316]
    assert {splits.class_names[c] for c in splits.train.classes} == {str(c) for c in range(1, 10_001)}
    found = data.counts(splits)
    for key in ("train classes", "validation classes", "test classes"):
        assert found[key] == data.EXPECTED["sop"][key]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lists_from_any_system_are_read(ending: str, tmp_path: Path) -> None:
    root = make_sop(tmp_path)
    before = data.load("sop", root=root)
    path = root / "Ebay_train.txt"
    lines = path.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + ending.join(["", lines[0], "  ", *lines[1:], "", ""]).encode())
    after = data.load("sop", root=root)
    assert after.train.paths == before.train.paths
    assert torch.equal(after.train.labels, before.train.labels)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("5 2 1 ../outside.JPG", r"'\.\./outside\.JPG' must be a path below"),
        ("5 2 1 chair_final/../../outside.JPG", "must be a path below"),
        ("5 2 1 /etc/passwd", "'/etc/passwd' must be a path below"),
        ("5 2 1 chair_final/a\0.JPG", "NUL"),
        ("5 2 1", "expected 4 columns, got 3"),
        ("5 2 1 chair_final/a b.JPG", "expected 4 columns, got 5"),
        ("5 2 1 chair_final/none.JPG", "no image .*none.JPG"),
        ("5 2 1 chair_final", "is not a file"),
        ("5 two 1 chair_final/110002_0.JPG", "class_id must be a positive whole number, got 'two'"),
        ("5 -2 1 chair_final/110002_0.JPG", "class_id must be a positive whole number"),
        ("5 2 1 outward.JPG", "is a link that leaves"),
        ("5 2 1 outward/outside.JPG", "is a link that leaves"),
        ("5 2 1 dangling.JPG", "is a link that leaves|no image"),
        ("5 2 1 bicycle_final/110001_0.JPG", "was listed before, in .*line 2"),
        ("5 2 1 ./bicycle_final//110001_0.JPG", "was listed before, in .*line 2"),
        ("5 2 1 chair_final/\udcff.JPG", "UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(line: str, match: str, tmp_path: Path) -> None:
    save_image(tmp_path / "outside.JPG", 0, 0)
    root = make_sop(tmp_path / "sop")
    (root / "outward.JPG").symlink_to(tmp_path / "outside.JPG")
    (root / "outward").symlink_to(tmp_path)
    (root / "dangling.JPG").symlink_to(tmp_path / "nothing.JPG")
    path = root / "Ebay_train.txt"
    lines = path.read_text().splitlines()
    lines[5] = line
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=match) as error:
        data.load("sop", root=root)
    assert f"{path}, line 6:" in str(error.value)


def test_links_within_the_root_are_followed(tmp_path: Path) -> None:
    root = make_sop(tmp_path / "sop")
    (root / "chair_final").rename(root / "moved")
    (root / "chair_final").symlink_to(root / "moved")
    (tmp_path / "link").symlink_to(root)
    assert len(data.load("sop", root=tmp_path / "link").train) == 32


def test_sop_lists_that_share_a_class_are_refused(tmp_path: Path) -> None:
    root = make_sop(tmp_path)
    edit(root / "Ebay_test.txt", 2, "41 3 1 bicycle_final/110011_0.JPG")
    with pytest.raises(ValueError, match=r"sop: train and test must share no class, but share 1: 3$"):
        data.load("sop", root=root)
    edit(root / "Ebay_test.txt", 2, "41 10 1 bicycle_final/110011_0.JPG")
    with pytest.raises(ValueError, match=r"validation and test must share no class, but share 1: 10$"):
        data.load("sop", root=root)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "must begin with the line"),
        ("1 1 1 bicycle_final/110001_0.JPG\n", "must begin with the line"),
        ("image_id class_id super_class_id path\n", "lists no image"),
        ("image_id class_id super_class_id path\n1 1 1 bicycle_final/110001_0.JPG\n", "at least 2 classes"),
    ],
)
def test_an_empty_list_is_refused(content: str, match: str, tmp_path: Path) -> None:
    root = make_sop(tmp_path)
    (root / "Ebay_train.txt").write_text(content)
    with pytest.raises(ValueError, match=match):
        data.load("sop", root=root)


# --- LFW


def test_lfw_follows_both_views(tmp_path: Path) -> None:
    root = make_lfw(tmp_path, folds=10, half=3)
    splits = data.load("lfw", root=root, size=16)
    assert len(splits.train) == 20
    assert splits.folds.tolist() == [fold for fold in range(10) for _ in range(6)]
    assert splits.validation_folds.tolist() == [0] * 8 + [1] * 6
    for pairs, images, lines in (
        (splits.pairs, splits.test, pair_lines(10, 3)),
        (
            splits.validation_pairs,
            splits.validation,
            pair_lines(1, 4, offset=1) + pair_lines(1, 3, offset=2),
        ),
    ):
        for (left, right), line in zip(pairs.tolist(), lines, strict=True):
            fields = line.split("\t")
            other = fields[0] if len(fields) == 3 else fields[2]
            assert images.paths[left] == f"{fields[0]}/{fields[0]}_{int(fields[1]):04d}.jpg"
            assert images.paths[right] == f"{other}/{other}_{int(fields[-1]):04d}.jpg"
            assert (images.labels[left] == images.labels[right]) == (len(fields) == 3)
        assert len(set(images.paths)) == len(images.paths)
        assert [splits.class_names[c] for c in images.labels] == [path.split("/")[0] for path in images.paths]
    assert splits.test[0][0].shape == (3, 16, 16)


def test_lfw_has_the_official_numbers_of_pairs(tmp_path: Path) -> None:
    for person in PEOPLE:
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for number in range(1, 5):
            (tmp_path / "lfw" / person / f"{person}_{number:04d}.jpg").touch()
    make_people(tmp_path / "webface", 2)
    for name, header, lines in (
        ("pairs.txt", "10\t300", pair_lines(10, 300)),
        ("pairsDevTrain.txt", "1100", pair_lines(1, 1100)),
        ("pairsDevTest.txt", "500", pair_lines(1, 500)),
    ):
        (tmp_path / name).write_text("\r\n".join([header, *lines]))
    splits = data.load("lfw", root=tmp_path)
    found = data.counts(splits)
    for key in ("validation pairs", "test pairs", "test folds"):
        assert found[key] == data.EXPECTED["lfw"][key]
    same = splits.test.labels[splits.pairs[:, 0]] == splits.test.labels[splits.pairs[:, 1]]
    assert [int(same[splits.folds == fold].sum()) for fold in range(10)] == [300] * 10


@pytest.mark.parametrize("name", ["pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"])
@pytest.mark.parametrize("line", [3, -1])
def test_a_missing_line_is_no_shorter_list(name: str, line: int, tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    lines = (root / name).read_text().splitlines()
    edit(root / name, len(lines) if line < 0 else line, None)
    with pytest.raises(ValueError, match=rf"{name} must hold \d+ pairs, as its header says, but holds \d+"):
        data.load("lfw", root=root)
    (root / name).write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="as its header says"):
        data.load("lfw", root=root)


ADA, ALAN = PEOPLE[0], PEOPLE[1]


@pytest.mark.parametrize(
    ("line", "new", "match"),
    [
        (2, f"{ADA}\t1\t9", "no image .*Ada_Lovelace_0009.jpg"),
        (2, "Nobody\t1\t2", "no image .*Nobody_0001.jpg"),
        (2, f"{ADA}\t1\t{ALAN}\t1", r"must have 3 columns \(one person\), got 4"),
        (5, f"{ADA}\t1\t2", r"must have 4 columns \(two people\), got 3"),
        (5, f"{ADA}\t1\t{ADA}\t2", "names 'Ada_Lovelace' twice"),
        (2, f"{ADA}\t1\t1", "names image 1 twice"),
        (2, f"{ADA}\t0\t1", "positive whole number, got '0'"),
        (2, f"{ADA}\t1\tx", "positive whole number, got 'x'"),
        (2, f"{ADA}\t1\t2\t3\t4", "expected 1 or 2 or 3 or 4 columns, got 5"),
        (2, "..\t1\t2", "must be a path below"),
        (2, "/etc\t1\t2", "must be a path below"),
        (2, f"{ADA}\0\t1\t2", "NUL"),
        (1, "ten\t3", "positive whole number"),
    ],
)
def test_a_bad_pair_is_refused_with_file_and_line(line: int, new: str, match: str, tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    edit(root / "pairs.txt", line, new)
    with pytest.raises(ValueError, match=match) as error:
        data.load("lfw", root=root)
    assert f"{root / 'pairs.txt'}, line {line}:" in str(error.value)


def test_training_people_must_not_be_in_lfw(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    make_people(root / "webface", (PEOPLE[2],))
    with pytest.raises(
        ValueError, match=r"train and (validation|test) must share no class, but share 1: Emmy_Noether"
    ):
        data.load("lfw", root=root)


# --- folders


def test_every_set_of_webface_has_two_people(tmp_path: Path) -> None:
    splits = data.load("webface", root=make_people(tmp_path, 12, per_person=2))
    assert [len(s.classes) for s in (splits.train, splits.validation, splits.test)] == [8, 2, 2]


def test_webface_has_disjoint_people(tmp_path: Path) -> None:
    root = make_people(tmp_path, 20, per_person=3)
    (root / "0000001" / "Thumbs.db").write_text("not an image")
    (root / "readme.txt").write_text("not a folder")
    splits = data.load("webface", root=root)
    assert [len(s.classes) for s in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [48, 6, 6]
    for images in (splits.train, splits.validation, splits.test):
        assert [splits.class_names[c] for c in images.labels] == [path.split("/")[0] for path in images.paths]
    other = data.load("webface", root=root, seed=1)
    assert splits.test.paths == data.load("webface", root=root).test.paths != other.test.paths


def test_folders_are_checked(tmp_path: Path) -> None:
    root = make_people(tmp_path / "faces", 4)
    save_image(tmp_path / "outside.jpg", 0, 0)
    (root / "0000002" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(ValueError, match=r"0000002/link\.jpg' is a link that leaves"):
        data.load("webface", root=root)
    (root / "0000002" / "link.jpg").unlink()
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        data.load("webface", root=root)
    with pytest.raises(ValueError, match="at least 6 people, .* has 5"):
        data.load("webface", root=make_people(tmp_path / "five", 5))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="one folder per class, got none"):
        data.load("webface", root=tmp_path / "none")


def test_imagenet_tests_on_the_official_validation_images(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path, classes=3, per_class=20)
    splits = data.load("imagenet", root=root)
    # 60 training images: a 25th is 2.
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [58, 2, 6]
    assert set(splits.train.paths).isdisjoint(splits.validation.paths)
    assert len(set(splits.train.paths) | set(splits.validation.paths)) == 60
    assert splits.class_names == ("n01440764", "n01440765", "n01440766")
    for images in (splits.train, splits.validation, splits.test):
        assert [splits.class_names[c] for c in images.labels] == [path.split("/")[0] for path in images.paths]
    save_image(root / "val" / "n99999999" / "a.JPEG", 0, 0)
    with pytest.raises(ValueError, match=r"same class folders, 1 are in one only: n99999999"):
        data.load("imagenet", root=root)


# --- CIFAR


def test_cifar10_divides_the_training_images(tmp_path: Path) -> None:
    splits = data.load("cifar10", root=make_cifar10(tmp_path, per_batch=20))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [80, 20, 20]
    assert splits.class_names[3] == "class3"
    raw = [
        (tmp_path / "cifar-10-batches-bin" / f"data_batch_{n}.bin").read_bytes()[at : at + 3073]
        for n in range(1, 6)
        for at in range(0, 20 * 3073, 3073)
    ]
    found = [
        bytes([int(label)]) + bytes(image.flatten().numpy())
        for part in (splits.train, splits.validation)
        for image, label in zip(part.images, part.labels)
    ]
    assert sorted(found) == sorted(raw)
    again, other = data.load("cifar10", root=tmp_path), data.load("cifar10", root=tmp_path, seed=1)
    assert torch.equal(again.validation.images, splits.validation.images)
    assert not torch.equal(other.validation.images, splits.validation.images)
    flat = tmp_path / "cifar-10-batches-bin"
    assert torch.equal(data.load("cifar10", root=flat).test.images, splits.test.images)
    # Red, green and blue planes of 32 rows each, as the format says.
    record = np.frombuffer(cifar_records(10, 1, 20, 6), dtype=np.uint8)[:3073]
    image, label = splits.test[0]
    assert label == record[0]
    assert image[2, 5, 7].item() == pytest.approx(record[1 + 2 * 1024 + 5 * 32 + 7] / 255, abs=1e-7)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    root = make_cifar100(tmp_path)
    content = bytearray((root / "cifar-100-binary" / "train.bin").read_bytes())
    content[0::3074] = bytes(200)  # coarse labels must not matter
    (root / "cifar-100-binary" / "train.bin").write_bytes(content)
    splits = data.load("cifar100", root=root)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [160, 40, 200]
    assert splits.test.labels.tolist() == [i % 100 for i in range(200)]
    assert len(splits.class_names) == 100


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c[:-1], r"data_batch_2\.bin must be whole records of 3073 bytes, got 61459"),
        (lambda c: c + b"\0", "whole records"),
        (lambda c: b"", "whole records of 3073 bytes, got 0"),
        (
            lambda c: c[: 3073 * 4] + b"\x0a" + c[3073 * 4 + 1 :],
            r"labels must lie in \[0, 10\), got 10 in record 4",
        ),
        (lambda c: b"\x80\x02}q\x01" + c[5:], "got 128 in record 0"),  # the head of a pickle
    ],
)
def test_a_damaged_batch_is_refused(change, match: str, tmp_path: Path) -> None:
    path = make_cifar10(tmp_path) / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=match):
        data.load("cifar10", root=tmp_path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    evil = b"cos\nmkdir\n(V" + str(harm).encode() + b"\ntR."
    for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(evil)
    with pytest.raises(ValueError, match=r"pickles are not loaded; unpack the CIFAR-10 binary version"):
        data.load("cifar10", root=tmp_path)
    (tmp_path / "train").write_bytes(evil)
    with pytest.raises(ValueError, match=r"pickles are not loaded; unpack the CIFAR-100 binary version"):
        data.load("cifar100", root=tmp_path)
    for folder, name in (("cifar-10-batches-py", "cifar10"), ("cifar-100-python", "cifar100")):
        root = tmp_path / f"unpacked {name}"  # the folder that the site's archive unpacks to
        (root / folder).mkdir(parents=True)
        with pytest.raises(ValueError, match=rf"the Python version of {name}, whose pickles are not loaded"):
            data.load(name, root=root)
    assert not harm.exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin; unpack the CIFAR-10 binary"):
        data.load("cifar10", root=tmp_path / "other")


# --- all of them


@pytest.mark.parametrize("name", ["sop", "lfw", "webface", "cifar10", "cifar100", "imagenet"])
def test_a_root_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} needs the folder with its files"):
        data.load(name)
    with pytest.raises(FileNotFoundError, match=rf"root of {name} is not a folder"):
        data.load(name, root=tmp_path / "none")
    with pytest.raises(ValueError, match="seed must be non-negative"):
        data.load(name, root=tmp_path, seed=-1)
    with pytest.raises((FileNotFoundError, ValueError)):
        data.load(name, root=tmp_path)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_images_in_memory_keep_their_size(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be None, got 8"):
        data.load(name, root=None if name == "digits" else tmp_path, size=8)
