"""Floor 1: the few pytorch-metric-learning names this package depends on, in one place.

A future major version of pytorch-metric-learning should need an edit of this file only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from pytorch_metric_learning import losses as loss_classes
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import (
    BaseMetricLossFunction,
    CrossBatchMemory,
    LargeMarginSoftmaxLoss,
    SelfSupervisedLoss,
)
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils

__all__ = [
    "BaseDistance",
    "BaseMetricLossFunction",
    "CosineSimilarity",
    "CrossBatchMemory",
    "DoNothingReducer",
    "LargeMarginSoftmaxLoss",
    "LpDistance",
    "MPerClassSampler",
    "MeanReducer",
    "MultipleReducers",
    "SelfSupervisedLoss",
    "TripletMarginMiner",
    "common_functions",
    "loss_and_miner_utils",
    "loss_classes",
    "numpy_random",
]


@contextmanager
def numpy_random(generator: np.random.RandomState) -> Iterator[None]:
    """Let pytorch-metric-learning draw from ``generator`` instead of NumPy's global stream."""
    previous = common_functions.NUMPY_RANDOM
    common_functions.NUMPY_RANDOM = generator
    try:
        yield
    finally:
        common_functions.NUMPY_RANDOM = previous
