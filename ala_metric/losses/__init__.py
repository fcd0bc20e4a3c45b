"""Floor 3: adaptive losses that are pytorch-metric-learning losses."""

from .adapt_pml import AdaptPML
from .catalogue import available
from .cross_batch_memory import CrossBatchMemory
from .distance_mixture import DistanceMixtureLoss
from .distributed import DistributedLoss
from .focal_weighting import FocalWeightingLoss
from .self_supervised import SelfSupervisedLoss

__all__ = [
    "AdaptPML",
    "CrossBatchMemory",
    "DistanceMixtureLoss",
    "DistributedLoss",
    "FocalWeightingLoss",
    "SelfSupervisedLoss",
    "available",
]
