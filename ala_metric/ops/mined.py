"""The distance mixture on listed pairs and triplets, for losses behind a miner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..types import Impl
from . import _functions as f
from ._check import check_derivatives, check_embeddings, check_indices, check_phi, check_references, compute
from ._select import choose
from ._strips import differentiable_once, gather_chunks


def mixture_pairs(
    emb: Tensor,
    anchors: Tensor,
    others: Tensor,
    phi: Tensor,
    *,
    positive: bool,
    ref_emb: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Distance mixture of listed pairs.

    .. math:: l_t = \sum_{k=1}^{5} \phi_k F^{\pm}_k(\lVert x_{a_t} - y_{o_t} \rVert)

    with the functions of :func:`distance_mixture` (Huang et al., ICML 2019, Eq. 9). Neither the distance
    matrix nor the gathered rows [P, D] are stored.

    Parameters
    ----------
    emb
        Anchors, shape [N, D], any float dtype.
    anchors, others
        Row of ``emb`` and row of the references of each pair, shape [P], any integer dtype.
    phi
        Weights of the five functions, shape [5].
    positive
        Whether the increasing functions (positive pairs) or the decreasing ones (negative pairs) apply.
    ref_emb
        References, shape [M, D]; ``None`` means ``emb``.
    impl
        ``"native"`` (the same bits for any number of threads), ``"strips"``, ``"reference"`` or ``"auto"``.

    Returns
    -------
    Tensor
        Value per pair, shape [P], unitless; float64 for float64 input, else float32. Differentiable once
        with respect to ``emb``, ``ref_emb`` and ``phi``.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, and (full checks) indices out of range.
    NotImplementedError
        Under ``torch.vmap``, and for second and forward-mode derivatives, which only ``"reference"`` has.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> emb, distance_only = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.0, 1, 0, 0, 0])
    >>> ops.mixture_pairs(emb, torch.tensor([0, 1]), torch.tensor([2, 2]), distance_only, positive=True)
    tensor([3., 2.])
    """
    emb, ref_emb = _check(emb, ref_emb)
    anchors, others = _check_lists(emb, ref_emb, anchors=anchors, others=others)
    phi = check_phi(phi, 5, emb)
    which = choose("mixture_pairs", impl, emb.device).impl
    check_derivatives("mixture_pairs", which, emb, ref_emb, phi)
    if which == "native":
        from . import native

        return native.mixture_pairs(emb, anchors, others, phi, positive=positive, ref_emb=ref_emb)
    x, y, phi = _computed(emb, ref_emb, phi)
    if which == "strips":
        return torch.ops.ala_metric_strips.mixture_pairs(x, anchors, others, phi, positive, y)
    distance = _distance(x[anchors] - (x if y is None else y)[others])
    return f.mixture_of_distance(distance, phi, positive=positive)


def mixture_triplets(
    emb: Tensor,
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    phi: Tensor,
    *,
    ref_emb: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Distance mixture of listed triplets.

    .. math:: l_t = \sum_{k=1}^{5} \phi_k F^+_k(\lVert x_{a_t} - y_{p_t} \rVert)
        + \sum_{k=1}^{5} \phi_{k+5} F^-_k(\lVert x_{a_t} - y_{n_t} \rVert)

    with the functions of :func:`distance_mixture` (Huang et al., ICML 2019, Eq. 9).

    Parameters
    ----------
    emb
        Anchors, shape [N, D], any float dtype.
    anchors, positives, negatives
        Row of ``emb`` and rows of the references of each triplet, shape [T], any integer dtype.
    phi
        Weights, shape [10].
    ref_emb
        References, shape [M, D]; ``None`` means ``emb``.
    impl
        ``"native"`` (the same bits for any number of threads), ``"strips"``, ``"reference"`` or ``"auto"``.

    Returns
    -------
    Tensor
        Value per triplet, shape [T], unitless; float64 for float64 input, else float32. Differentiable once
        with respect to ``emb``, ``ref_emb`` and ``phi``.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, and (full checks) indices out of range.
    NotImplementedError
        Under ``torch.vmap``, and for second and forward-mode derivatives, which only ``"reference"`` has.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> emb, phi = torch.tensor([[0.0], [1.0], [3.0]]), torch.eye(10)[1]
    >>> ops.mixture_triplets(emb, torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), phi)
    tensor([1.])
    """
    emb, ref_emb = _check(emb, ref_emb)
    anchors, positives, negatives = _check_lists(
        emb, ref_emb, anchors=anchors, positives=positives, negatives=negatives
    )
    phi = check_phi(phi, 10, emb)
    which = choose("mixture_triplets", impl, emb.device).impl
    check_derivatives("mixture_triplets", which, emb, ref_emb, phi)
    if which == "native":
        from . import native

        return native.mixture_triplets(emb, anchors, positives, negatives, phi, ref_emb=ref_emb)
    pull = mixture_pairs(emb, anchors, positives, phi[:5], positive=True, ref_emb=ref_emb, impl=which)
    push = mixture_pairs(emb, anchors, negatives, phi[5:], positive=False, ref_emb=ref_emb, impl=which)
    return pull + push


def _check(emb: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    emb = check_embeddings(emb, "emb")
    return emb, None if ref_emb is None else check_references(emb, ref_emb)


def _check_lists(emb: Tensor, ref_emb: Tensor | None, **lists: Tensor) -> tuple[Tensor, ...]:
    references = emb if ref_emb is None else ref_emb
    checked = tuple(
        check_indices(index, (emb if name == "anchors" else references).shape[0], emb, name)
        for name, index in lists.items()
    )
    if any(index.shape != checked[0].shape for index in checked[1:]):
        lengths = {name: len(index) for name, index in lists.items()}
        raise ValueError(f"index lists must have equal lengths, got {lengths}")
    return checked


def _computed(emb: Tensor, ref_emb: Tensor | None, phi: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    x = compute(emb)
    return x, None if ref_emb is None else compute(ref_emb), phi.to(x.dtype)


def _distance(difference: Tensor) -> Tensor:
    """Norms of difference rows [P, D] -> [P]; the gradient at 0 is 0."""
    square = (difference * difference).sum(1)
    apart = square != 0
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)


def _shapes(positive: bool) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
    if positive:
        return f.positive_functions, f.positive_slopes
    return f.negative_functions, f.negative_slopes


@torch.library.custom_op("ala_metric_strips::mixture_pairs", mutates_args=())
def _forward(
    x: Tensor, anchors: Tensor, others: Tensor, phi: Tensor, positive: bool, y: Tensor | None
) -> Tensor:
    references = x if y is None else y
    values = x.new_empty(anchors.numel())
    for part in gather_chunks(anchors.numel(), x):
        distance = _distance(x[anchors[part]] - references[others[part]])
        values[part] = f.mixture_of_distance(distance, phi, positive=positive)
    return values


@torch.library.custom_op("ala_metric_strips::mixture_pairs_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    anchors: Tensor,
    others: Tensor,
    phi: Tensor,
    positive: bool,
    y: Tensor | None,
    want_phi: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    references = x if y is None else y
    functions, slopes = _shapes(positive)
    grad_x, grad_phi = torch.zeros_like(x), torch.zeros_like(phi)
    grad_y = grad_x if y is None else torch.zeros_like(y)
    for part in gather_chunks(anchors.numel(), x):
        difference = x[anchors[part]] - references[others[part]]
        d = _distance(difference)
        if want_phi:
            grad_phi += torch.stack([(grad[part] * value).sum() for value in functions(d)])
        g = (grad[part] * f.weighted(slopes(d), phi) / d).masked_fill(d == 0, 0)
        difference *= g[:, None]
        grad_x.index_add_(0, anchors[part], difference)
        grad_y.index_add_(0, others[part], difference, alpha=-1)
    return grad_x, grad_x.new_empty(0) if y is None else grad_y, grad_phi


@_forward.register_fake
def _forward_shape(
    x: Tensor, anchors: Tensor, others: Tensor, phi: Tensor, positive: bool, y: Tensor | None
) -> Tensor:
    return x.new_empty(anchors.shape[0])


@_backward.register_fake
def _backward_shape(
    grad: Tensor,
    x: Tensor,
    anchors: Tensor,
    others: Tensor,
    phi: Tensor,
    positive: bool,
    y: Tensor | None,
    want_phi: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y), torch.empty_like(phi)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, anchors, others, phi, ctx.positive, y = inputs
    ctx.save_for_backward(x, anchors, others, phi, y)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, anchors, others, phi, y = ctx.saved_tensors
    grad_x, grad_y, grad_phi = torch.ops.ala_metric_strips.mixture_pairs_backward(
        grad, x, anchors, others, phi, ctx.positive, y, ctx.needs_input_grad[3]
    )
    return grad_x, None, None, grad_phi, None, None if y is None else grad_y


differentiable_once(_forward, _backward, _differentiate, _save)
