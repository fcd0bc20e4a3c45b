"""Classifiers: class correlations that adapt during training (Eq. 6 and 7), and what they are compared with.

Every loss here is called as ``loss_fn(outputs, targets)`` and trained by the same loop. Those with
parameters of their own give them to the optimizer; :func:`class_scores` says what to classify by.
"""

from __future__ import annotations

from .auc_roc import PairwiseAUCLoss
from .aucpr import AUCPRLoss
from .confusion import StreamingConfusion, class_confusion
from .focal import FocalLoss
from .large_margin import LargeMarginSoftmax
from .learning_to_teach import LearningToTeach
from .loss import AdaptiveClassificationLoss
from .loss_teaching import LossTeaching
from .presets import PRESETS, Preset, preset
from .schedules import ScheduledCorrelations
from .scores import class_scores
from .self_paced import SelfPacedLoss

__all__ = [
    "PRESETS",
    "AUCPRLoss",
    "AdaptiveClassificationLoss",
    "FocalLoss",
    "LargeMarginSoftmax",
    "LearningToTeach",
    "LossTeaching",
    "PairwiseAUCLoss",
    "Preset",
    "ScheduledCorrelations",
    "SelfPacedLoss",
    "StreamingConfusion",
    "class_confusion",
    "class_scores",
    "preset",
]
