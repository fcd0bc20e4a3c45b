"""A signal in the last step or the last validation of a run with children: it stops, saved and resumable."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ala_metric import ALALoss, training
from ala_metric.losses import DistanceMixtureLoss
from ala_metric.metrics import RecallAtK

from .test_training import IMAGES

STEPS = {"race": 12, "paired": 16, "paper": 16}  # of all arms, for a run of 8


class Line:
    """A short run of one mode, made afresh."""

    def __init__(self, mode: str, vectorised: bool) -> None:
        torch.manual_seed(3)
        self.mode, self.vectorised = mode, vectorised
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(0.2))
        self.validated: Callable[[], None] = lambda: None

    def validate(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.validated()
        return training.embed(self.model, [(IMAGES.images[:24].float() / 255, IMAGES.labels[:24])])

    def fit(self, **options: Any) -> training.FitResult:
        own = "paper" if self.mode == "paper" else "fixed"
        loss_fn = ALALoss(
            DistanceMixtureLoss(), RecallAtK((1,)), self.validate, total_steps=8, every=4, mode=own
        )
        settings: dict[str, Any] = {
            "race": {"race": training.RaceSettings(rungs=((0.5, 2), (1.0, 1)))},
            "paired": {"paired": training.PairedSettings(forks=2, draws=1)},
            "paper": {"children": 2},
        }[self.mode]
        return training.fit(
            self.model,
            loss_fn,
            IMAGES,
            total_steps=8,
            optimizer=torch.optim.Adam(self.model.parameters(), lr=1e-2),
            batch_classes=4,
            per_class=3,
            mode=self.mode,
            vectorised=self.vectorised,
            **settings,
            **options,
        )

    def bits(self, result: training.FitResult) -> list[Any]:
        weights = [value.tolist() for value in self.model.state_dict().values()]
        return [weights, result.losses, result.phi_history, result.records, torch.get_rng_state().tolist()]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


KINDS = [("race", False), ("paired", False), ("paper", False), ("race", True), ("paired", True)]


@pytest.mark.parametrize("when", ["step", "validation"])
@pytest.mark.parametrize(("mode", "vectorised"), KINDS)
def test_a_signal_at_the_very_end_stops_the_run(
    mode: str, vectorised: bool, when: str, tmp_path: Path
) -> None:
    whole = Line(mode, vectorised)
    expected = whole.bits(whole.fit())
    line = Line(mode, vectorised)
    passes = 0

    def validated() -> None:
        nonlocal passes
        passes += 1
        if when == "validation" and passes == 1:  # a second signal would act at once
            terminate()

    def on_step(done: int, loss: float) -> None:
        if done == STEPS[mode]:
            line.validated = validated
            if when == "step":
                terminate()

    with pytest.raises(training.Interrupted) as stopped:
        line.fit(checkpoint=tmp_path / "c", on_step=on_step)
    assert (stopped.value.code, stopped.value.step) == (143, STEPS[mode])
    assert stopped.value.saved_to == str(tmp_path / "c")
    assert passes == (when == "validation")  # one that has not begun may take long
    again = Line(mode, vectorised)
    result = again.fit(checkpoint=tmp_path / "c", resume=True)
    assert result.resumed_at == STEPS[mode]
    assert again.bits(result) == expected


@pytest.mark.parametrize("mode", ["race", "paired", "paper"])
def test_a_signal_at_the_very_end_without_a_checkpoint(mode: str) -> None:
    line = Line(mode, vectorised=False)
    with pytest.raises(training.Interrupted, match="not saved"):
        line.fit(on_step=lambda done, loss: terminate() if done == STEPS[mode] else None)


@pytest.mark.parametrize("stop", range(1, 17))
@pytest.mark.parametrize("vectorised", [False, True])
def test_a_signal_at_any_step_resumes_to_the_same_bits(stop: int, vectorised: bool, tmp_path: Path) -> None:
    whole = Line("paired", vectorised)
    expected = whole.bits(whole.fit())
    line = Line("paired", vectorised)
    with pytest.raises(training.Interrupted):
        line.fit(checkpoint=tmp_path / "c", on_step=lambda done, loss: terminate() if done == stop else None)
    again = Line("paired", vectorised)
    assert again.bits(again.fit(checkpoint=tmp_path / "c", resume=True)) == expected
