"""Loggers of the controller steps: every number arrives, and nothing of an earlier run is lost silently."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from ala_metric import ALALoss
from ala_metric.training import CSVLogger, TensorBoardLogger, flatten

from .fakes import FakeLoss, FakeMetric, validation_set


def run(logger: Any, steps: int = 9, n_params: int = 2, resume_from: ALALoss | None = None) -> ALALoss:
    loss_fn = ALALoss(
        FakeLoss(n_params),
        FakeMetric((0.1, 0.3, 0.2)),
        validation_set,
        100,
        every=2,
        offsets=(0,),
        logger=logger,
    )
    if resume_from is not None:
        loss_fn.load_state_dict(resume_from.state_dict())
    for _ in range(steps):
        loss_fn(validation_set()[0])
    return loss_fn


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_number(tmp_path: Path) -> None:
    loss_fn = run(CSVLogger(tmp_path / "history.csv", ["margin", "scale"]))
    rows = read(tmp_path / "history.csv")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    for row, record in zip(rows, loss_fn.history):
        assert (float(row["margin"]), float(row["scale"])) == record.phi
        assert (float(row["action_margin"]), float(row["action_scale"])) == record.action
        assert float(row["metric"]) == record.metric
        assert float(row["seconds"]) == record.seconds > 0
        assert row["reward"] == ("" if record.reward is None else str(record.reward))


def test_csv_goes_on_where_a_run_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    stopped = run(CSVLogger(path), steps=5)
    state = ALALoss(FakeLoss(2), FakeMetric(), validation_set, 100, every=2, offsets=(0,))
    state.load_state_dict(stopped.state_dict())
    for _ in range(3):  # steps after the checkpoint that were lost in a crash
        stopped(validation_set()[0])
    run(CSVLogger(path, resume=True), steps=4, resume_from=state)
    assert [int(row["step"]) for row in read(path)] == [2, 4, 6, 8]


def test_csv_of_another_run_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    run(CSVLogger(path))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        CSVLogger(path)
    with pytest.raises(FileNotFoundError, match="folder of the table does not exist"):
        CSVLogger(tmp_path / "gone" / "history.csv")
    with pytest.raises(ValueError, match="has the columns"):
        run(CSVLogger(path, ["a", "b"], resume=True))
    assert path.read_bytes() == before


def test_names_must_fit() -> None:
    loss_fn = run(None)
    with pytest.raises(ValueError, match=r"one entry per parameter \(2\), got 3"):
        flatten(dict(loss_fn.history[0]), ["a", "b", "c"])


class Writer:
    """What TensorBoardLogger calls of a SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: list[int] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value

    def add_histogram(self, tag: str, values: Any, step: int) -> None:
        self.histograms.append(len(values))

    def flush(self) -> None:
        pass


def test_tensorboard_gets_every_known_number() -> None:
    writer = Writer()
    loss_fn = run(TensorBoardLogger(writer, ["margin", "scale"], prefix="run/"))
    assert ("run/reward", 2) not in writer.scalars  # not known at the first step
    for record in loss_fn.history:
        assert writer.scalars["run/phi/scale", record.step] == record.phi[1]
        assert writer.scalars["run/entropy", record.step] == record.entropy
        assert writer.scalars["run/seconds", record.step] == record.seconds
    assert not [tag for tag, _ in writer.scalars if "action" in tag]


def test_tensorboard_gets_a_histogram_of_many_parameters() -> None:
    writer = Writer()
    run(TensorBoardLogger(writer), n_params=65)
    assert writer.histograms == [65] * 4
    assert not [tag for tag, _ in writer.scalars if "phi" in tag]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loss_fn = run(TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("ala/metric")] == [2, 4, 6, 8]
    last = events.Scalars("ala/phi/phi_2")[-1].value
    assert last == pytest.approx(loss_fn.history[-1].phi[1])  # TensorBoard keeps float32


def test_without_tensorboard_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoardLogger(tmp_path)
