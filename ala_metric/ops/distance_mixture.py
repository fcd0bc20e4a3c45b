"""Eq. 9: each distance through a weighted mixture of five shapes, per anchor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Impl, Precision, Reduction
from . import _functions as f
from ._check import (
    check_batch,
    check_derivatives,
    check_own,
    check_phi,
    check_precision,
    check_reduction,
    compute,
)
from ._reference import distance_matrix, masked_mean, mean_of, pair_masks
from ._select import choose
from ._strips import PairStrips, differentiable_once


def distance_mixture(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: Tensor | None = None,
    impl: Impl = "auto",
    precision: Precision = "fp32",
    reduction: Reduction = "none",
) -> Tensor:
    r"""Distance-mixture loss of every anchor (Huang et al., ICML 2019, Eq. 9).

    .. math::
        l_i = \frac{1}{|P_i|} \sum_{p \in P_i} \sum_{k=1}^{5} \phi_k F^+_k(d_{ip})
            + \frac{1}{|N_i|} \sum_{n \in N_i} \sum_{k=1}^{5} \phi_{k+5} F^-_k(d_{in})

    with Euclidean distances :math:`d`; a mean over nothing is 0. The paper leaves the five shapes to an
    unpublished supplement; ours are non-negative and of order 1 on [0, 2]:

    ===  ==================================  ==================================================
    k    :math:`F^+_k` (increasing)          :math:`F^-_k` (decreasing)
    ===  ==================================  ==================================================
    1    d^2                                 0.5/d, continued by its tangent below d = 0.1
    2    d                                   2 - d
    3    sqrt(d + 0.01) - 0.1                -log(d/2), continued by its tangent below d = 0.1
    4    0.5 d^3                             2 exp(-2d)
    5    softplus(6 (d - 0.8)) / 6           softplus(6 (1.2 - d)) / 6
    ===  ==================================  ==================================================

    Parameters
    ----------
    emb
        Anchors, shape [N, D], float16, bfloat16, float32 or float64; taken as they are, not normalised.
    labels
        Class of every anchor, shape [N], any integer dtype.
    phi
        Weights, shape [10]: five for positive pairs, then five for negative pairs; any float dtype.
    ref_emb, ref_labels
        References, shapes [M, D] and [M]. Without them the batch is its own reference set, and the pair of
        a row with itself is left out.
    own
        For each anchor the index of the reference that is the anchor itself and no pair of it, -1 where
        there is none: shape [N], any integer dtype; only with ``ref_emb``. Other references of the same
        values count. On CUDA it takes ``"strips"``.
    impl
        ``"native"`` (fused; the same bits for any number of threads), ``"strips"`` (torch only),
        ``"reference"`` (N x M matrices) or ``"auto"``.
    precision
        The lowest precision of the matrix products on a GPU: ``"fp32"``, ``"tf32"`` or ``"bf16"`` (11 or 8
        bits of significand for what is multiplied; sums, functions and near pairs stay float32). The CPU's
        kernels and ``"reference"`` are more exact: float32 whatever it is; ``"strips"`` rounds on every
        device. Only for float32, float16 and bfloat16 rows. Relative L2 error of the gradient for unit
        rows, measured in emulation: at D = 128 and 512, 1.3e-4 to 2.3e-4 with TF32, 1.0e-3 to 1.9e-3 with
        bfloat16 (float32: up to 6.3e-7); see "Lower precision" in docs/cuda.md.
    reduction
        ``"none"``, or ``"mean"`` over the anchors: then the native gradient comes from the pass that made the
        loss, without a look at the weights of the anchors (for which a GPU makes a second pass).

    Returns
    -------
    Tensor
        Loss per anchor, shape [N], or their mean, unitless; float64 for float64 input, else float32.
        Differentiable once with respect to ``emb``, ``ref_emb`` and ``phi``.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, and for NaN or Inf under full checks.
    NotImplementedError
        Under ``torch.vmap``, but for one over labels with ``"strips"`` or ``"reference"``; and for second
        and forward-mode derivatives, which only ``"reference"`` has.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> emb = torch.tensor([[0.0], [1.0], [3.0]])
    >>> phi = torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 0, 0, 0])  # d^2 for positives, 2 - d for negatives
    >>> ops.distance_mixture(emb, torch.tensor([0, 0, 1]), phi)
    tensor([ 0.0000,  1.0000, -0.5000])
    """
    emb, labels, ref_emb, ref_labels = check_batch(emb, labels, ref_emb, ref_labels)
    phi = check_phi(phi, 10, emb)
    own = check_own(own, emb, ref_emb)
    lowest = check_precision(precision, emb)
    mean = check_reduction(reduction)
    which = choose("distance_mixture", impl, emb.device).impl
    if which == "native" and own is not None and not emb.is_cpu:
        which = "strips"
    check_derivatives("distance_mixture", which, emb, ref_emb, phi)
    if which == "native":
        from . import native

        return native.distance_mixture(
            emb, labels, phi, ref_emb=ref_emb, ref_labels=ref_labels, precision=lowest, own=own, mean=mean
        )
    x, y = compute(emb), None if ref_emb is None else compute(ref_emb)
    phi = phi.to(x.dtype)
    losses: Tensor
    if which == "strips":
        losses = torch.ops.ala_metric_strips.distance_mixture(x, labels, phi, y, ref_labels, lowest, own)
    else:
        distance = distance_matrix(x, x if y is None else y)
        losses = mixture_of_matrix(distance, *pair_masks(labels, ref_labels, own), phi)
    return mean_of(losses) if mean else losses


def mixture_of_matrix(distance: Tensor, positive: Tensor, negative: Tensor, phi: Tensor) -> Tensor:
    r"""Distance mixture per anchor of a given distance matrix (Huang et al., ICML 2019, Eq. 9).

    .. math:: l_i = \operatorname{mean}_{p \in P_i} \sum_k \phi_k F^+_k(d_{ip})
        + \operatorname{mean}_{n \in N_i} \sum_k \phi_{k+5} F^-_k(d_{in})

    Parameters
    ----------
    distance
        Shape [N, M], float32 or float64.
    positive, negative
        Which pairs are in :math:`P_i` and :math:`N_i`: booleans, shape [N, M].
    phi
        Weights, shape [10].

    Returns
    -------
    Tensor
        Loss per anchor, shape [N], unitless; differentiable.

    Raises
    ------
    RuntimeError
        If the shapes do not match.

    Examples
    --------
    >>> near, far = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    >>> phi = torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
    >>> mixture_of_matrix(torch.tensor([[0.5, 1.5]]), near, far, phi)
    tensor([0.7500])
    """
    pull = f.mixture_of_distance(distance, phi[:5], positive=True)
    push = f.mixture_of_distance(distance, phi[5:], positive=False)
    return masked_mean(pull, positive) + masked_mean(push, negative)


@torch.library.custom_op("ala_metric_strips::distance_mixture", mutates_args=())
def _forward(
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    precision: int = 0,
    own: Tensor | None = None,
) -> Tensor:
    strips = PairStrips(x, y, precision)
    loss = x.new_zeros(x.shape[0])
    for strip in strips:
        masks = strips.masks(strip, labels, ref_labels, own)
        loss[strip.rows] = mixture_of_matrix(strip.distance, *masks, phi)
    return loss


@torch.library.custom_op("ala_metric_strips::distance_mixture_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    want_phi: bool,
    precision: int = 0,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    strips = PairStrips(x, y, precision)
    grad_x, grad_y = strips.new_gradients()
    grad_phi = torch.zeros_like(phi)
    for strip in strips:
        d = strip.distance
        positive, negative = strips.masks(strip, labels, ref_labels, own)
        pull = mean_weights(grad[strip.rows], positive)
        push = mean_weights(grad[strip.rows], negative)
        if want_phi:
            values = [pull * v for v in f.positive_functions(d)] + [push * v for v in f.negative_functions(d)]
            grad_phi += torch.stack([v.sum() for v in values])
        slope = pull * f.weighted(f.positive_slopes(d), phi[:5])
        slope += push * f.weighted(f.negative_slopes(d), phi[5:])
        strips.pull_back(strip, slope, grad_x, grad_y)
    return grad_x, grad_x.new_empty(0) if y is None else grad_y, grad_phi


def mean_weights(grad: Tensor, mask: Tensor) -> Tensor:
    """Weight of each pair in a row mean over ``mask``, times the row's ``grad``."""
    return mask * (grad / mask.sum(1).clamp_min(1))[:, None]


@_forward.register_fake
def _forward_shape(
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    precision: int = 0,
    own: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0])


@_backward.register_fake
def _backward_shape(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    want_phi: bool,
    precision: int = 0,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y), torch.empty_like(phi)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *kept, ctx.precision, own = inputs
    ctx.save_for_backward(*kept, own)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, labels, phi, y, ref_labels, own = ctx.saved_tensors
    grad_x, grad_y, grad_phi = torch.ops.ala_metric_strips.distance_mixture_backward(
        grad, x, labels, phi, y, ref_labels, ctx.needs_input_grad[2], ctx.precision, own
    )
    return grad_x, None, grad_phi, None if y is None else grad_y, None, None, None


differentiable_once(_forward, _backward, _differentiate, _save)
