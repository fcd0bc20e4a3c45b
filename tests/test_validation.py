"""Half of the validation set at the rungs: which half, when, and what the records and the meter say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ala_metric import ALALoss, training
from ala_metric.data import ImageSet
from ala_metric.losses import DistanceMixtureLoss
from ala_metric.metrics import AUCPR, ClassificationError, RecallAtK, VerificationAccuracy
from ala_metric.training import validation
from ala_metric.training.validation import half

from .test_training import Stop, stop_at


def images(labels: torch.Tensor) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(labels), 1, 4, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, labels, "random")


def shuffled(counts: list[int]) -> torch.Tensor:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def test_the_whole_set_is_embedded_as_by_embed() -> None:
    held = images(shuffled([7, 4]))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    outputs, targets = training.Validation(model, held, batch_size=11)()
    expected, labels = training.embed(model, [(held.images.float() / 255, held.labels)])
    assert torch.equal(outputs, expected)
    assert torch.equal(targets, labels)


def test_half_of_the_classes_with_all_their_samples() -> None:
    labels = shuffled([24] * 23 + [25, 26])
    whole = training.Validation(torch.nn.Flatten(), images(labels))
    found, name = half(whole, RecallAtK((1, 2)), seed=3)
    assert name == "all"  # 13 classes are too few
    labels = shuffled([24] * 41)
    whole = training.Validation(torch.nn.Flatten(), images(labels))
    found, name = half(whole, RecallAtK((1, 2)), seed=3)
    assert name == "21 of 41 classes"
    assert isinstance(found, training.Validation)
    kept = set(found.labels.tolist())
    assert len(kept) == 21
    rows = [i for i, label in enumerate(labels.tolist()) if label in kept]
    outputs, targets = found()
    assert torch.equal(outputs, whole()[0][rows])
    assert torch.equal(targets, labels[rows])
    again, _ = half(whole, RecallAtK((1, 2)), seed=3)
    other, _ = half(whole, RecallAtK((1, 2)), seed=4)
    assert again.labels.tolist() == found.labels.tolist() != other.labels.tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("metric", [ClassificationError(), AUCPR(), training.MeanLogProbability()])
def test_half_of_each_class(metric: Any) -> None:
    labels = shuffled([1, 2, 997, 40])
    whole = training.Validation(torch.nn.Flatten(), images(labels))
    found, name = half(whole, metric, seed=0)
    assert name == "521 of 1040 samples"
    outputs, targets = found()
    assert targets.bincount().tolist() == [1, 1, 499, 20]
    everything = {tuple(row.tolist()) for row in whole()[0]}
    assert len({tuple(row.tolist()) for row in outputs}) == 521
    assert all(tuple(row.tolist()) in everything for row in outputs)
    other, _ = half(whole, metric, seed=1)
    assert other()[0].tolist() != outputs.tolist()


def test_all_where_a_half_would_not_do() -> None:
    small = training.Validation(torch.nn.Flatten(), images(shuffled([498, 498])))
    assert half(small, ClassificationError(), 0) == (small, "all")
    few = training.Validation(torch.nn.Flatten(), images(shuffled([12] * 82)))
    assert half(few, RecallAtK((1,)), 0) == (few, "all")  # 41 classes, 492 samples
    large = training.Validation(torch.nn.Flatten(), images(shuffled([30] * 60)))
    pairs = VerificationAccuracy(torch.zeros(2, 2, dtype=torch.int64), torch.arange(2))
    assert half(large, pairs, 0) == (large, "all")

    def function() -> tuple[torch.Tensor, torch.Tensor]:
        return large()

    assert half(function, RecallAtK((1,)), 0) == (function, "all")


def test_a_data_set_without_labels_is_refused() -> None:
    with pytest.raises(TypeError, match="dataset must have labels, list has none"):
        training.Validation(torch.nn.Flatten(), [])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        training.Validation(torch.nn.Flatten(), images(torch.zeros(2, dtype=torch.int64)), batch_size=0)


# --- in a race


def race(validate: Any = None, whole: bool = False, **keywords: Any) -> tuple[training.FitResult, list[Any]]:
    """A race of two rungs on 24 classes of 6 images; what it leaves behind."""
    torch.manual_seed(0)
    held = images(shuffled([6] * 24))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    own = training.Validation(model, held)
    loss_fn = ALALoss(
        DistanceMixtureLoss(), RecallAtK((1,), distance="cosine"), own, total_steps=6, mode="fixed"
    )
    result = training.fit(
        model,
        loss_fn,
        held,
        total_steps=6,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        batch_classes=5,
        per_class=3,
        mode="race",
        race=training.RaceSettings(rungs=((0.5, 3), (1.0, 1)), validate=own if whole else validate),
        **keywords,
    )
    return result, [[v.tolist() for v in model.state_dict().values()], result.records, result.compute]


@pytest.fixture
def easily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LEAST_SAMPLES", 10)
    monkeypatch.setattr(validation, "LEAST_CLASSES", 2)


@pytest.mark.usefixtures("easily")
def test_a_race_takes_half_at_the_rungs_and_all_at_the_end() -> None:
    result, _ = race()
    assert [record.validation for record in result.records] == ["12 of 24 classes", "all"]
    assert result.compute.validation_items == 3 * 72 + 144
    assert race(whole=True)[0].records[0].validation == "given"
    assert race(whole=True)[0].compute.validation_items == 4 * 144


def test_a_small_set_is_used_whole() -> None:
    result, _ = race()
    assert [record.validation for record in result.records] == ["all", "all"]
    assert result.compute.validation_items == 4 * 144


@pytest.mark.usefixtures("easily")
def test_the_half_is_the_same_after_a_resume(tmp_path: Path) -> None:
    _, uninterrupted = race()
    for stop in (1, 5, 9, 11):  # in each arm, and in the second stage
        file = tmp_path / str(stop)
        with pytest.raises(Stop):
            race(checkpoint=file, checkpoint_every=1, on_step=stop_at(stop))
        assert race(checkpoint=file, resume=True)[1] == uninterrupted


@pytest.mark.usefixtures("easily")
def test_all_arms_see_the_same_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = training.Validation.__call__

    def call(self: training.Validation) -> tuple[torch.Tensor, torch.Tensor]:
        found = original(self)
        seen.append(found[1].tolist())
        return found

    monkeypatch.setattr(training.Validation, "__call__", call)
    race()
    assert len(seen) == 4
    assert seen[0] == seen[1] == seen[2] != seen[3]
