"""The example C++ project finds the installed library by find_package, builds and runs without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

import ala_metric as ala
from tests.toolchain import configure, run, tool

ROOT = Path(__file__).resolve().parents[1]


def test_builds_and_learns(tmp_path: Path) -> None:
    prefix = ala.native_info().cmake_prefix
    if prefix is None:
        pytest.skip(f"no installed C++ library: {ala.native_info().reason}")
    options = f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release"
    configure(ROOT / "examples" / "cpp_consumer", tmp_path, *options)
    run(tool("cmake"), "--build", tmp_path)
    said = run(tmp_path / "consumer")  # exits with 1 unless the loss fell by half
    assert said.startswith(f"ala_metric {(ROOT / 'VERSION').read_text().strip()}: mean loss")
    assert "torch" not in run(tool("ldd"), tmp_path / "consumer")
