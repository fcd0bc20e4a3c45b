"""The README's program runs as it stands there, and what the README points to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = [
    text for text in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if "optimizer.step()" in text
]


def test_the_program_runs_verbatim(tmp_path: Path) -> None:
    assert len(PROGRAMS) == 1
    program = tmp_path / "readme.py"
    program.write_text(PROGRAMS[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("10 Recall@1 0.")
    assert "reward None" in lines[0]
    assert all(re.search(r"reward (-?1|0|-?1\.0|0\.0)$", line) for line in lines[1:])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_anchors_exist() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_commands_of_the_readme_parse() -> None:
    from ala_metric.cli.main import make_parser

    commands = re.findall(r"^\$ ala-metric ([^#\n]*)", README, re.M) + re.findall(
        r"`ala-metric ([^`]*)`", README
    )
    assert len(commands) >= 8
    for command in commands:
        make_parser().parse_args(command.split())


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
