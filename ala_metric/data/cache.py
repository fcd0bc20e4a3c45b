"""Arrays that are slow to build, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._files import atomic_write_bytes

Arrays = dict[str, npt.NDArray[np.generic]]
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the cache.

    Parameters
    ----------
    cache
        A folder; None takes ``$ALA_METRIC_CACHE``, else ``$XDG_CACHE_HOME/ala_metric``, else
        ``~/.cache/ala_metric``.

    Returns
    -------
    pathlib.Path
        The folder; it need not exist.

    Examples
    --------
    >>> cache_folder("/data/cache").name
    'cache'
    """
    if cache is not None:
        return Path(cache)
    own = os.environ.get("ALA_METRIC_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "ala_metric"


def cached(path: Path, build: Callable[[], Arrays]) -> Arrays:
    """Read the arrays of ``path``, or build and keep them; a damaged file is rebuilt with a warning."""
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        warnings.warn(f"cache file {path} is unusable ({error}); building it again", stacklevel=3)
    arrays = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, _pack(arrays))
    except OSError as error:
        warnings.warn(f"cannot keep {path} ({error}); it will be built again next time", stacklevel=3)
    return arrays


def _pack(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    payload = buffer.getvalue()
    return hashlib.sha256(payload).digest() + payload


def _read(path: Path) -> Arrays:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not match")
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
