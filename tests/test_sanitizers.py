"""The core's own C++ tests, under AddressSanitizer with UndefinedBehaviorSanitizer, or ThreadSanitizer.

``make test`` runs the first; ``make test-sanitize`` chooses the second with ``--sanitizer thread``.
"""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

from tests.toolchain import compiler, configure, run, tool

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


@pytest.fixture
def sanitizer(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.config.getoption("--sanitizer")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [compiler(), FLAGS[name], probe, "-o", tmp_path / "probe"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"the compiler has no {FLAGS[name]}")
    return name


@pytest.mark.slow
@pytest.mark.timeout(1200)  # ThreadSanitizer takes five minutes on two idle cores
def test_core_under_a_sanitizer(sanitizer: str) -> None:
    build = ROOT / "build" / f"sanitize-{sanitizer}"
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure(ROOT, build, "-DALA_TESTS=ON", f"-DALA_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=Release")
        run(tool("cmake"), "--build", build, "--parallel", "2")
        run(tool("ctest"), "--test-dir", build, "--output-on-failure", "--no-tests=error", "-j2")
