"""Class-balanced batches: PML's semantics, a stream of their own, exact continuation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ala_metric.data import ClassBalancedSampler, ImageSet

LABELS = torch.arange(13).repeat_interleave(torch.tensor([3, 5, 4, 6, 5, 4, 7, 5, 4, 6, 5, 4, 8]))


def take(sampler: ClassBalancedSampler, count: int) -> list[list[int]]:
    batches: list[list[int]] = []
    while len(batches) < count:
        for batch in sampler:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


@pytest.mark.parametrize(("classes", "per_class"), [(5, 3), (1, 1), (13, 2), (7, 4)])
def test_every_batch_is_balanced(classes: int, per_class: int) -> None:
    sampler = ClassBalancedSampler(LABELS, classes=classes, per_class=per_class)
    assert len(sampler) == len(LABELS) // (classes * per_class)
    for batch in take(sampler, 3 * len(sampler)):
        counts = LABELS[batch].bincount()
        assert counts[counts > 0].tolist() == [per_class] * classes
        for label in LABELS[batch].unique():
            members = [index for index in batch if LABELS[index] == label]
            if int((label == LABELS).sum()) >= per_class:
                assert len(set(members)) == per_class


def test_all_classes_and_samples_are_reached() -> None:
    batches = take(ClassBalancedSampler(LABELS, classes=3, per_class=2), 400)
    assert {index for batch in batches for index in batch} == set(range(len(LABELS)))


def test_no_global_stream_is_touched_or_heard() -> None:
    streams = lambda: (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: E731, NPY002
    before = streams()
    first = take(ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=4), 40)
    assert streams() == before
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert take(ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=4), 40) == first
    assert take(ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=5), 40) != first


def test_epochs_differ() -> None:
    sampler = ClassBalancedSampler(LABELS, classes=3, per_class=2)
    assert list(sampler) != list(sampler)


@pytest.mark.parametrize("stop", [0, 1, 7, 10, 11, 12, 29])
def test_a_stream_is_taken_up_anywhere(stop: int) -> None:
    def new() -> ClassBalancedSampler:
        return ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=1)

    assert len(new()) == 11
    whole = take(new(), 35)
    first = new()
    assert take(first, stop) == whole[:stop]
    second = new()
    second.load_state_dict(first.state_dict())
    assert take(second, 35 - stop) == whole[stop:]


def test_the_position_under_a_loader_is_what_was_consumed() -> None:
    sampler = ClassBalancedSampler(LABELS, classes=3, per_class=2)
    images = ImageSet(torch.zeros(len(LABELS), 1, 2, 2, dtype=torch.uint8), LABELS, "toy")
    for count, (_, labels) in enumerate(DataLoader(images, batch_sampler=sampler), start=1):
        assert sampler.position == count
        assert len(labels) == 6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": 14}, "classes is 14, but the labels have only 13"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"classes": 13, "per_class": 6}, "13 classes x 6 is larger than the 66 labels"),
        ({"seed": -1}, "seed must be non-negative, got -1"),
        ({"labels": torch.zeros(3, 2)}, r"labels must be \[N\], got shape \[3, 2\]"),
        ({"labels": torch.empty(0)}, "only 0 distinct"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32, got 4294967296"),
    ],
)
def test_bad_arguments_are_named(changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ClassBalancedSampler(**{"labels": LABELS, "classes": 3, "per_class": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": 2.0}, "classes must be an integer, got 2.0"),
        ({"per_class": True}, "per_class must be an integer, got True"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"labels": [0, 1]}, "labels must be a tensor, got list"),
        ({"labels": np.arange(4)}, "labels must be a tensor, got ndarray; torch.from_numpy"),
    ],
)
def test_arguments_of_another_type_are_named(changes: dict, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        ClassBalancedSampler(**{"labels": LABELS, "classes": 3, "per_class": 2, **changes})


def test_the_largest_seed_draws() -> None:
    assert len(take(ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=2**32 - 1), 1)[0]) == 6


def test_a_state_of_another_stream_is_refused() -> None:
    state = ClassBalancedSampler(LABELS, classes=3, per_class=2, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed=1, the sampler has 0"):
        ClassBalancedSampler(LABELS, classes=3, per_class=2).load_state_dict(state)
