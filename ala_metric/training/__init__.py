"""Training: one loop, a small network, embeddings of a data set, and safe checkpoints."""

from __future__ import annotations

from .checkpoint import load_checkpoint, save_checkpoint
from .embed import embed
from .fit import FitResult, fit
from .interrupt import Interrupted
from .networks import SmallConvNet

__all__ = [
    "FitResult",
    "Interrupted",
    "SmallConvNet",
    "embed",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
