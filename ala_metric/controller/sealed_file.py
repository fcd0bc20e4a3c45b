"""A safetensors file whose header carries a JSON description and a checksum of every byte."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from .._files import atomic_write_bytes
from ..types import CheckpointError

FORMAT = 1
LARGEST_FILE = 1 << 28
LARGEST_HEADER = 1 << 16
_NO_CHECKSUM = "0" * 64
_FAULTS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError)


def write_sealed(
    path: str | os.PathLike[str], kind: str, description: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write the file atomically.

    Parameters
    ----------
    path
        Target; replaced if it exists.
    kind
        Name of the header's one entry, such as ``"ala_metric.policy"``.
    description
        Plain data.
    tensors
        What it describes.

    Raises
    ------
    ValueError
        If a number in a tensor is not finite.
    """
    what = kind.rpartition(".")[2]
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError(f"{what} has weights that are not finite")
    # One entry: the order of several in a header is not fixed.
    entry = json.dumps({"format": FORMAT, **description, "sha256": _NO_CHECKSUM})
    data = save_tensors(tensors, metadata={kind: entry})
    atomic_write_bytes(path, data.replace(_NO_CHECKSUM.encode(), _checksum(data).encode(), 1))


@contextmanager
def read_sealed(
    path: str | os.PathLike[str], kind: str
) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Description and tensors of a file of this kind; what goes wrong inside is a fault of the file.

    Parameters
    ----------
    path
        The file.
    kind
        As it was written.

    Yields
    ------
    tuple of dict
        Description and tensors, all finite.

    Raises
    ------
    CheckpointError
        If the file is damaged, truncated, oversized or of another kind, or does not fit what reads it.
    """
    with Path(path).open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    try:
        yield _opened(data, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    except _FAULTS as error:
        what = kind.rpartition(".")[2]
        raise CheckpointError(f"{os.fspath(path)}: not a {what} file ({error})") from error


def _opened(data: bytes, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Content of a file, checked from the outside in."""
    what = kind.rpartition(".")[2]
    size = int.from_bytes(data[:8], "little")
    if len(data) > LARGEST_FILE or size > LARGEST_HEADER or 8 + size > len(data):
        raise CheckpointError(f"a header of {size} bytes does not fit a {what} file of {len(data)} bytes")
    description: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][kind])
    if description["format"] != FORMAT:
        raise CheckpointError(f"format must be {FORMAT!r}, got {description['format']!r}")
    stated = description["sha256"].encode()
    if len(stated) != 64 or _checksum(data.replace(stated, _NO_CHECKSUM.encode(), 1)).encode() != stated:
        raise CheckpointError("the checksum does not match: the file is damaged")
    tensors = load_tensors(data)
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise CheckpointError("a weight is not finite")
    return description, tensors


def _checksum(data: bytes) -> str:
    """SHA-256 of a file whose checksum field still holds zeros."""
    return hashlib.sha256(data).hexdigest()
