"""Focal loss for classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ._batch import checked, mean


class FocalLoss(nn.Module):
    """Cross-entropy that fades out for samples the model is sure of.

    ``loss = -(1 - p)^gamma log p`` with p the probability of the target (Lin et al. 2017, Eq. 4, without
    the class weight alpha). At ``gamma = 0`` it is cross-entropy.

    Parameters
    ----------
    gamma
        At least 0.

    Raises
    ------
    ValueError
        If ``gamma`` is negative or not finite; if a shape is wrong or a target out of range.

    Examples
    --------
    >>> logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> bool(torch.isclose(FocalLoss(0.0)(logits, targets), F.cross_entropy(logits, targets)))
    True
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if not 0.0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
        self.gamma = float(gamma)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of logits ``[B, C]`` and targets ``[B]``."""
        logits, targets = checked(logits, targets)
        nll = F.cross_entropy(logits, targets, reduction="none")
        return mean((-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny) ** self.gamma * nll)
