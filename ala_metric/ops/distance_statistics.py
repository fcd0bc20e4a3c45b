"""What the controller sees of an embedding: the means of the ten distance functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Impl, Precision
from . import _functions as f
from ._check import check_batch, check_precision, compute, refuse_batched_labels
from ._reference import distance_matrix, pair_masks
from ._select import choose
from ._strips import PairStrips, computed_in_float32


@torch.no_grad()
def distance_statistics(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    impl: Impl = "auto",
    precision: Precision = "fp32",
) -> Tensor:
    r"""Means of the ten distance functions over all positive and all negative pairs.

    .. math::
        s_k = \frac{1}{|P|} \sum_{(i, p) \in P} F^+_k(d_{ip}), \qquad
        s_{k+5} = \frac{1}{|N|} \sum_{(i, n) \in N} F^-_k(d_{in}), \qquad k = 1 \ldots 5

    the validation statistics of the controller's state for metric learning (Huang et al., ICML 2019,
    Section 4), with the functions of :func:`distance_mixture`. The mean of nothing is 0. Not differentiable.

    Parameters
    ----------
    emb
        Embeddings, shape [N, D], float16, bfloat16, float32 or float64; taken as they are.
    labels
        Classes, shape [N], any integer dtype.
    ref_emb, ref_labels
        References, shapes [M, D] and [M]; without them the batch, less each row's pair with itself.
    impl
        ``"native"`` (the same bits for any number of threads), ``"strips"``, ``"reference"`` or ``"auto"``.
    precision
        The lowest precision of the matrix products on a GPU: ``"fp32"``, ``"tf32"`` or ``"bf16"`` (11 or 8
        bits of significand for what is multiplied; sums, functions and near pairs stay float32). The CPU's
        kernels and ``"reference"`` are more exact: float32 whatever it is; ``"strips"`` rounds on every
        device. Only for float32, float16 and bfloat16 rows. Relative L2 error for unit rows at D = 128 and
        512, measured with "strips": at most 3.1e-6 with TF32 and 1.4e-5 with bfloat16.

    Returns
    -------
    Tensor
        Shape [10], unitless; float64 for float64 input, else float32.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, and for NaN or Inf under full checks.
    NotImplementedError
        Under ``torch.vmap``.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> ops.distance_statistics(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]))[:2]
    tensor([1., 1.])
    """
    emb, labels, ref_emb, ref_labels = check_batch(emb, labels, ref_emb, ref_labels)
    refuse_batched_labels(labels, ref_labels)
    lowest = check_precision(precision, emb)
    which = choose("distance_statistics", impl, emb.device).impl
    if which == "native":
        from . import native

        return native.distance_statistics(
            emb, labels, ref_emb=ref_emb, ref_labels=ref_labels, precision=lowest
        )
    x, y = compute(emb), None if ref_emb is None else compute(ref_emb)
    if which == "strips":
        means: Tensor = torch.ops.ala_metric_strips.distance_statistics(x, labels, y, ref_labels, lowest)
        return means
    sums, counts = _zeros(x)
    _add(sums, counts, distance_matrix(x, x if y is None else y), *pair_masks(labels, ref_labels))
    return _means(sums, counts, x)


@torch.library.custom_op("ala_metric_strips::distance_statistics", mutates_args=())
def _statistics(
    x: Tensor, labels: Tensor, y: Tensor | None, ref_labels: Tensor | None, precision: int = 0
) -> Tensor:
    sums, counts = _zeros(x)
    strips = PairStrips(x, y, precision)
    for strip in strips:
        _add(sums, counts, strip.distance, *strips.masks(strip, labels, ref_labels))
    return _means(sums, counts, x)


@_statistics.register_fake
def _statistics_shape(
    x: Tensor, labels: Tensor, y: Tensor | None, ref_labels: Tensor | None, precision: int = 0
) -> Tensor:
    return x.new_empty(10)


computed_in_float32(_statistics)


def _zeros(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_zeros(10, dtype=torch.float64), x.new_zeros(2, dtype=torch.float64)


def _means(sums: Tensor, counts: Tensor, x: Tensor) -> Tensor:
    return (sums / counts.clamp_min(1).repeat_interleave(5)).to(x.dtype)


def _add(sums: Tensor, counts: Tensor, distance: Tensor, positive: Tensor, negative: Tensor) -> None:
    """Add one block of pairs to the sums of the ten functions and the two counts."""
    for k, value in enumerate(f.positive_functions(distance[positive])):
        sums[k] += value.sum(dtype=torch.float64)
    for k, value in enumerate(f.negative_functions(distance[negative])):
        sums[5 + k] += value.sum(dtype=torch.float64)
    counts += torch.stack([positive.sum(), negative.sum()])
