"""Policies on disk: one safetensors file with a JSON description and a checksum in its header."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from .._files import atomic_write_bytes
from ..types import CheckpointError
from .policy import Policy

FORMAT = 1
LARGEST_FILE = 1 << 28
LARGEST_HEADER = 1 << 16
_ENTRY = "ala_metric.policy"  # one entry: their order in a header is not fixed
_NO_CHECKSUM = "0" * 64


def save_policy(path: str | os.PathLike[str], policy: Policy) -> None:
    """Write a policy to one file, atomically.

    The file is in the safetensors format; its header carries a JSON description of the policy and a SHA-256
    checksum of every byte.

    Parameters
    ----------
    path
        Target; replaced if it exists.
    policy
        What to save, for instance ``loss_fn.policy``.

    Raises
    ------
    TypeError
        If it is no :class:`Policy`.
    ValueError
        If a weight is not finite.
    OSError
        If the file cannot be written; a previous file is then intact.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> policy = Policy(generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_policy(pathlib.Path(folder) / "policy", policy)
    ...     twin = load_policy(pathlib.Path(folder) / "policy")
    >>> all(torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters()))
    True
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, got {type(policy).__name__}")
    tensors = {name: value.detach().contiguous() for name, value in policy.state_dict().items()}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError("policy has weights that are not finite")
    description = {
        "format": FORMAT,
        "statistics_width": policy.statistics_width,
        "identities": policy.identities,
        "beta": policy.beta,
        "sha256": _NO_CHECKSUM,
    }
    data = save_tensors(tensors, metadata={_ENTRY: json.dumps(description)})
    atomic_write_bytes(path, data.replace(_NO_CHECKSUM.encode(), _checksum(data).encode(), 1))


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy that :func:`save_policy` wrote; nothing in the file is executed.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Policy
        With the same weights, bit for bit.

    Raises
    ------
    CheckpointError
        If the file is damaged, truncated, oversized, or no policy.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "policy"
    ...     save_policy(path, Policy(beta=0.2))
    ...     load_policy(path).beta
    0.2
    """
    with Path(path).open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    try:
        return _read(data)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not a policy file ({error})") from error


def _read(data: bytes) -> Policy:
    """Policy in the bytes of a file, checked from the outside in."""
    size = int.from_bytes(data[:8], "little")
    if len(data) > LARGEST_FILE or size > LARGEST_HEADER or 8 + size > len(data):
        raise CheckpointError(f"a header of {size} bytes does not fit a policy file of {len(data)} bytes")
    description: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_ENTRY])
    if description["format"] != FORMAT:
        raise CheckpointError(f"format must be {FORMAT!r}, got {description['format']!r}")
    stated = description["sha256"].encode()
    if len(stated) != 64 or _checksum(data.replace(stated, _NO_CHECKSUM.encode(), 1)).encode() != stated:
        raise CheckpointError("the checksum does not match: the file is damaged")
    widths = description["statistics_width"], description["identities"]
    if not all(type(width) is int and 0 <= width <= LARGEST_FILE >> 12 for width in widths):
        raise CheckpointError(f"statistics_width and identities must be small integers, got {widths}")
    policy = Policy(*widths, beta=float(description["beta"]))
    tensors = load_tensors(data)
    expected = policy.state_dict()
    if {k: (v.shape, v.dtype) for k, v in tensors.items()} != {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }:
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        raise CheckpointError(f"tensors {shapes} do not fit the described policy {description}")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise CheckpointError("a weight is not finite")
    policy.load_state_dict(tensors)
    return policy


def _checksum(data: bytes) -> str:
    """SHA-256 of a file whose checksum field still holds zeros."""
    return hashlib.sha256(data).hexdigest()
