"""Floor 3: adaptive losses that are pytorch-metric-learning losses."""

from .adapt_pml import AdaptPML
from .catalogue import available
from .distance_mixture import DistanceMixtureLoss
from .focal_weighting import FocalWeightingLoss
from .self_supervised import SelfSupervisedLoss

__all__ = ["AdaptPML", "DistanceMixtureLoss", "FocalWeightingLoss", "SelfSupervisedLoss", "available"]
