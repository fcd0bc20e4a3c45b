"""How a loss reads the ``distance`` of pytorch-metric-learning: Euclidean rows, or a given matrix."""

from __future__ import annotations

import math
from typing import Any

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
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or type(x) not in (Tensor, torch.nn.Parameter)
    ):
        return _unit_rows(x)[0]
    rows: Tensor = _UnitRows.apply(x)
    return rows


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and what they were divided by (inf for zero rows); differentiable."""
    largest = x.detach().abs().amax(1, keepdim=True)
    largest = largest.masked_fill(largest == 0, torch.inf)
    scaled = x / largest  # zero rows: zero, and so is their gradient
    root = (scaled * scaled).sum(1, keepdim=True).clamp_min(0.5).sqrt()  # at least 1, but for zero rows
    return scaled / root, largest * root


def _safe_norm(x: Tensor) -> Tensor | None:
    """Norms without scaling, where no square is lost; on devices a look at them would wait."""
    if not x.is_cpu:
        return None
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    low, high = torch.aminmax(norm)
    return norm if low.item() > 1e-15 and high.item() < math.inf else None


class _UnitRows(torch.autograd.Function):
    """Unit rows with a short gradient: that of :func:`_unit_rows` goes back through every step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dense = x.contiguous()  # the same bits for any memory layout
        norm = _safe_norm(dense)
        rows, norm = _unit_rows(dense) if norm is None else (dense / norm, norm)
        ctx.save_for_backward(x, rows, norm)
        ctx.save_for_forward(x, rows, norm)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, rows, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives: how the norm depends on x counts too
            (result,) = torch.autograd.grad(_unit_rows(x)[0], x, grad, create_graph=True)
            return result
        return _across(grad, rows, norm)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        _, rows, norm = ctx.saved_tensors
        return _across(tangent, rows, norm)


def _across(direction: Tensor, rows: Tensor, norm: Tensor) -> Tensor:
    """The part of ``direction`` across the unit rows, over the norm."""
    return torch.addcmul(direction, rows, (direction * rows).sum(1, keepdim=True), value=-1).div_(norm)


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
