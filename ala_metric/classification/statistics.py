"""What the controller sees of a classifier: z-scored confusions, one row per action."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .confusion import CACHED, StreamingConfusion
from .correlations import pair_places

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
    stream = _confusions(logits, targets)
    confusion, present = stream.compute().flatten(), stream.count > 0
    upper, lower, diagonal = pair_places(stream.num_classes, logits.device)
    forth, back = confusion.take(upper), confusion.take(lower)
    known = (present[:, None] & present).flatten().take(upper)
    distance, gap = (forth + back).div_(2), (forth - back).abs_().div_(2)
    between = known.clone()
    between[diagonal] = False
    scores = torch.empty(len(upper), 2, device=logits.device)
    for column, feature in enumerate((distance, gap)):
        scores[:, column] = _z_score(feature, between)
        scores[diagonal, column] = _z_score(feature[diagonal], present).float()
    if top is None:
        return scores, torch.arange(len(scores), device=scores.device)
    order = _smallest(distance.masked_fill_(~between, torch.finfo(torch.float64).max), diagonal, top)
    return scores[order], order


def _confusions(logits: torch.Tensor, targets: torch.Tensor) -> StreamingConfusion:
    """Eq. 7 in float64, a few rows at a time."""
    stream = StreamingConfusion(logits.shape[1], logits.device)
    size = max(1, CACHED // logits.shape[1])
    for rows, labels in zip(logits.split(size), targets.split(size)):
        stream.add(rows.double().log_softmax(1).clamp_min_(-_LARGEST), labels)
    return stream


def _smallest(distance: torch.Tensor, diagonal: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the smallest distances off the diagonal, in their order; of equals the earlier."""
    distance[diagonal] = torch.inf
    edge = distance.topk(count, largest=False).values[-1]
    near = (distance <= edge).nonzero()[:, 0]
    return near[distance[near].argsort(stable=True)[:count]]


def _z_score(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Z-scores over the chosen values; 0 for the others, and for all where the chosen are constant."""
    keep = chosen.to(values.dtype)
    count = keep.sum().clamp_min(1)
    mean = torch.dot(values, keep) / count
    centred = (values - mean).mul_(keep)
    std = torch.linalg.vector_norm(centred) / count.sqrt()
    return centred.mul_(torch.where(std > 1e-12 * mean.abs(), 1 / std, 0))  # below that it is rounding
