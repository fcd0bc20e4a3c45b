"""What the controller sees of a classifier: z-scored confusions, one row per action."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .confusion import class_confusion
from .correlations import class_pairs

_LARGEST = 1e30  # stands for -log 0: its square is still finite in float64


def diagonal_statistics(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """``[C, 2]``: the z-scored cross-entropy of each class, and 0."""
    count = torch.bincount(targets, minlength=logits.shape[1])
    losses = F.cross_entropy(logits.double(), targets, reduction="none").clamp_max(_LARGEST)
    means = losses.new_zeros(len(count)).index_add_(0, targets, losses) / count.clamp_min(1)
    scores = _z_score(means, count > 0)
    return torch.stack((scores, torch.zeros_like(scores)), 1).float()


def pair_statistics(
    logits: torch.Tensor, targets: torch.Tensor, top: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[C (C + 1) / 2, 2]``: mean and half gap of the two confusions of every unordered pair.

    With ``top`` only the rows of so many pairs of different classes, the most confused first; the second
    result says which they are. Ties go to the earlier pair, and unknown pairs come last.
    """
    num_classes = logits.shape[1]
    log_probs = logits.double().log_softmax(1).clamp_min(-_LARGEST)
    confusion = class_confusion(log_probs, targets, num_classes)
    present = torch.bincount(targets, minlength=num_classes) > 0
    rows, columns = class_pairs(num_classes, logits.device)
    known, on = present[rows] & present[columns], rows == columns
    forth, back = confusion[rows, columns], confusion[columns, rows]
    features = (forth + back) / 2, (forth - back).abs() / 2
    scores = torch.stack([_z_score(f, known & on) + _z_score(f, known & ~on) for f in features], 1).float()
    if top is None:
        return scores, torch.arange(len(scores), device=scores.device)
    distance = features[0].masked_fill(~known, torch.finfo(torch.float64).max)
    order = distance.masked_fill(on, torch.inf).argsort(stable=True)[:top]
    return scores[order], order


def _z_score(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Z-scores over the chosen values; 0 for the others, and for all where the chosen are constant."""
    keep = chosen.to(values.dtype)
    count = keep.sum().clamp_min(1)
    mean = (values * keep).sum() / count
    centred = (values - mean).mul_(keep)
    std = torch.linalg.vector_norm(centred) / count.sqrt()
    return centred.mul_(torch.where(std > 1e-12 * mean.abs(), 1 / std, 0))  # below that it is rounding
