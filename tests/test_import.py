"""Importing the package is light, silent and safe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("faiss", "sklearn", "scipy", "matplotlib", "PIL", "pytorch_metric_learning", "rich", "yaml")
PROBE = f"""
import json, sys, time
import torch
start = time.perf_counter()
import ala_metric
seconds = time.perf_counter() - start
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
    "cuda": torch.cuda.is_initialized(),
    "seconds": seconds,
}}))
"""


def probe(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    return done.stdout


def test_import_is_lean() -> None:
    found = json.loads(probe(PROBE))
    assert found["heavy"] == []
    assert not found["cuda"]


def test_every_public_name_resolves() -> None:
    import ala_metric

    for name in ala_metric.__all__:
        assert getattr(ala_metric, name) is not None
    assert set(ala_metric.__all__) <= set(dir(ala_metric))


def test_unknown_name_is_an_attribute_error() -> None:
    import ala_metric

    assert not hasattr(ala_metric, "no_such_thing")


def test_without_faiss_and_scikit_learn() -> None:
    """The losses, ranks and controller need neither; only what uses them asks for them."""
    code = """
import sys
for name in ("faiss", "matplotlib", "rich", "yaml"):
    sys.modules[name] = None
import torch
from ala_metric import losses, metrics
x, labels = torch.randn(8, 3), torch.arange(8) % 2
print(float(losses.DistanceMixtureLoss()(x, labels)) > 0, metrics.RecallAtK((1,))(x, labels) >= 0)
"""
    assert probe(code).split() == ["True", "True"]
