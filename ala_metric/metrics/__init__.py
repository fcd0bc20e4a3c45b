"""Metrics to be improved: callables ``(outputs, targets) -> float`` with a name and a direction."""

from __future__ import annotations

from .accuracy_calculator import accuracy_calculator
from .bootstrap import PairedInterval, paired_bootstrap
from .classification import AUCPR, BalancedError, ClassificationError
from .retrieval import RecallAtK, RetrievalResult, retrieval
from .verification import VerificationResult, verification
from .verification_accuracy import VerificationAccuracy

__all__ = [
    "AUCPR",
    "BalancedError",
    "ClassificationError",
    "PairedInterval",
    "RecallAtK",
    "RetrievalResult",
    "VerificationAccuracy",
    "VerificationResult",
    "accuracy_calculator",
    "paired_bootstrap",
    "retrieval",
    "verification",
]
