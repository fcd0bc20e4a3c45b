"""A race whose workers are killed at random moments goes on and ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_kill_minus_nine(tmp_path: Path) -> None:
    """A few kills; ``python -m benchmarks kill_race`` does two hundred, under torchrun."""
    call = [sys.executable, "-m", "benchmarks", "kill_race", "--forks", "--kills", "5"]
    call += ["--out", str(tmp_path / "report")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(call, cwd=ROOT, env=environment, check=True, timeout=250, capture_output=True)
    report = json.loads((tmp_path / "report").read_text())
    assert report["kills"] == 5
    assert report["races_with_other_numbers"] == 0
    assert report["one_process_equals_two"]
