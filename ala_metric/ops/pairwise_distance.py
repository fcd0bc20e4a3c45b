"""Euclidean distance matrices that survive near-duplicates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Impl, Precision
from ._check import check_derivatives, check_embeddings, check_precision, check_references, compute
from ._reference import distance_matrix
from ._select import choose
from ._strips import PairStrips, differentiable_once


def pairwise_distance(
    x: Tensor, y: Tensor | None = None, *, impl: Impl = "auto", precision: Precision = "fp32"
) -> Tensor:
    r"""Euclidean distances of all rows of ``x`` to all rows of ``y`` (or of ``x``).

    .. math:: d_{ij} = \lVert x_i - y_j \rVert_2, \qquad
        \partial d_{ij} / \partial x_i = (x_i - y_j) / d_{ij} \text{ (0 where } d_{ij} = 0)

    Near pairs are computed from the difference itself, so that they keep their digits where
    :math:`|x|^2 + |y|^2 - 2xy` would lose them.

    Parameters
    ----------
    x
        Shape [N, D], float16, bfloat16, float32 or float64.
    y
        Shape [M, D], same dtype and device; ``None`` means ``x``, and then the diagonal is exactly 0.
    impl
        ``"native"`` (the same bits for any number of threads), ``"strips"``, ``"reference"`` (an N x M x D
        temporary) or ``"auto"``.
    precision
        The lowest precision of the matrix products on a GPU: ``"fp32"``, ``"tf32"`` or ``"bf16"`` (11 or 8
        bits of significand for what is multiplied; sums, functions and near pairs stay float32). The CPU's
        kernels and ``"reference"`` are more exact: float32 whatever it is; ``"strips"`` rounds on every
        device. Only for float32, float16 and bfloat16 rows. Relative L2 error of the distances of unit
        rows, measured with "strips": at D = 128 and 512, 2.6e-5 and 1.3e-5 with TF32 (largest of one
        distance 2.0e-4 and 8.9e-5), 2.1e-4 and 1.0e-4 with bfloat16 (1.3e-3 and 6.3e-4).

    Returns
    -------
    Tensor
        Shape [N, M], in units of ``x``; float64 for float64 input, else float32. Differentiable once.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, and for NaN or Inf under full checks.
    NotImplementedError
        Under ``torch.vmap``, and for second and forward-mode derivatives, which only ``"reference"`` has.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> ops.pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]])
    """
    x = check_embeddings(x, "x")
    if y is not None:
        y = check_references(x, y, "x", "y")
    lowest = check_precision(precision, x)
    which = choose("pairwise_distance", impl, x.device).impl
    check_derivatives("pairwise_distance", which, x, y)
    if which == "native":
        from . import native

        return native.pairwise_distance(x, y, precision=lowest)
    x, y = compute(x), None if y is None else compute(y)
    if which == "strips":
        return torch.ops.ala_metric_strips.pairwise_distance(x, y, lowest)
    return distance_matrix(x, x if y is None else y)


@torch.library.custom_op("ala_metric_strips::pairwise_distance", mutates_args=())
def _forward(x: Tensor, y: Tensor | None, precision: int = 0) -> Tensor:
    strips = PairStrips(x, y, precision)
    distance = x.new_empty(x.shape[0], strips.y.shape[0])
    for strip in strips:
        distance[strip.rows] = strip.distance
    return distance


@torch.library.custom_op("ala_metric_strips::pairwise_distance_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, y: Tensor | None, precision: int = 0) -> tuple[Tensor, Tensor]:
    strips = PairStrips(x, y, precision)
    grad_x, grad_y = strips.new_gradients()
    for strip in strips:
        strips.pull_back(strip, grad[strip.rows].clone(), grad_x, grad_y)
    return grad_x, grad_x.new_empty(0) if y is None else grad_y


@_forward.register_fake
def _forward_shape(x: Tensor, y: Tensor | None, precision: int = 0) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[0] if y is None else y.shape[0])


@_backward.register_fake
def _backward_shape(grad: Tensor, x: Tensor, y: Tensor | None, precision: int = 0) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rows, ctx.precision = inputs
    ctx.save_for_backward(*rows)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    grad_x, grad_y = torch.ops.ala_metric_strips.pairwise_distance_backward(grad, x, y, ctx.precision)
    return grad_x, None if y is None else grad_y, None


differentiable_once(_forward, _backward, _differentiate, _save)
