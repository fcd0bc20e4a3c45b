"""The equations as they stand, on an N x M matrix: the oracle of the other implementations."""

from __future__ import annotations

import torch
from torch import Tensor


def distance_matrix(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [N, M] by direct differences; the direction (x - y) / 0 is taken as 0."""
    difference = x[:, None, :] - y[None, :, :]
    square = (difference * difference).sum(2)
    square = square.masked_fill(square.isinf(), torch.nan)  # an overflow must not pass for a far pair
    apart = square != 0  # True for NaN, which must come through
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)


def pair_masks(labels: Tensor, ref_labels: Tensor | None, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positive and negative pairs [N, M] as booleans, a row's pair with itself in neither.

    ``own`` is the reference that is the row itself, where there is one, else -1.
    """
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)[None, :]
    if ref_labels is None:
        itself = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
        return same & ~itself, ~same
    if own is not None:
        other = own[:, None] != torch.arange(ref_labels.shape[0], device=own.device)
        return same & other, ~same & other
    return same, ~same


def mean_of(losses: Tensor) -> Tensor:
    """Mean over the anchors; the mean of nothing is 0."""
    return losses.mean() if losses.shape[0] > 0 else losses.sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Row means over ``mask``; the mean of nothing is 0."""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp_min(1)


def masked_log1p_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum exp(values))`` over ``mask`` per row; exactly 0 where the mask is empty."""
    if values.shape[1] == 0:
        return values.sum(1)
    terms, top = _shifted_exp(values, mask)
    total = terms.sum(1)
    # log1p where the 1 dominates: log(1 + s) would round a small s away
    return torch.where(top == 0, torch.log1p(total), top + torch.log(torch.exp(-top) + total))


def masked_shares(values: Tensor, mask: Tensor) -> Tensor:
    """``exp(values) / (1 + sum exp(values))`` over ``mask`` per row, 0 elsewhere.

    Not from the logarithm of the sum: its rounding would be that of all shares of a row.
    """
    if values.shape[1] == 0:
        return values
    terms, top = _shifted_exp(values, mask)
    return terms / (torch.exp(-top) + terms.sum(1))[:, None]


def _shifted_exp(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(values - top)`` over ``mask``, else 0, and ``top``: the largest value of a row, at least 0."""
    values = values.masked_fill(~mask, -torch.inf)
    top = values.detach().amax(1).clamp_min(0)
    return torch.exp(values - top[:, None]), top
