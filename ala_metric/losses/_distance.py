"""How a loss reads the ``distance`` of pytorch-metric-learning: Euclidean rows, or a given matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .._pml import BaseDistance, CosineSimilarity, LpDistance
from ..types import Impl, Precision


def normalize(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm, in float32 at least.

    A zero row stays zero and gets a zero gradient, where ``torch.nn.functional.normalize`` divides the
    gradient by its epsilon of 1e-12; rows whose squares overflow or vanish are scaled first.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.numel() == 0:
        return x
    largest = x.detach().abs().amax(1, keepdim=True)
    scaled = x / largest.masked_fill(largest == 0, torch.inf)  # zero rows: zero, and so is their gradient
    square = (scaled * scaled).sum(1, keepdim=True)  # at least 1, but for zero rows
    return scaled / square.clamp_min(0.5).sqrt()


def is_euclidean(distance: BaseDistance) -> bool:
    """Whether the fused ops compute this distance.

    Cosine similarity between normalised rows orders pairs like their Euclidean distance, and is read as it.
    """
    if type(distance) is LpDistance:
        return distance.p == 2 and distance.power == 1
    return type(distance) is CosineSimilarity


def rows(distance: BaseDistance, x: Tensor) -> Tensor:
    """The rows between which a Euclidean ``distance`` is measured."""
    return normalize(x) if distance.normalize_embeddings else x


def check_distance(distance: BaseDistance) -> None:
    """Refuse similarities that are no distance."""
    if distance.is_inverted and not is_euclidean(distance):
        raise ValueError(
            f"distance must grow with dissimilarity (or be CosineSimilarity), got {type(distance).__name__}"
        )


def mean_distances(
    rows: Tensor, targets: Tensor, impl: Impl = "auto", precision: Precision = "fp32"
) -> Tensor:
    """Mean Euclidean distance of the positive and of the negative pairs, shape [2]; 0 without such pairs."""
    means = ops.distance_statistics(rows, targets, impl=impl, precision=precision)
    no_negatives = means[5] == 0  # 0.5/d is positive wherever there is a pair
    return torch.stack([means[1], torch.where(no_negatives, 0, 2 - means[6])])  # F+_2 = d, F-_2 = 2 - d
