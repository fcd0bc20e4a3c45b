"""From the wheel alone, in another folder: the quick start, the C++ consumer and the NumPy example.

The environment is a fresh one that holds the wheel and borrows the dependencies (torch is too large to
install for a test), without this checkout.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .test_build import ROOT, ask, environment, native_wheel, pip  # noqa: F401  (native_wheel is a fixture)
from .test_readme import PROGRAMS
from .toolchain import configure, run, tool

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--wheel")
    wheel = Path(given).resolve() if given else request.getfixturevalue("native_wheel")
    interpreter = environment(tmp_path_factory.mktemp("wheel") / "venv", with_torch=True)
    done = pip("--python", interpreter, "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stdout
    return interpreter


def test_the_quick_start(python: Path, tmp_path: Path) -> None:
    (program,) = PROGRAMS
    where = f"\nimport ala_metric; assert ala_metric.__file__.startswith({str(python.parents[1])!r})\n"
    settings = {"ALA_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "1"}
    said = ask(python, program + where, tmp_path, **settings)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("10 Recall@1 0.")


def test_the_numpy_example(python: Path, tmp_path: Path) -> None:
    program = (ROOT / "examples" / "numpy_kernels.py").read_text()
    said = ask(python, program + "\nimport sys; assert 'torch' not in sys.modules\n", tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("mean loss")


def test_the_cpp_consumer(python: Path, tmp_path: Path) -> None:
    prefix = ask(python, "import ala_metric; print(ala_metric.native_info().cmake_prefix)", tmp_path).stdout
    assert prefix.startswith(str(python.parents[1]))
    shutil.copytree(ROOT / "examples" / "cpp_consumer", tmp_path / "sources")
    options = f"-DCMAKE_PREFIX_PATH={prefix.strip()}", "-DCMAKE_BUILD_TYPE=Release"
    configure(tmp_path / "sources", tmp_path / "build", *options)
    run(tool("cmake"), "--build", tmp_path / "build")
    assert "mean loss" in run(tmp_path / "build" / "consumer")
