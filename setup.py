"""A thin door to CMakeLists.txt, the only build recipe; everything else is in pyproject.toml.

ALA_METRIC_BUILD chooses what happens (torch is never imported, and need not be installed):
  auto  (default) the native library where a C++ compiler works, else pure Python and a line that says so
  cpu   the native library, or a failed installation
  cuda  the native library with CUDA kernels, or a failed installation; needs nvcc (CUDACXX or PATH), no GPU
  none  pure Python
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
VERSION = (ROOT / "VERSION").read_text().strip()
MODES = ("auto", "cpu", "cuda", "none")
NO_CUDA = "the native library was built without CUDA (ALA_METRIC_BUILD=cuda builds it where nvcc is)"


def say(message: str) -> None:
    print(f"ala_metric: {message}", file=sys.stderr, flush=True)


def tool(name: str, attribute: str) -> str | None:
    """Path of a build tool: from its Python package, as in an isolated build, else from PATH."""
    with contextlib.suppress(ImportError):
        directory = getattr(importlib.import_module(name), attribute, None)
        if directory and (found := shutil.which(name, path=directory)):
            return found
    return shutil.which(name)


def obstacle(cmake: str | None) -> str | None:
    """Why the native library cannot be built here, or None."""
    if os.name != "posix":
        return "the native library is built on Linux and macOS only"
    if cmake is None:
        return "cmake was not found"
    asked = shlex.split(os.environ.get("CXX", ""))  # may have options, or begin with ccache
    wanted = asked[:1] or ["c++", "g++", "clang++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        return f"no C++ compiler was found (looked for {', '.join(wanted)})"
    compiler = [found, *asked[1:]]
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.cpp")
        source.write_text("#include <vector>\nint main() { return std::vector<int>().size(); }\n")
        command = [*compiler, "-std=c++17", str(source), "-o", str(source.with_suffix(""))]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return f"the C++ compiler {' '.join(compiler)} cannot compile and link an empty C++17 program"
    return None


def cuda_obstacle() -> str | None:
    """Why the CUDA kernels cannot be built here, or None. Only the compiler counts, never a GPU."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None or shutil.which(nvcc) is None:
        return "no CUDA compiler was found (looked for nvcc on PATH, and for CUDACXX)"
    return None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One build at a time in this directory."""
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_cmake(cmake: str, prefix: Path) -> None:
    """Configure, build and install into ``prefix``; raises CalledProcessError."""
    directory = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    options = [f"-DALA_METRIC_VERSION={VERSION}", f"-DPython_EXECUTABLE={sys.executable}", "-DALA_PYTHON=ON"]
    options.append(f"-DALA_CUDA={'ON' if MODE == 'cuda' else 'OFF'}")
    if ninja := tool("ninja", "BIN_DIR"):
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    with contextlib.suppress(ImportError):
        options.append(f"-Dpybind11_DIR={importlib.import_module('pybind11').get_cmake_dir()}")
    options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    # what CMake keeps from an earlier run with another generator or compiler must not be believed
    choices = [
        bool(ninja),
        *(os.environ.get(name) for name in ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS")),
        MODE == "cuda",
    ]
    kept = directory / "choices.json"
    with locked(directory):
        fresh = [] if kept.exists() and json.loads(kept.read_text()) == choices else ["--fresh"]
        kept.unlink(missing_ok=True)
        subprocess.run([cmake, *fresh, "-S", ROOT, "-B", directory, *options], check=True)
        kept.write_text(json.dumps(choices))
        subprocess.run([cmake, "--build", directory, "--parallel", jobs], check=True)
        subprocess.run([cmake, "--install", directory, "--prefix", prefix, "--strip"], check=True)
        shutil.copy(directory / "build_info.json", prefix)


MODE = os.environ.get("ALA_METRIC_BUILD", "auto") or "auto"
if MODE not in MODES:
    raise SystemExit(f"ala_metric: ALA_METRIC_BUILD must be one of {', '.join(MODES)}, got {MODE!r}")
CMAKE = tool("cmake", "CMAKE_BIN_DIR")
OBSTACLE = "it was left out on request (ALA_METRIC_BUILD=none)" if MODE == "none" else obstacle(CMAKE)
if MODE == "cuda":
    OBSTACLE = OBSTACLE or cuda_obstacle()
DEMANDED = MODE in ("cpu", "cuda")
if OBSTACLE and DEMANDED:
    raise SystemExit(f"ala_metric: ALA_METRIC_BUILD={MODE}, but {OBSTACLE}")


class Package(Distribution):
    """Without a native library the wheel is the same for every platform."""

    def has_ext_modules(self) -> bool:
        return OBSTACLE is None


class BuildNative(Command):
    """Build the native library into ala_metric/_lib and leave a record of what was built there."""

    description = "build the native library with CMake"
    user_options = [("inplace", "i", "build into the source tree")]  # noqa: RUF012

    def initialize_options(self) -> None:
        self.editable_mode = False
        self.inplace = False
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        in_tree = self.editable_mode or self.inplace
        prefix = (ROOT if in_tree else Path(str(self.build_lib)).resolve()) / "ala_metric" / "_lib"
        reason, built = OBSTACLE, ROOT / "build" / f"lib-{sys.implementation.cache_tag}"
        if reason is None:
            assert CMAKE is not None
            shutil.rmtree(built, ignore_errors=True)
            try:
                run_cmake(CMAKE, built)
            except subprocess.CalledProcessError as error:
                step = f"cmake {error.cmd[1]}"
                if DEMANDED:
                    raise SystemExit(f"ala_metric: {step} failed; its output is above") from error
                reason = f"{step} failed; its output is above (pip shows it with -v)"
        # The library in use goes only now, after minutes of compiling. What an earlier build left here must
        # not get into a wheel.
        shutil.rmtree(prefix if in_tree else prefix.parent, ignore_errors=True)
        if reason is None:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(built, prefix)
        else:
            prefix.mkdir(parents=True)
        record = prefix / "build_info.json"
        info = json.loads(record.read_text()) if record.exists() else {"parts": []}
        info |= {"version": VERSION, "mode": MODE, "cuda_reason": "" if MODE == "cuda" else NO_CUDA}
        info["reason"] = f"the native library is missing: {reason}" if reason else ""
        record.write_text(json.dumps(info, indent=1) + "\n")
        if reason:
            say(f"BUILT WITHOUT THE NATIVE LIBRARY (pure PyTorch, slower): {reason}")
        else:
            say(f"built the native library ({', '.join(info['parts'])}) with {info['compiler']}")

    def get_source_files(self) -> list[str]:
        recipe = ["CMakeLists.txt", "VERSION"]
        folders = ("csrc", "cmake")
        return recipe + [
            str(path.relative_to(ROOT)) for f in folders for path in (ROOT / f).rglob("*") if path.is_file()
        ]

    def get_outputs(self) -> list[str]:
        prefix = Path(str(self.build_lib)) / "ala_metric" / "_lib"
        return [str(path) for path in prefix.rglob("*") if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


build.sub_commands.insert(0, ("build_native", None))
setup(distclass=Package, cmdclass={"build_native": BuildNative})
