"""``ala-metric tune``: the answer, its compute and its interval; known losses can be built again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses as pml

from ala_metric import losses
from ala_metric.cli import tune
from ala_metric.cli.main import main
from ala_metric.losses import catalogue

SMALL = ["--data", "digits", "--steps", "20", "--budget", "2", "--dim", "8"]


@pytest.mark.parametrize("loss", ["NTXentLoss", "ArcFaceLoss"])
def test_tune(loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answer.json"
    assert main(["tune", "--loss", loss, *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    answer = json.loads(out.read_text())
    for name, row in answer["parameters"].items():
        assert row["low"] <= row["found"] <= row["high"]
        assert name in said
    assert answer["queries"] == 360
    low, high = answer["difference"]["low"], answer["difference"]["high"]
    assert low <= answer["difference"]["difference"] <= high
    shown = answer["recall_at_1"]["found"] - answer["recall_at_1"]["default"]
    assert answer["difference"]["difference"] == pytest.approx(shown, abs=1e-6)  # scores are float32
    assert f"compute: race {answer['compute']['race']:.2f} trainings, defaults " in said
    assert answer["compute"]["race"] > answer["compute"]["defaults"] > 1
    assert "95 % interval over test classes" in said
    assert "other seeds are not in it" in said


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ((0.02, 0.01, 0.03), "better than the defaults on this seed: NTXentLoss(temperature=0.5)"),
        ((-0.02, -0.03, -0.01), "worse than the defaults on this seed: keep the defaults"),
        ((0.01, -0.01, 0.03), "no difference to the defaults can be told on this seed: keep the defaults"),
    ],
)
def test_the_verdict(difference: tuple[float, float, float], expected: str) -> None:
    text = tune._text(
        {
            "options": {"loss": "NTXentLoss", "seed": 3, "data": "digits"},
            "parameters": {"temperature": {"default": 0.07, "found": 0.5, "low": 0.01, "high": 1.0}},
            "call": "NTXentLoss(temperature=0.5)",
            "recall_at_1": {"default": 0.5, "found": 0.52},
            "difference": dict(zip(("difference", "low", "high"), difference)),
            "compute": {"race": 4.1, "defaults": 1.0, "seconds": 9.0},
            "queries": 360,
        }
    )
    assert text.splitlines()[-1] == expected


def test_an_unknown_loss(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--loss", "NoLoss", "--data", "digits"]) == 2
    assert "loss must be one of AngularLoss, ArcFaceLoss, " in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(losses.available()))
def test_known_losses_are_built_and_called_back(name: str) -> None:
    """The printed call builds a loss with the values that were found."""
    made = catalogue.make(name, num_classes=3, embedding_size=5)
    assert type(made) is getattr(pml, name)
    loss_fn = losses.AdaptPML(made)
    loss_fn.set_phi(torch.tensor([0.4 * s.low + 0.6 * s.high for s in loss_fn.phi_spec]))
    values = dict(zip([s.name for s in loss_fn.phi_spec], loss_fn.phi.tolist()))
    call = catalogue.constructor_call(name, values)
    keywords = dict(part.split("=") for part in call[len(name) + 1 : -1].split(", "))
    sizes = {"num_classes": 3, "embedding_size": 5} if list(made.parameters()) else {}
    again = getattr(pml, name)(**sizes, **{key: float(value) for key, value in keywords.items()})
    for key, value in values.items():  # four digits are printed
        assert math.isclose(float(getattr(again, key)), value, rel_tol=1e-3)
