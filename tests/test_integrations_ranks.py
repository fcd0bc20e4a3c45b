"""Lightning and Accelerate on two gloo processes: same actions on all ranks, one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("integration_ranks.py")


@pytest.mark.parametrize("how", ["lightning", "accelerate"])
def test_two_ranks_take_the_same_actions(how: str, tmp_path: Path) -> None:
    pytest.importorskip(how, reason=f"needs {how}: pip install {how}")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [sys.executable, *launch, sys.executable, str(PROGRAM), how, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["world"] == 2
    assert [row[0] for row in first["history"]] == [2, 4, 6]
    assert any(value != 0 for row in first["history"] for value in row[3]), "nothing was moved"
    assert first == second  # metric, reward, action, phi and weights
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    if how == "lightning":
        state = torch.load(checkpoint, weights_only=False)  # our own file of a second ago
        (own,) = (v for name, v in state["callbacks"].items() if "ALACallback" in name)
        assert own["ala"]
