"""Checkpoints that are either whole or refused: atomic, checksummed, and never unpickled into code."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch

from .._files import atomic_write_bytes
from ..types import CheckpointError

_MAGIC = b"ALACKPT\n"
_VERSION = 1
_HEADER = struct.Struct("<8sI32sQ")  # magic, version, SHA-256 of the payload, its length
# Exact types: the restricted unpickler refuses subclasses such as numpy.float64 or enums.
_DICTS = (dict, OrderedDict, Counter)
_LISTS = (list, tuple, torch.Size)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_LEAVES = (str, bytes, bool, int, float, complex, torch.device, torch.dtype, type(None))


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state so that a crash at any moment leaves the previous or the new checkpoint.

    Parameters
    ----------
    path
        Target file; its folder must exist.
    state
        Nested dicts, lists and tuples of tensors, numbers, strings, bytes, bools and None: what
        ``state_dict()`` of a module, optimizer or scheduler returns.

    Raises
    ------
    TypeError
        If the state holds anything else, such as a subclass of torch.Tensor, naming where; nothing is
        written.
    OSError
        If the folder is missing or read-only, or the disk is full; a previous file is intact.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "run.ckpt"
    ...     save_checkpoint(file, {"step": 3, "weight": torch.ones(2)})
    ...     load_checkpoint(file)
    {'step': 3, 'weight': tensor([1., 1.])}
    """
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict, got {type(state).__name__}")
    check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    header = _HEADER.pack(_MAGIC, _VERSION, hashlib.sha256(payload).digest(), len(payload))
    atomic_write_bytes(path, header + payload)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint`; tensors arrive on the CPU.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        The state as it was saved.

    Raises
    ------
    CheckpointError
        If the file is of another kind or version, truncated, changed by a single bit, or holds anything
        but plain data. Nothing in the file is executed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "notes.txt"
    ...     _ = file.write_bytes(b"not a checkpoint")
    ...     load_checkpoint(file)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ala_metric.types.CheckpointError: ...notes.txt is not an ala_metric checkpoint
    """
    content = Path(path).read_bytes()
    if not content.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not an ala_metric checkpoint")
    if len(content) < _HEADER.size:
        raise CheckpointError(
            f"{path} is truncated: {len(content)} bytes, the header alone has {_HEADER.size}"
        )
    _, version, digest, length = _HEADER.unpack_from(content)
    if version != _VERSION:
        raise CheckpointError(f"{path} has checkpoint version {version}, expected {_VERSION}")
    payload = memoryview(content)[_HEADER.size :]
    if len(payload) != length:
        raise CheckpointError(f"{path} is damaged: {len(payload)} bytes after the header, expected {length}")
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # a payload with a right checksum can still be anything
        raise CheckpointError(f"{path} holds something else than plain data: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dict, got {type(state).__name__}")
    return state


def check_plain(value: Any, where: str) -> None:
    """TypeError unless ``load_checkpoint`` could read the value back."""
    if type(value) in _DICTS:
        for key, item in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(item, f"{where}[{key!r}]")
    elif type(value) in _LISTS:
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif type(value) in _TENSORS:
        for name, item in vars(value).items():  # saved with it
            check_plain(item, f"{where}.{name}")
    elif type(value) not in _LEAVES:
        raise TypeError(
            f"{where} must be plain data (tensors, numbers, strings, lists, dicts), "
            f"got {type(value).__module__}.{type(value).__qualname__}"
        )
