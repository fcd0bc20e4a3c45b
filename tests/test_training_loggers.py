"""Tables of a run that was killed while it wrote a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ala_metric import ALALoss
from ala_metric.training import CSVLogger

from .fakes import FakeLoss, FakeMetric, validation_set
from .test_loggers import read, run


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_a_torn_last_line_is_no_data(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    stopped = run(CSVLogger(path), steps=5)
    path.write_text(path.read_text()[:-cut])
    state = ALALoss(FakeLoss(2), FakeMetric(), validation_set, 100, every=2, offsets=(0,))
    state.load_state_dict(stopped.state_dict())
    run(CSVLogger(path, resume=True), steps=3, resume_from=state)
    rows = read(path)
    assert [int(row["step"]) for row in rows] == [2, 6]
    assert all(row["action_phi_2"] for row in rows)
