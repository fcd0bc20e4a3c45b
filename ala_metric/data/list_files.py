"""Reading what a stranger wrote: list files, and paths that must stay below the user's folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath


def checked_root(name: str, root: str | os.PathLike[str] | None) -> Path:
    """The folder of a data set that needs one."""
    if root is None:
        raise ValueError(f"{name} needs the folder with its files: root must be a path, got None")
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root of {name} is not a folder: {folder}")
    return folder


def read_rows(path: Path, columns: Sequence[int]) -> list[tuple[int, list[str]]]:
    """Lines of a list file with their numbers, split at white space; blank ones are skipped.

    Raises
    ------
    ValueError
        Naming file and line, on NUL, bytes that are no UTF-8, or a count that is not one of ``columns``.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {bad_line}: expected UTF-8 text ({error.reason})") from None
    rows = []
    for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1):
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: holds a NUL character")
        fields = line.split()
        if fields and len(fields) not in columns:
            expected = " or ".join(map(str, columns))
            raise ValueError(f"{path}, line {number}: expected {expected} columns, got {len(fields)}")
        if fields:
            rows.append((number, fields))
    return rows


def whole_number(field: str, where: str, what: str) -> int:
    """A field that must be a positive decimal number."""
    if not re.fullmatch("[0-9]{1,18}", field) or int(field) < 1:
        raise ValueError(f"{where}: {what} must be a positive whole number, got {field!r}")
    return int(field)


class Inside:
    """Checks that paths name regular files which lie below one root, also after links are followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._folders: set[str] = set()

    def check(self, path: str, where: str) -> str:
        """``path`` without detours; ValueError beginning with ``where`` if it leads out or is no file."""
        parts = PurePosixPath(path).parts
        if not parts or "\0" in path or os.path.isabs(path) or ".." in parts:
            raise ValueError(f"{where}: {path!r} must be a path below {self.root}")
        full = os.path.join(self.root, path)
        try:
            found = os.lstat(full)
            if stat.S_ISLNK(found.st_mode):
                self._refuse_outside(os.path.realpath(full), path, where)
                found = os.stat(full)
        except OSError as error:
            raise ValueError(f"{where}: no image {full} ({error.strerror})") from None
        parent = os.path.dirname(full)
        if parent not in self._folders:
            self._refuse_outside(os.path.realpath(parent), path, where)
            self._folders.add(parent)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{where}: {full} is not a file")
        return "/".join(parts)

    def _refuse_outside(self, real: str, path: str, where: str) -> None:
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise ValueError(f"{where}: {path!r} is a link that leaves {self.root}")
