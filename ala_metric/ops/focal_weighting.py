"""Eq. 10: soft hardest-pair weighting of distances, per anchor."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..types import Impl, Precision, Reduction
from ._check import check_batch, check_derivatives, check_phi, check_precision, check_reduction, compute
from ._reference import distance_matrix, masked_log1p_sum_exp, masked_shares, mean_of, pair_masks
from ._select import choose
from ._strips import PairStrips, differentiable_once


def focal_weighting(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    *,
    offset: float = 1.0,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    impl: Impl = "auto",
    precision: Precision = "fp32",
    reduction: Reduction = "none",
) -> Tensor:
    r"""Focal-weighting loss of every anchor (Huang et al., ICML 2019, Eq. 10).

    .. math::
        l_i = \frac{1}{\phi_1} \log\Big[1 + \sum_{p \in P_i} e^{\phi_1 (d_{ip} - \alpha)}\Big]
            + \frac{1}{\phi_2} \log\Big[1 + \sum_{n \in N_i} e^{-\phi_2 (d_{in} - \alpha)}\Big]

    with Euclidean distances :math:`d`, computed as log-sum-exp; a term without pairs is exactly 0.

    Parameters
    ----------
    emb
        Anchors, shape [N, D], float16, bfloat16, float32 or float64; taken as they are, not normalised.
    labels
        Class of every anchor, shape [N], any integer dtype.
    phi
        The two sharpnesses, shape [2], > 0, in 1 / distance; any float dtype.
    offset
        The distance offset :math:`\alpha`, a finite number.
    ref_emb, ref_labels
        References, shapes [M, D] and [M]. Without them the batch is its own reference set, and the pair of
        a row with itself is left out.
    impl
        ``"native"`` (fused; the same bits for any number of threads), ``"strips"`` (torch only),
        ``"reference"`` (N x M matrices) or ``"auto"``.
    precision
        The lowest precision of the matrix products on a GPU: ``"fp32"``, ``"tf32"`` or ``"bf16"`` (11 or 8
        bits of significand for what is multiplied; sums, functions and near pairs stay float32). The CPU's
        kernels and ``"reference"`` are more exact: float32 whatever it is; ``"strips"`` rounds on every
        device. Only for float32, float16 and bfloat16 rows. Relative L2 error of the gradient for unit rows
        and phi = (2, 8), measured in emulation: with TF32 2.0e-4 to 4.6e-4 at D = 128 and 1.7e-4 to 3.7e-4
        at 512, with bfloat16 1.6e-3 to 3.7e-3 and 1.4e-3 to 2.9e-3 (float32: up to 4.8e-7); see "Lower
        precision" in docs/cuda.md.
    reduction
        ``"none"``, or ``"mean"`` over the anchors: then the native gradient comes from the pass that made the
        loss, without a look at the weights of the anchors (for which a GPU makes a second pass).

    Returns
    -------
    Tensor
        Loss per anchor, shape [N], or their mean, in units of distance; float64 for float64 input, else
        float32. Differentiable once with respect to ``emb``, ``ref_emb`` and ``phi``.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, an offset that is not finite, and NaN or Inf under
        full checks. For phi <= 0 under full checks and on CPU; the loss is NaN for them elsewhere, and in
        compiled code.
    NotImplementedError
        Under ``torch.vmap``, but for one over labels with ``"strips"`` or ``"reference"``; and for second
        and forward-mode derivatives, which only ``"reference"`` has.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> emb = torch.tensor([[0.0], [1.0], [3.0]])
    >>> ops.focal_weighting(emb, torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0]))
    tensor([0.8201, 1.0064, 0.4076])
    """
    emb, labels, ref_emb, ref_labels = check_batch(emb, labels, ref_emb, ref_labels)
    phi = check_phi(phi, 2, emb, positive=True)
    if not isinstance(offset, Real):
        raise TypeError(f"offset must be a finite number, got {offset!r}")
    if not -math.inf < offset < math.inf:  # symbolic while torch.compile traces
        raise ValueError(f"offset must be finite, got {offset}")
    lowest = check_precision(precision, emb)
    mean = check_reduction(reduction)
    which = choose("focal_weighting", impl, emb.device).impl
    check_derivatives("focal_weighting", which, emb, ref_emb, phi)
    if which == "native":
        from . import native

        return native.focal_weighting(
            emb,
            labels,
            phi,
            offset=offset,
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            precision=lowest,
            mean=mean,
        )
    x, y = compute(emb), None if ref_emb is None else compute(ref_emb)
    phi = phi.to(x.dtype)
    phi = torch.where(phi > 0, phi, torch.nan)  # where its values were not looked at
    losses: Tensor
    if which == "strips":
        losses = torch.ops.ala_metric_strips.focal_weighting(x, labels, phi, offset, y, ref_labels, lowest)[0]
    else:
        distance = distance_matrix(x, x if y is None else y)
        losses = focal_of_matrix(distance, *pair_masks(labels, ref_labels), phi, offset)
    return mean_of(losses) if mean else losses


def focal_of_matrix(
    distance: Tensor, positive: Tensor, negative: Tensor, phi: Tensor, offset: float
) -> Tensor:
    r"""Focal weighting per anchor of a given distance matrix (Huang et al., ICML 2019, Eq. 10).

    .. math:: l_i = \tfrac{1}{\phi_1} \log[1 + \sum_{p \in P_i} e^{\phi_1 (d_{ip} - \alpha)}]
        + \tfrac{1}{\phi_2} \log[1 + \sum_{n \in N_i} e^{-\phi_2 (d_{in} - \alpha)}]

    Parameters
    ----------
    distance
        Shape [N, M], float32 or float64.
    positive, negative
        Which pairs are in :math:`P_i` and :math:`N_i`: booleans, shape [N, M].
    phi
        The two sharpnesses, shape [2], > 0.
    offset
        :math:`\alpha`, in units of distance.

    Returns
    -------
    Tensor
        Loss per anchor, shape [N], in units of distance; differentiable.

    Raises
    ------
    RuntimeError
        If the shapes do not match.

    Examples
    --------
    >>> near, far = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    >>> focal_of_matrix(torch.tensor([[1.0, 1.0]]), near, far, torch.tensor([1.0, 1.0]), 1.0)
    tensor([1.3863])
    """
    centred = distance - offset
    pull = masked_log1p_sum_exp(phi[0] * centred, positive)
    push = masked_log1p_sum_exp(-phi[1] * centred, negative)
    return pull / phi[0] + push / phi[1]


@torch.library.custom_op("ala_metric_strips::focal_weighting", mutates_args=())
def _forward(
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    y: Tensor | None,
    ref_labels: Tensor | None,
    precision: int = 0,
) -> tuple[Tensor, Tensor]:
    strips = PairStrips(x, y, precision)
    log_sums = x.new_zeros(2, x.shape[0])  # log(1 + sum exp) of the positive and the negative pairs
    for strip in strips:
        centred = strip.distance - offset
        positive, negative = strips.masks(strip, labels, ref_labels)
        log_sums[0, strip.rows] = masked_log1p_sum_exp(phi[0] * centred, positive)
        log_sums[1, strip.rows] = masked_log1p_sum_exp(-phi[1] * centred, negative)
    return (log_sums / phi[:, None]).sum(0), log_sums


@torch.library.custom_op("ala_metric_strips::focal_weighting_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    y: Tensor | None,
    ref_labels: Tensor | None,
    log_sums: Tensor,
    precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    strips = PairStrips(x, y, precision)
    grad_x, grad_y = strips.new_gradients()
    # d/dphi of log(1 + sum exp(phi c)) / phi: the softmax mean of c over phi, less the term itself over phi
    grad_phi = -(log_sums / phi[:, None] ** 2 * grad).sum(1)
    for strip in strips:
        centred = strip.distance - offset
        slope = torch.zeros_like(centred)
        for k, (sign, mask) in enumerate(zip((1, -1), strips.masks(strip, labels, ref_labels))):
            share = masked_shares(sign * phi[k] * centred, mask) * grad[strip.rows, None]
            grad_phi[k] += sign * (share * centred).sum() / phi[k]
            slope += sign * share
        strips.pull_back(strip, slope, grad_x, grad_y)
    return grad_x, grad_x.new_empty(0) if y is None else grad_y, grad_phi


@_forward.register_fake
def _forward_shape(
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    y: Tensor | None,
    ref_labels: Tensor | None,
    precision: int = 0,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(2, x.shape[0])


@_backward.register_fake
def _backward_shape(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    y: Tensor | None,
    ref_labels: Tensor | None,
    log_sums: Tensor,
    precision: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y), torch.empty_like(phi)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, labels, phi, ctx.offset, y, ref_labels, ctx.precision = inputs
    ctx.save_for_backward(x, labels, phi, y, ref_labels, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, labels, phi, y, ref_labels, log_sums = ctx.saved_tensors
    grad_x, grad_y, grad_phi = torch.ops.ala_metric_strips.focal_weighting_backward(
        grad, x, labels, phi, ctx.offset, y, ref_labels, log_sums, ctx.precision
    )
    return grad_x, None, grad_phi, None, None if y is None else grad_y, None, None


differentiable_once(_forward, _backward, _differentiate, _save)
