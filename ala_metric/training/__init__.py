"""Training: one loop, a small network, embeddings of a data set, safe checkpoints, and loggers."""

from __future__ import annotations

from .checkpoint import load_checkpoint, save_checkpoint
from .embed import embed
from .fit import FitResult, fit
from .interrupt import Interrupted
from .loggers import CSVLogger, TensorBoardLogger, columns, flatten
from .networks import SmallConvNet

__all__ = [
    "CSVLogger",
    "FitResult",
    "Interrupted",
    "SmallConvNet",
    "TensorBoardLogger",
    "columns",
    "embed",
    "fit",
    "flatten",
    "load_checkpoint",
    "save_checkpoint",
]
