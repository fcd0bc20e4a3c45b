"""The floor plan holds: no module imports from a floor above its own, and siblings stay apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ala_metric"

FLOOR = {
    "types": 0,
    "_version": 0,
    "_native": 1,
    "_pml": 1,
    "_files": 1,
    "_actions": 1,
    "_streams": 1,
    "_ranks": 1,
    "_arguments": 1,
    "_phi": 1,
    "_gather": 1,
    "ops": 2,
    "numpy_api": 2,
    "controller": 3,
    "metrics": 3,
    "losses": 3,
    "classification": 3,
    "baselines": 3,
    "data": 3,
    "ala_loss": 4,
    "training": 5,
    "integrations": 6,
    "cli": 6,
}
# The controller knows the AdaptiveLoss protocol and numbers only; metrics and data need no pml either.
FORBIDDEN = {"controller": {"ops", "pytorch_metric_learning"}, "ops": {"pytorch_metric_learning"}}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Names of the rooms of ala_metric (and of other packages) that the file imports."""
    module = ("ala_metric", *path.relative_to(PACKAGE).with_suffix("").parts)
    package = module[:-1]
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "ala_metric" else [stem]
        else:
            continue
        for name in names:
            parts = name.split(".")
            rooms.add(parts[1] if parts[0] == "ala_metric" and len(parts) > 1 else parts[0])
    return rooms


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor; add it to the plan"
    rooms = imported_rooms(path)
    for other in rooms - {room}:
        if other in FLOOR:
            assert FLOOR[other] < FLOOR[room], f"{path.name} ({room}) imports {other}, which is not below it"
    assert not rooms & FORBIDDEN.get(room, set())


def test_nothing_imports_tests_or_benchmarks() -> None:
    for path in FILES:
        assert not imported_rooms(path) & {"tests", "benchmarks", "examples"}


def test_an_upward_arrow_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    bad = tmp_path / "ops" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("from ..training import loop\nfrom .. import cli\nimport ala_metric.losses\n")
    assert {"training", "cli", "losses"} <= imported_rooms(bad)
