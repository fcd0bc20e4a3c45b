"""Adaptive loss for classifiers: class correlations that move during training (Eq. 6 and 7)."""

from __future__ import annotations

from .confusion import StreamingConfusion, class_confusion
from .loss import AdaptiveClassificationLoss

__all__ = ["AdaptiveClassificationLoss", "StreamingConfusion", "class_confusion"]
