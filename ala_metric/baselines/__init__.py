"""Control baselines on the interface of the controller."""

from __future__ import annotations

from .schemes import Fixed, RandomStatic, RandomWalk, Uniform

__all__ = ["Fixed", "RandomStatic", "RandomWalk", "Uniform"]
