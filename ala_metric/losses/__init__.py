"""Floor 3: adaptive losses that are pytorch-metric-learning losses."""

from .distance_mixture import DistanceMixtureLoss
from .focal_weighting import FocalWeightingLoss

__all__ = ["DistanceMixtureLoss", "FocalWeightingLoss"]
