"""Classification: the methods of the paper's Tables 1, 2, 4 and 5, paired by seed."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
