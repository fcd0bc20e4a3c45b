"""Policies on disk: one safetensors file with a JSON description and a checksum in its header."""

from __future__ import annotations

import os

import torch

from ..types import CheckpointError
from .policy import Policy
from .sealed_file import LARGEST_FILE, read_sealed, write_sealed

_KIND = "ala_metric.policy"


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
        If a weight is not finite or not float32.
    OSError
        If the file cannot be written; a previous file is then intact.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> policy = Policy(generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_policy(pathlib.Path(folder) / "policy", policy)
    ...     twin = load_policy(pathlib.Path(folder) / "policy")
    >>> all(torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters()))
    True
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, got {type(policy).__name__}")
    dtypes = {value.dtype for value in policy.state_dict().values()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"policy must have float32 weights, got {found}; policy.float() makes them so")
    description = {
        "statistics_width": policy.statistics_width,
        "identities": policy.identities,
        "beta": policy.beta,
    }
    write_sealed(path, _KIND, description, dict(policy.state_dict()))


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
    with read_sealed(path, _KIND) as (description, tensors):
        widths = description["statistics_width"], description["identities"]
        if not all(type(width) is int and 0 <= width <= LARGEST_FILE >> 12 for width in widths):
            raise CheckpointError(f"statistics_width and identities must be small integers, got {widths}")
        policy = Policy(*widths, beta=float(description["beta"]))
        expected = policy.state_dict()
        if {k: (v.shape, v.dtype) for k, v in tensors.items()} != {
            k: (v.shape, v.dtype) for k, v in expected.items()
        }:
            shapes = {name: list(value.shape) for name, value in tensors.items()}
            raise CheckpointError(f"tensors {shapes} do not fit the described policy {description}")
        policy.load_state_dict(tensors)
        return policy
