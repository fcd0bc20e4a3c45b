"""Pairwise surrogate of the area under the ROC curve."""

from __future__ import annotations

import torch
from torch import nn

from ._batch import checked


class PairwiseAUCLoss(nn.Module):
    """Hinge over all pairs of a positive and a negative sample, one class against the others.

    ``loss = mean_c mean_{p: y_p = c, n: y_n != c} max(0, 1 - (f_c(x_p) - f_c(x_n)))``: the area under the ROC
    curve of class c counts the pairs in the right order, and the hinge bounds the others from above
    (Rakotomamonjy 2004, Eq. 4). Classes without positives or negatives in the batch are left out.

    Raises
    ------
    ValueError
        If a shape is wrong or a target out of range.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    >>> PairwiseAUCLoss()(logits, torch.tensor([0, 1])).item()
    0.25
    """

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of logits ``[B, C]`` and targets ``[B]``; makes a ``[B, B]`` table."""
        logits, targets = checked(logits, targets)
        if len(targets) == 0:
            return logits.sum() * 0.0
        of_target = logits[:, targets].T  # [p, n]: what sample n scores for the class of sample p
        negative = targets[:, None] != targets
        hinge = torch.relu(1.0 - (of_target.diagonal()[:, None] - of_target)) * negative
        positives = torch.bincount(targets, minlength=logits.shape[1])[targets]
        pairs = positives * negative.sum(1)
        weight = torch.where(pairs > 0, pairs.clamp_min(1).to(logits.dtype).reciprocal(), 0)
        classes = targets[pairs > 0].unique().numel()
        return (hinge.sum(1) * weight).sum() / max(classes, 1)
