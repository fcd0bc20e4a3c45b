"""The binding asks of torch only what its stable C ABI has promised since 2.10, and nothing of Python."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

import ala_metric as ala
from tests.toolchain import compiler, run, tool

ROOT = Path(__file__).resolve().parents[1]
BINDING = ROOT / "csrc" / "torch"
HEADERS = Path(torch.__file__).parent / "include"
SHIM = "#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n#include <torch/csrc/stable/c/shim.h>\n"
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000ull"  # 2.10.0


def library() -> str:
    path = ala.native_info().path
    if path is None:
        pytest.skip(f"no native library: {ala.native_info().reason}")
    return path


def compile_beside_torch(source: Path) -> subprocess.CompletedProcess[str]:
    command = [compiler(), "-std=c++17", "-fsyntax-only", TARGET, f"-I{HEADERS}", f"-I{BINDING}", source]
    return subprocess.run(command, capture_output=True, text=True)


def test_our_declarations_are_those_of_torch(tmp_path: Path) -> None:
    both = tmp_path / "both.cpp"
    both.write_text(SHIM + '#include "stable.h"\n')
    done = compile_beside_torch(both)
    assert done.returncode == 0, done.stderr
    # the check can fail: another signature of the same function is an error
    ours = (BINDING / "stable.h").read_text()
    both.write_text(SHIM + ours.replace("torch_get_num_threads(uint32_t*", "torch_get_num_threads(int64_t*"))
    assert "torch_get_num_threads" in compile_beside_torch(both).stderr


def test_every_symbol_is_in_the_stable_abi_of_2_10(tmp_path: Path) -> None:
    shim = tmp_path / "shim.cpp"
    shim.write_text(SHIM)
    declared = run(compiler(), "-std=c++17", "-E", "-P", TARGET, f"-I{HEADERS}", shim)
    promised = set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", declared))
    assert len(promised) > 100
    undefined = {
        line.split()[-1].split("@")[0]
        for line in run(tool("nm"), "-D", "--undefined-only", library()).splitlines()
    }
    of_torch = {name for name in undefined if "torch" in name}
    assert of_torch, "the binding would not be one"
    assert of_torch <= promised, f"not in the stable ABI of 2.10: {sorted(of_torch - promised)}"
    for name in undefined - of_torch:
        assert not name.startswith(
            ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZNK3c10", "_ZN2c1", "GOMP", "omp_")
        ), name


def test_it_needs_torch_by_name_only() -> None:
    dynamic = run(tool("readelf"), "-d", "-W", library())
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    allowed = {"libtorch.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"}
    assert "libtorch.so" in needed
    assert needed <= allowed | {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_no_path_of_the_build_machine_is_inside() -> None:
    assert str(ROOT).encode() not in Path(library()).read_bytes()
