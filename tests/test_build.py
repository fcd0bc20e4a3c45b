"""pip builds and installs the package: with and without a compiler or torch, and says what it built."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.toolchain import compiler

ROOT = Path(__file__).resolve().parents[1]
SITE_PACKAGES = Path(torch.__file__).parents[1]
NO_PATH = {"PATH": "/nonexistent"}


def pip(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("ALA_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=settings | environment,
    )


def build_wheel(source: Path, folder: Path, *options: str, **environment: str) -> tuple[Path, str]:
    done = pip(
        "wheel",
        source,
        "--no-deps",
        "-v",
        "-w",
        folder,
        *(options or ["--no-build-isolation"]),
        **environment,
    )
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep two test processes from building in this checkout at once."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "tests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def record(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return dict(json.loads(archive.read("ala_metric/_lib/build_info.json")))


def copy_of_the_sources(folder: Path) -> Path:
    """For builds without kernels, which must leave this checkout's library alone."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "VERSION", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("cmake", "csrc", "ala_metric"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("cxx", ["{} -pthread", "env {}"])
def test_a_compiler_may_have_options_and_a_launcher(sources: Path, cxx: str) -> None:
    settings = os.environ | {"CXX": cxx.format(compiler()), "ALA_METRIC_BUILD": "cpu"}
    command = [sys.executable, "setup.py", "--version"]  # looks for the compiler, and builds nothing
    done = subprocess.run(command, cwd=sources, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_build_that_fails_leaves_the_library_alone(sources: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sources, tmp_path / "tree")
    library = folder / "ala_metric" / "_lib"
    library.mkdir()
    (library / "in use").touch()
    settings = os.environ | {"ALA_METRIC_BUILD": "cpu", "CMAKE_ARGS": "--no-such-option"}
    command = [sys.executable, "setup.py", "build_native", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    assert "failed; its output is above" in done.stderr
    assert (library / "in use").exists()


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built where torch must not be imported; reuses the compiled kernels in build/."""
    compiler()
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of this run: one wheel for all workers
    poison = tmp_path_factory.mktemp("poison")
    (poison / "torch.py").write_text("raise RuntimeError('the build imported torch')\n")
    with alone():
        if not (built := list((folder / "native_wheel").glob("*.whl"))):
            settings = {"ALA_METRIC_BUILD": "cpu", "PYTHONPATH": str(poison)}
            wheel, said = build_wheel(ROOT, folder / "native_wheel", **settings)
            assert "ala_metric: built the native library (torch, numpy, cmake) with" in said
            built = [wheel]
    return built[0]


def environment(folder: Path, *, with_torch: bool) -> Path:
    """A fresh virtual environment, which may borrow torch from this one; returns its Python."""
    venv.create(folder, with_pip=False)
    if with_torch:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(f"{SITE_PACKAGES}\n")
    return folder / "bin" / "python"


def ask(python: Path, program: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ALA_", "PYTHON"))}
    command = [python, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean | settings)


def test_the_wheel_holds_every_part(native_wheel: Path) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in native_wheel.name
    names = zipfile.ZipFile(native_wheel).namelist()
    for part in (
        "libala_metric_torch.so",
        "lib/libala_metric.a",
        "lib/cmake/ala_metric/ala_metricConfig.cmake",
        "include/ala_metric/ala_metric.h",
    ):
        assert f"ala_metric/_lib/{part}" in names
    assert any(name.startswith("ala_metric/_lib/_numpy.") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "csrc"))]
    assert record(native_wheel)["version"] == (ROOT / "VERSION").read_text().strip()


def test_the_wheel_works_in_a_second_environment(native_wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", with_torch=True)
    done = pip("--python", python, "install", "--no-deps", "--no-index", native_wheel)
    assert done.returncode == 0, done.stdout
    program = (
        "import torch, ala_metric; info = ala_metric.native_info(); print(info.path, info.reason);"
        "from ala_metric import ops; x = torch.tensor([[0.0], [2.0]], requires_grad=True);"
        "ops.pairwise_distance(x, impl='native').sum().backward(); print(x.grad.flatten().tolist())"
    )
    said = ask(python, program, tmp_path, ALA_REQUIRE_NATIVE="1")
    assert said.returncode == 0, said.stderr
    first, second = said.stdout.splitlines()
    assert str(tmp_path) in first  # its own library, not the one of this checkout
    assert second == "[-2.0, 2.0]"


def test_the_wheel_works_without_torch(native_wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", with_torch=False)
    done = pip("--python", python, "install", "--no-deps", "--no-index", native_wheel)
    assert done.returncode == 0, done.stdout
    said = ask(python, "import ala_metric; print(ala_metric.native_info().reason)", tmp_path)
    assert said.stdout.strip() == "torch is not installed", said.stderr


def test_auditwheel_finds_nothing_but_torch_outside(native_wheel: Path) -> None:
    pytest.importorskip("auditwheel")
    command = [sys.executable, "-m", "auditwheel", "show", native_wheel]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "is consistent with" in said
    assert "manylinux_2_" in said  # glibc and libstdc++ symbols of a known age only
    assert "GOMP" not in said


def test_without_a_compiler_the_package_is_pure_and_says_so(sources: Path, tmp_path: Path) -> None:
    wheel, said = build_wheel(sources, tmp_path / "wheel", **NO_PATH)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "BUILT WITHOUT THE NATIVE LIBRARY" in said
    python = environment(tmp_path / "venv", with_torch=True)
    assert pip("--python", python, "install", "--no-deps", "--no-index", wheel).returncode == 0
    program = (
        "import torch, ala_metric; print(ala_metric.native_info().reason);"
        "from ala_metric import ops; print(ops.pairwise_distance(torch.ones(2, 1)).sum().item())"
    )
    said_later = ask(python, program, tmp_path)
    assert said_later.returncode == 0, said_later.stderr
    assert "no C++ compiler was found" in said_later.stdout
    assert said_later.stdout.endswith("0.0\n")
    required = ask(python, "import ala_metric", tmp_path, ALA_REQUIRE_NATIVE="1")
    assert required.returncode != 0
    assert "ImportError: ALA_REQUIRE_NATIVE is set, but" in required.stderr
    assert "pip install" in required.stderr


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("cpu", "ALA_METRIC_BUILD=cpu, but no C++ compiler was found"),
        ("cuda", "ALA_METRIC_BUILD=cuda, but no C++ compiler was found"),
        ("gpu", "ALA_METRIC_BUILD must be one of auto, cpu, cuda, none, got 'gpu'"),
    ],
)
def test_what_cannot_be_built_is_an_error(sources: Path, mode: str, message: str) -> None:
    command = [sys.executable, "setup.py", "--version"]
    settings = os.environ | NO_PATH | {"ALA_METRIC_BUILD": mode}
    done = subprocess.run(command, capture_output=True, text=True, cwd=sources, env=settings)
    assert done.returncode != 0
    assert message in done.stderr


def test_editable_and_left_out_on_request(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path)
    python = environment(tmp_path / "venv", with_torch=True)
    settings = {"ALA_METRIC_BUILD": "none"}
    done = pip("--python", python, "install", "--no-deps", "--no-build-isolation", "-e", sources, **settings)
    assert done.returncode == 0, done.stdout
    assert json.loads((sources / "ala_metric/_lib/build_info.json").read_text())["mode"] == "none"
    said = ask(
        python, "import ala_metric; print(ala_metric.__file__, ala_metric.native_info().reason)", tmp_path
    )
    assert str(sources) in said.stdout, said.stderr
    assert "left out on request" in said.stdout


@pytest.mark.slow
def test_an_isolated_build(tmp_path: Path) -> None:
    """With the build requirements from the package index, and nothing of this environment."""
    requirements = tmp_path / "requirements"
    reached = pip("download", "--no-deps", "-d", requirements, "setuptools>=77", "pybind11>=2.12")
    if reached.returncode:
        pytest.skip("the package index cannot be reached")
    with alone():
        wheel, said = build_wheel(ROOT, tmp_path / "wheel", "--use-pep517")
    assert "torch" not in said.split("Getting requirements to build wheel")[0]
    assert record(wheel)["parts"] == ["torch", "numpy", "cmake"], said
