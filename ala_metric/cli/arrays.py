"""Reading one array from a file that others have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import UsageError

NUMBERS = (
    "expected numbers, written by numpy.save; classes that are strings: number them first, "
    "numpy.unique(labels, return_inverse=True)[1]"
)


def read_array(path: Path) -> Tensor:
    """Read a ``.npy`` file, or a ``.npz`` or ``.safetensors`` file that holds just one array."""
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise UsageError(f"{path} must end in .npy, .npz or .safetensors")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _only(load_file(path))
        array: Any = np.load(path, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            with array:
                array = _only(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{NUMBERS}; got {array.dtype}")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:
        # NumPy advises to unpickle what it cannot read: a text file, an array of strings.
        said = NUMBERS if "allow_pickle" in str(error) else error
        raise ValueError(f"cannot read {path}: {said}") from None


def _only(arrays: Any) -> Any:
    names = sorted(arrays)
    if len(names) != 1:
        raise ValueError(f"expected one array, found {', '.join(names) or 'none'}")
    return arrays[names[0]]
