"""Floor 1: writing a file so that a crash at any moment leaves either the old or the new content."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the content of a file in one step.

    The bytes go to a temporary file beside the target, are flushed to the disk, and take the target's
    name by ``os.replace``. Whoever reads ``path`` sees the whole old file or the whole new one. An existing
    target keeps its permission bits; a new one gets those of the umask. A symbolic link is followed.

    Parameters
    ----------
    path
        Target; its folder must exist.
    data
        The new content.

    Raises
    ------
    OSError
        Naming ``path``: if the folder is missing or not writable, or the disk is full; the previous file is
        then intact and the temporary file removed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = pathlib.Path(folder) / "state.bin"
    ...     atomic_write_bytes(target, b"new")
    ...     target.read_bytes(), len(list(target.parent.iterdir()))
    (b'new', 1)
    """
    try:
        _write(Path(os.path.realpath(path)), data)
    except OSError as error:  # it names the temporary file, which nobody asked for
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _write(target: Path, data: bytes) -> None:
    """Write a temporary file beside the target, then rename it."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _mode_for(target))
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _mode_for(target: Path) -> int:
    """Permission bits of the existing file, else those the umask gives a new one."""
    with contextlib.suppress(FileNotFoundError):
        return target.stat().st_mode & 0o7777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
