"""Build tools for tests: those of this environment first, then those on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def tool(*names: str) -> str:
    """Path of the first of the programs that is there; skips the test when none is."""
    found = next(filter(None, (shutil.which(name, path=_PATH) for name in names)), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


def compiler() -> str:
    return tool(os.environ.get("CXX", "c++"), "g++", "clang++")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Output of a program that must succeed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | {"PATH": _PATH} | environment,
    )
    assert done.returncode == 0, f"{command[0]} exited with {done.returncode}\n{done.stdout}"
    return done.stdout


def configure(source: Path, build: Path, *options: str) -> None:
    """Run CMake with Ninja where it is present."""
    ninja = shutil.which("ninja", path=_PATH)
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()
    run(tool("cmake"), "-S", source, "-B", build, f"-DCMAKE_CXX_COMPILER={compiler()}", *generator, *options)
