"""Tiny samples of the real data sets, in the true file formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PEOPLE = ("Ada_Lovelace", "Alan_Turing", "Emmy_Noether", "Grace_Hopper", "Kurt_Goedel", "Rosa_Luxemburg")


def save_image(path: Path, kind: int, sample: int, size: tuple[int, int] = (48, 40)) -> None:
    """A picture whose colour depends on its class and whose noise on the sample."""
    rng = np.random.default_rng([kind, sample])
    colour = np.random.default_rng([kind]).integers(40, 216, size=3)
    pixels = colour + rng.integers(-30, 31, size=(size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def make_sop(root: Path, *, train_classes: int = 10, test_classes: int = 4, per_class: int = 4) -> Path:
    """``Ebay_train.txt``, ``Ebay_test.txt`` and two folders of super classes."""
    image_id = 0
    root.mkdir(parents=True, exist_ok=True)
    for list_name, first, count in (
        ("Ebay_train.txt", 1, train_classes),
        ("Ebay_test.txt", 1 + train_classes, test_classes),
    ):
        lines = ["image_id class_id super_class_id path"]
        for class_id in range(first, first + count):
            for sample in range(per_class):
                image_id += 1
                super_class, folder = (1, "bicycle_final") if class_id % 2 else (2, "chair_final")
                name = f"{folder}/{110000 + class_id}_{sample}.JPG"
                save_image(root / name, class_id, sample)
                lines.append(f"{image_id} {class_id} {super_class} {name}")
        (root / list_name).write_text("\n".join(lines) + "\n")
    return root


def make_people(root: Path, people: tuple[str, ...] | int, per_person: int = 4, first: int = 0) -> Path:
    """One folder of faces per person, as in CASIA-WebFace."""
    names = [f"{number:07d}" for number in range(people)] if isinstance(people, int) else people
    for number, name in enumerate(names):
        for sample in range(per_person):
            save_image(root / name / f"{sample + 1:03d}.jpg", first + number, sample)
    return root


def pair_lines(folds: int, half: int, *, offset: int = 0) -> list[str]:
    """Pairs in LFW's order: per fold ``half`` of one person, then ``half`` of two people."""
    lines = []
    for fold in range(folds):
        for index in range(half):
            person = PEOPLE[(fold + index + offset) % len(PEOPLE)]
            lines.append(f"{person}\t{1 + index % 3}\t{2 + index % 3}")
        for index in range(half):
            left = (fold + index + offset) % len(PEOPLE)
            right = (left + 1 + index % 3) % len(PEOPLE)
            lines.append(f"{PEOPLE[left]}\t{1 + index % 4}\t{PEOPLE[right]}\t{1 + fold % 4}")
    return lines


def make_lfw(root: Path, *, folds: int = 10, half: int = 3) -> Path:
    """Images of LFW, its three lists of pairs, and other people to train on."""
    for number, name in enumerate(PEOPLE):
        for sample in range(4):
            save_image(root / "lfw" / name / f"{name}_{sample + 1:04d}.jpg", 100 + number, sample, (50, 50))
    (root / "pairs.txt").write_text("\n".join([f"{folds}\t{half}", *pair_lines(folds, half)]) + "\n")
    for name, count, offset in (("pairsDevTrain.txt", 4, 1), ("pairsDevTest.txt", 3, 2)):
        (root / name).write_text("\n".join([str(count), *pair_lines(1, count, offset=offset)]) + "\n")
    make_people(root / "webface", 5, first=200)
    return root


def cifar_records(classes: int, label_bytes: int, count: int, seed: int) -> bytes:
    """Records of the binary versions: label bytes, then 3 x 32 x 32 pixels; classes in turn."""
    rng = np.random.default_rng([classes, seed])
    colours = np.random.default_rng(classes).integers(0, 256, size=(classes, 3, 1))
    labels = np.arange(count) % classes
    pixels = (colours[labels] + rng.integers(-40, 41, size=(count, 3, 1024))).clip(0, 255).reshape(count, -1)
    head = np.zeros((count, label_bytes), dtype=np.int64)
    head[:, -1] = labels
    return np.concatenate([head, pixels], axis=1).astype(np.uint8).tobytes()


def make_cifar10(root: Path, per_batch: int = 20, folder: str = "cifar-10-batches-bin") -> Path:
    target = root / folder
    target.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (target / f"data_batch_{number}.bin").write_bytes(cifar_records(10, 1, per_batch, number))
    (target / "test_batch.bin").write_bytes(cifar_records(10, 1, per_batch, 6))
    (target / "batches.meta.txt").write_text("".join(f"class{c}\n" for c in range(10)) + "\n")
    return root


def make_cifar100(root: Path, count: int = 200) -> Path:
    target = root / "cifar-100-binary"
    target.mkdir(parents=True, exist_ok=True)
    (target / "train.bin").write_bytes(cifar_records(100, 2, count, 1))
    (target / "test.bin").write_bytes(cifar_records(100, 2, count, 2))
    return root


def make_imagenet(root: Path, classes: int = 3, per_class: int = 10) -> Path:
    for split, count, first in (("train", per_class, 0), ("val", 2, 100)):
        for number in range(classes):
            wnid = f"n{1440764 + number:08d}"
            for sample in range(count):
                save_image(root / split / wnid / f"{wnid}_{sample}.JPEG", number, first + sample)
    return root
