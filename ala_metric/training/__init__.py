"""Training: one loop, children that race or fork, networks, embeddings, safe checkpoints, and loggers."""

from __future__ import annotations

from . import models
from .arm import ArmRecord, StageRecord
from .checkpoint import load_checkpoint, save_checkpoint
from .embed import embed
from .fit import fit
from .hypergradient import HypergradientSettings
from .interrupt import Interrupted
from .loggers import CSVLogger, TensorBoardLogger, columns, flatten
from .measure import MeanLogProbability, smooth_metric
from .meter import Meter
from .networks import SmallConvNet
from .paired import PairedSettings
from .powersign import PowerSign
from .race import RaceSettings
from .result import FitResult
from .surrogates import balanced_cross_entropy, nca
from .validation import Validation

__all__ = [
    "ArmRecord",
    "CSVLogger",
    "FitResult",
    "HypergradientSettings",
    "Interrupted",
    "MeanLogProbability",
    "Meter",
    "PairedSettings",
    "PowerSign",
    "RaceSettings",
    "SmallConvNet",
    "StageRecord",
    "TensorBoardLogger",
    "Validation",
    "balanced_cross_entropy",
    "columns",
    "embed",
    "fit",
    "flatten",
    "load_checkpoint",
    "models",
    "nca",
    "save_checkpoint",
    "smooth_metric",
]
