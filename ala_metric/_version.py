"""The version, read from the installed distribution (its single source is the file VERSION)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ala-metric")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
