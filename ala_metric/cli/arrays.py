"""Reading one array from a file that others have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import UsageError

NUMBERS = "expected numbers, written by numpy.save"
CLASSES = f"{NUMBERS}, or strings (an array of dtype str, not of objects)"


def read_array(path: Path) -> Tensor:
    """Read a ``.npy`` file, or a ``.npz`` or ``.safetensors`` file that holds just one array of numbers."""
    return _numbers(_read(path, NUMBERS), path, NUMBERS)


def read_classes(*paths: Path) -> list[Tensor]:
    """Read the classes of several files; strings are numbered, equal ones alike in all files."""
    arrays = [_read(path, CLASSES) for path in paths]
    strings = [isinstance(array, np.ndarray) and array.dtype.kind in "SU" for array in arrays]
    if not any(strings):
        return [_numbers(array, path, CLASSES) for array, path in zip(arrays, paths)]
    if not all(strings):
        kinds = ", ".join(f"{array.dtype} in {path}" for array, path in zip(arrays, paths))
        raise ValueError(f"classes must be numbers in all files or strings in all, got {kinds}")
    names = np.concatenate([array.astype(str).ravel() for array in arrays])
    numbers = torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))
    parts = numbers.split([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays)]


def _read(path: Path, expected: str) -> Any:
    """An array of NumPy, or a tensor."""
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise UsageError(f"{path} must end in .npy, .npz or .safetensors")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _only(load_file(path))
        array: Any = np.load(path, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            with array:
                return _only(array)
        return array
    except Exception as error:
        # NumPy advises to unpickle what it cannot read: a text file, an array of objects.
        said = expected if "allow_pickle" in str(error) else error
        raise ValueError(f"cannot read {path}: {said}") from None


def _numbers(array: Any, path: Path, expected: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"cannot read {path}: {expected}; got {array.dtype}")
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:  # float128: no dtype of torch
        raise ValueError(f"cannot read {path}: {error}") from None


def _only(arrays: Any) -> Any:
    names = sorted(arrays)
    if len(names) != 1:
        raise ValueError(f"expected one array, found {', '.join(names) or 'none'}")
    return arrays[names[0]]
