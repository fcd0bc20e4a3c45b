"""Every example program and notebook runs, on small data; the C++ one has a test of its own."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ala_metric import native_info

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OPTIONAL = {"lightning": "lightning", "accelerate": "accelerate"}


def require(source: str) -> None:
    """Skip with a reason where an optional package that the program imports is missing."""
    found = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    for name in found & OPTIONAL.keys():
        pytest.importorskip(name, reason=f"needs {name}: pip install {OPTIONAL[name]}")


def run(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a main program, in a folder of its own, in this process (importing torch again costs seconds)."""
    program = folder / "program.py"
    program.write_text(source, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_path(str(program), run_name="__main__")


def test_every_example_is_found_here() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == {*PROGRAMS, *NOTEBOOKS, "numpy_kernels.py", "ray_tune_race.py"}


PROGRAMS = {
    "accelerate_recipe.py": "Recall@1",
    "lightning_callback.py": "Recall@1",
    "pml_trainer.py": "Recall@1",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore")
def test_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    require(source)
    run(source, tmp_path, monkeypatch)
    assert PROGRAMS[name] in capsys.readouterr().out


def test_numpy_program(tmp_path: Path) -> None:
    """In a process of its own: torch must not be imported."""
    if not native_info().available:
        pytest.skip(f"native: {native_info().reason}")
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    source = (EXAMPLES / "numpy_kernels.py").read_text() + "\nimport sys; assert 'torch' not in sys.modules\n"
    settings = {key: value for key, value in os.environ.items() if not key.startswith("ALA_")}
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=settings | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "mean loss" in done.stdout


def test_ray_program_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is missing, and what the race would be. No test has a cluster to run it on."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["ray_tune_race.py", "--samples", "3", "--steps", "20"])
    with pytest.raises(SystemExit) as stopped:
        run((EXAMPLES / "ray_tune_race.py").read_text(encoding="utf-8"), tmp_path, monkeypatch)
    assert stopped.value.code == 1
    assert 'pip install "ray[tune]"' in capsys.readouterr().err


NOTEBOOKS = ("quick_start.ipynb", "your_own_loss.ipynb")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells, one after the other; the file holds no outputs that could be out of date."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    run("\n".join("".join(cell["source"]) for cell in cells), tmp_path, monkeypatch)
