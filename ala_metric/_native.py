"""Floor 1: find and load the native library once, and say why where it cannot be used."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._version import __version__

LIB_DIR = Path(__file__).resolve().parent / "_lib"
OLDEST_TORCH = (2, 10)
_SOURCE_TREE = LIB_DIR.parents[1]
REINSTALL = "ALA_METRIC_BUILD=cpu pip install " + (
    f"--no-deps -e {_SOURCE_TREE}"
    if (_SOURCE_TREE / "CMakeLists.txt").exists()
    else "--force-reinstall --no-deps --no-cache-dir ala-metric"
)
_TORCH_LIBRARY = "libala_metric_torch.so"


@dataclass(frozen=True)
class NativeInfo:
    """What is known about the native library of this installation.

    Parameters
    ----------
    available
        Whether the fused kernels are loaded and used by ``impl="auto"``.
    reason
        Why they are not available; empty when they are.
    path
        The library file, or None where there is none.
    version
        Version that the library was built for.
    isa
        Instruction set that this machine's kernels use, such as ``"avx2"``.
    cuda_available, cuda_reason
        The same for the CUDA kernels.
    cmake_prefix
        What a C++ project adds to ``CMAKE_PREFIX_PATH`` for ``find_package(ala_metric)``.
    build
        What the build recorded about itself (compiler, mode, parts).
    """

    available: bool
    reason: str
    path: str | None
    version: str | None
    isa: str | None
    cuda_available: bool
    cuda_reason: str
    cmake_prefix: str | None
    build: dict[str, Any]


def build_info(lib_dir: Path = LIB_DIR) -> dict[str, Any]:
    """Read the record that the build left beside the library; empty where nothing was built."""
    try:
        record = json.loads((lib_dir / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def obstacle(build: dict[str, Any], lib_dir: Path, part: str) -> str | None:
    """Why ``part`` ("torch" or "numpy") of the library in ``lib_dir`` cannot be loaded, or None."""
    if not build:
        return f"the native library was not built (run: {REINSTALL})"
    if part not in build.get("parts", ()):
        why = build.get("reason") or f"the build left out its {part} part"
        return f"{why} (run: {REINSTALL})"
    if build.get("version") != __version__ and not __version__.startswith("0+"):
        return (
            f"the native library was built for version {build.get('version')}, "
            f"the package is {__version__} (run: {REINSTALL})"
        )
    return None


def _torch_obstacle() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:
        return "torch is not installed"
    found = torch.__version__.split("+")[0].split(".")
    if tuple(int(part) for part in found[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"the native library needs torch >= {oldest}, found {torch.__version__}"
    return None


class LibraryError(Exception):
    """The library loads, but does not fit or did not register its operators."""


def _load_into_torch(path: Path) -> tuple[str, str, str]:
    """Register the operators; return the library's version, its instruction set, and why it has no CUDA."""
    import torch

    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.ala_metric_torch_problem.restype = ctypes.c_char_p
    library.ala_metric_version.restype = ctypes.c_char_p
    if problem := library.ala_metric_torch_problem():
        raise LibraryError(problem.decode())
    isa, error = ctypes.c_char_p(), ctypes.create_string_buffer(256)
    if library.ala_metric_isa(ctypes.byref(isa), error):
        raise LibraryError(error.value.decode())
    library.ala_metric_torch_cuda_obstacle.restype = ctypes.c_char_p
    without_cuda = (library.ala_metric_torch_cuda_obstacle() or b"").decode() or _driver_obstacle()
    return library.ala_metric_version().decode(), (isa.value or b"").decode(), without_cuda


def _driver_obstacle() -> str:
    """Why CUDA cannot run on this machine; the driver is found, not started, which would spoil a fork."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no CUDA driver on this machine ({error})"
    return ""


def _examine(lib_dir: Path = LIB_DIR) -> NativeInfo:
    build = build_info(lib_dir)
    path = lib_dir / _TORCH_LIBRARY
    version: str | None = build.get("version")
    isa = None
    cuda_reason = str(build.get("cuda_reason") or "the native library is not in use")
    reason = obstacle(build, lib_dir, "torch") or _torch_obstacle()
    if reason is None:
        try:
            version, isa, cuda_reason = _load_into_torch(path)
        except LibraryError as error:
            reason = str(error)
        except (OSError, AttributeError) as error:
            reason = f"{path} does not load: {error} (run: {REINSTALL})"
    return NativeInfo(
        available=reason is None,
        reason=reason or "",
        path=str(path) if path.exists() else None,
        version=version,
        isa=isa,
        cuda_available=reason is None and not cuda_reason,
        cuda_reason=cuda_reason,
        cmake_prefix=str(lib_dir) if "cmake" in build.get("parts", ()) else None,
        build=build,
    )


@functools.cache
def _info() -> NativeInfo:
    return _examine()


def native_info() -> NativeInfo:
    """Load the native library, if there is one, and say what was found.

    The package works without it, in plain PyTorch; set ``ALA_REQUIRE_NATIVE=1`` to make its absence an
    error instead.

    Returns
    -------
    NativeInfo
        ``available``, ``reason``, ``path``, ``version``, ``isa`` and more.

    Raises
    ------
    ImportError
        Only under ``ALA_REQUIRE_NATIVE=1``, if the library cannot be used.

    Examples
    --------
    >>> import ala_metric as ala
    >>> info = ala.native_info()
    >>> info.available or bool(info.reason)
    True
    """
    info = _info()
    if not info.available and required():
        raise ImportError(f"ALA_REQUIRE_NATIVE is set, but {info.reason}")
    return info


def required() -> bool:
    """Whether the user made a missing library an error (``ALA_REQUIRE_NATIVE=1``)."""
    return os.environ.get("ALA_REQUIRE_NATIVE", "") not in ("", "0")


def load_numpy_module(lib_dir: Path = LIB_DIR) -> Any:
    """Load the extension module that serves NumPy arrays, without torch.

    Raises
    ------
    ImportError
        If it was not built or does not load; the message says why.
    """
    import importlib.util

    reason = obstacle(build_info(lib_dir), lib_dir, "numpy")
    if reason:
        raise ImportError(f"ala_metric.numpy_api needs the native library, but {reason}")
    from importlib.machinery import EXTENSION_SUFFIXES

    paths = [lib_dir / f"_numpy{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        tag = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        raise ImportError(f"ala_metric.numpy_api was not built for {tag} (run: {REINSTALL})")
    spec = importlib.util.spec_from_file_location("ala_metric._numpy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
