"""``python -m benchmarks study``: fixed and adaptive losses, with every control at equal compute."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
