"""The CUDA sources as a library for the CPU, and its C API through ctypes with NumPy arrays as memory.

Needs NumPy and a C++ compiler only, so that it also runs under the sanitizers without torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from ctypes import POINTER, Structure, byref, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests" / "cuda_emulation"
UNITS = ("mixture", "focal", "distance", "mined", "ranks")
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# nvcc fuses a multiplication and an addition into one instruction where it can
FUSED = ("-mfma", "-ffp-contract=fast", "-fexpensive-optimizations")
SANITIZERS = {
    "": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "thread": ("-fsanitize=thread",),
}
TF32, BF16 = 1, 2
LOST_BITS = {TF32: 13, BF16: 16}  # of the 24 of float32
ORDERS = ("forward", "backward", "shuffled")


def _fused() -> tuple[str, ...]:
    cpu = Path("/proc/cpuinfo")
    return FUSED if cpu.exists() and " fma " in cpu.read_text() else ()


def build(
    csrc: Path = ROOT / "csrc",
    sanitizer: str = "",
    compiler: str = "c++",
    units: tuple[str, ...] = UNITS,
) -> Path:
    """Compile units of ``csrc/cuda`` and link them; what did not change is taken from the cache."""
    cache = Path(tempfile.gettempdir()) / f"ala_metric-emulation-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    flags = [
        *FLAGS,
        *_fused(),
        *SANITIZERS[sanitizer],
        f"-I{EMULATION}",
        f"-I{csrc}",
        f"-I{csrc / 'include'}",
    ]
    sources = [(EMULATION / "fibres.cpp", []), *((csrc / "cuda" / f"{u}.cu", ["-x", "c++"]) for u in units)]
    running, objects = [], []
    for source, language in sources:
        seen = subprocess.run(
            [compiler, *flags, "-E", "-P", *language, source], check=True, capture_output=True
        ).stdout
        key = hashlib.sha256(seen + repr((compiler, FLAGS, _fused(), sanitizer)).encode()).hexdigest()[:24]
        target = cache / f"{source.stem}-{key}.o"
        objects.append(target)
        if not target.exists():
            part = target.with_suffix(f".{os.getpid()}")
            command = [compiler, *flags, *language, "-c", source, "-o", part]
            running.append((subprocess.Popen(command, stderr=subprocess.PIPE, text=True), part, target))
            if len(running) % 2 == 0:
                running[-2][0].wait()
    for process, part, target in running:
        error = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"{target.stem} does not compile:\n{error}")
        part.replace(target)
    name = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:24]
    library = cache / f"emulation-{name}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-shared", *SANITIZERS[sanitizer], *objects, "-o", part, "-lpthread"]
        subprocess.run(command, check=True)
        part.replace(library)
    return library


class Matrix(Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int32), *((n, c_int64) for n in ("rows", "cols", "rs", "cs"))]


class Error(Structure):
    _fields_ = [("message", ctypes.c_char * 256)]


MULTIPLY = ctypes.CFUNCTYPE(
    c_int32,
    c_void_p,
    c_void_p,
    *(c_int32,) * 3,
    *(c_int64,) * 3,
    *(c_void_p, c_int64) * 3,
)


class Context(Structure):
    _fields_ = [
        ("stream", c_void_p),
        ("multiply", c_void_p),
        ("multiply_self", c_void_p),
        ("strip_bytes", c_int64),
        ("path", c_int32),
        ("precision", c_int32),
    ]


def _request(name: str, *fields: tuple[str, Any]) -> type[Structure]:
    points = [("x", Matrix), ("y", Matrix), ("symmetric", c_int32)]
    return type(name, (Structure,), {"_fields_": [*points, *fields]})


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names]


_LABELS = _pointers("x_labels", "y_labels")
_GRADS = _pointers("grad_x", "grad_y", "grad_phi")
REQUESTS = {
    "pairwise_distance": _request("Distance", *_pointers("distances")),
    "pairwise_distance_backward": _request(
        "DistanceBackward", ("grad_distances", Matrix), *_pointers("grad_x", "grad_y")
    ),
    "distance_mixture": _request(
        "Mixture", *_LABELS, *_pointers("phi", "weights", "loss"), *_GRADS, *_pointers("own")
    ),
    "distance_statistics": _request("Statistics", *_LABELS, *_pointers("statistics")),
    "focal_weighting": _request(
        "Focal",
        *_LABELS,
        *_pointers("phi"),
        ("offset", c_double),
        *_pointers("weights"),
        ("lse_given", c_int32),
        *_pointers("lse", "loss"),
        *_GRADS,
    ),
    "mined_pairs": _request(
        "Pairs",
        *_pointers("phi"),
        ("n_positive", c_int64),
        ("n_negative", c_int64),
        *_pointers("positive_anchors", "positives", "negative_anchors", "negatives"),
        *_pointers("positive_weights", "negative_weights", "positive_values", "negative_values"),
        *_GRADS,
    ),
    "mined_triplets": _request(
        "Triplets",
        *_pointers("phi"),
        ("n_triplets", c_int64),
        *_pointers("anchors", "positives", "negatives", "weights", "values"),
        *_GRADS,
    ),
    "positive_ranks": _request(
        "Ranks",
        *_LABELS,
        ("cosine", c_int32),
        ("first_only", c_int32),
        *_pointers("offsets", "pessimistic", "optimistic"),
        ("positives_count", c_int64),
    ),
}


class Emulated:
    """The C API: ``call(op, x, y=None, **fields)``, arrays of NumPy in place of device memory."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.context = Context()

    def use(
        self, *, path: int = 0, strip_bytes: int = 0, multiply: Any = None, precision: int = 0
    ) -> Emulated:
        self.keep = multiply
        pointer = ctypes.cast(multiply, c_void_p) if multiply else None
        self.context = Context(None, pointer, None, strip_bytes, path, precision)
        return self

    def call(self, op: str, x: np.ndarray, y: np.ndarray | None = None, **fields: Any) -> None:
        request = REQUESTS[op]()
        request.x = matrix(x)
        request.symmetric = y is None
        request.y = matrix(x if y is None else y)
        for name, value in fields.items():
            if isinstance(value, np.ndarray) and name == "grad_distances":
                value = matrix(value)
            elif isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                value = value.ctypes.data
            setattr(request, name, value)
        error = Error()
        size = c_int64()
        self._demand(f"ala_cuda_{op}_workspace", byref(request), byref(self.context), byref(size), error)
        workspace = np.full(size.value, 0xFF, np.uint8)  # what nobody wrote is NaN
        self._demand(
            f"ala_cuda_{op}",
            byref(request),
            byref(self.context),
            c_void_p(workspace.ctypes.data),
            size,
            error,
        )

    def _demand(self, name: str, *arguments: Any) -> None:
        *arguments, error = arguments
        status = getattr(self.library, name)(*arguments, byref(error))
        if status:
            raise ValueError(f"{name}: status {status}: {error.message.decode()}")


def matrix(x: np.ndarray) -> Matrix:
    kinds = {"float32": 0, "float64": 1, "float16": 2, "uint16": 3}  # bfloat16 travels as its bits
    size = x.itemsize
    return Matrix(x.ctypes.data, kinds[x.dtype.name], *x.shape, x.strides[0] // size, x.strides[1] // size)


@MULTIPLY
def blas(
    self: Any,
    stream: Any,
    dtype: int,
    precision: int,
    transposed: int,
    rows: int,
    cols: int,
    inner: int,
    a: int,
    lda: int,
    b: int,
    ldb: int,
    c: int,
    ldc: int,
) -> int:
    """A BLAS for strips: NumPy's. Where it may, it cuts off what TF32 or bfloat16 has no room for."""
    real = ctypes.c_double if dtype == 1 else ctypes.c_float

    def view(at: int, height: int, width: int, stride: int) -> np.ndarray:
        flat = np.ctypeslib.as_array(ctypes.cast(at, POINTER(real)), ((height - 1) * stride + width,))
        return np.lib.stride_tricks.as_strided(
            flat, (height, width), (stride * flat.itemsize, flat.itemsize), writeable=True
        )

    if not rows or not cols or not inner:
        return 1
    left = cut(view(a, rows, inner, lda), precision)
    right = cut(view(b, cols, inner, ldb) if transposed else view(b, inner, cols, ldb), precision)
    view(c, rows, cols, ldc)[:] = left @ (right.T if transposed else right)
    return 0


def cut(x: np.ndarray, precision: int) -> np.ndarray:
    """What a unit of this precision reads of float32, at worst: the low bits are lost, not rounded."""
    if not precision:
        return x
    words = np.ascontiguousarray(x).view(np.uint32) & np.uint32(2**32 - 2 ** LOST_BITS[precision])
    return words.view(np.float32)
