"""The native library is found once, and its absence is explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ala_metric as ala
from ala_metric import _native

ROOT = Path(__file__).resolve().parents[1]
VERSION = (ROOT / "VERSION").read_text().strip()


def leave(folder: Path, **record: Any) -> Path:
    known = {"version": ala.__version__, "parts": ["torch", "numpy", "cmake"], "reason": ""}
    (folder / "build_info.json").write_text(json.dumps(known | record))
    return folder


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ALA_REQUIRE_NATIVE": ""} | environment,
    )


def test_nothing_was_built(tmp_path: Path) -> None:
    info = _native._examine(tmp_path)
    assert not info.available
    assert "was not built" in info.reason
    assert "pip install" in info.reason  # the command that repairs it
    assert (info.path, info.version, info.isa, info.cmake_prefix) == (None, None, None, None)


def test_the_reason_of_the_build_is_passed_on(tmp_path: Path) -> None:
    leave(tmp_path, parts=[], reason="no C++ compiler was found")
    assert "no C++ compiler was found" in _native._examine(tmp_path).reason
    with pytest.raises(ImportError, match=r"no C\+\+ compiler was found"):
        _native.load_numpy_module(tmp_path)


def test_a_damaged_record_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "build_info.json").write_text('{"version": ')
    assert "was not built" in _native._examine(tmp_path).reason
    (tmp_path / "build_info.json").write_text("[]")
    assert "was not built" in _native._examine(tmp_path).reason


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "__version__", "9.8.7")
    assert (
        "built for version 0.0.1, the package is 9.8.7"
        in _native._examine(leave(tmp_path, version="0.0.1")).reason
    )


def test_a_part_that_was_left_out(tmp_path: Path) -> None:
    leave(tmp_path, parts=["torch"])
    with pytest.raises(ImportError, match="left out its numpy part"):
        _native.load_numpy_module(tmp_path)


def test_a_module_for_another_python(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="not built for Python"):
        _native.load_numpy_module(leave(tmp_path))


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    (leave(tmp_path) / "libala_metric_torch.so").write_bytes(b"not a library")
    info = _native._examine(tmp_path)
    assert not info.available
    assert "does not load" in info.reason


def test_an_older_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert "needs torch >= 2.10, found 2.9.1" in _native._examine(leave(tmp_path)).reason
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git123")
    assert "needs torch" not in _native._examine(leave(tmp_path)).reason


def test_required_but_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = _native._examine(tmp_path)
    monkeypatch.setattr(_native, "_info", lambda: absent)
    monkeypatch.setenv("ALA_REQUIRE_NATIVE", "1")
    with pytest.raises(ImportError, match=r"ALA_REQUIRE_NATIVE is set, but .* was not built .*pip install"):
        ala.native_info()
    for off in ("0", ""):
        monkeypatch.setenv("ALA_REQUIRE_NATIVE", off)
        assert ala.native_info() is absent


def test_importing_the_package_imports_no_torch() -> None:
    done = python("import ala_metric, sys; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


available = pytest.mark.skipif(not _native.native_info().available, reason=_native.native_info().reason)


@available
def test_what_is_said_of_the_library_in_use() -> None:
    info = ala.native_info()
    assert info.reason == ""
    assert info.version == VERSION
    assert info.isa
    assert info.path is not None
    assert Path(info.path).is_file()
    assert not info.cuda_available
    assert info.cuda_reason


@available
def test_an_instruction_set_that_cannot_be_had() -> None:
    program = "import ala_metric; print(ala_metric.native_info().reason)"
    assert "ALA_METRIC_ISA" in python(program, ALA_METRIC_ISA="abacus").stdout


@available
def test_two_copies_in_one_process_do_not_abort() -> None:
    program = f"""
import shutil, tempfile, pathlib
from ala_metric import _native
assert _native.native_info().available
copy = pathlib.Path(tempfile.mkdtemp()) / "_lib"
shutil.copytree({str(_native.LIB_DIR)!r}, copy)
print(_native._examine(copy).reason)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert "operator library" in done.stdout
