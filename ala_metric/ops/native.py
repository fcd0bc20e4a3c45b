"""The fused kernels as differentiable torch operators: fake kernels, autograd and autocast.

Arguments arrive checked, with int64 labels and indices. Operators that can keep the unit gradient (of the sum
of all losses) compute it in the same pass as the loss; the backward pass scales it when all anchors weigh the
same, as after ``mean()``, and else runs a second pass with the weights. Differentiable once: a second
derivative, like ``torch.vmap``, is a NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ._reference import mean_of

_info = _native.native_info()
if not _info.available:
    raise ImportError(_info.reason)
_ops = torch.ops.ala_metric

Gradients = tuple[Tensor | None, ...]


def pairwise_distance(x: Tensor, y: Tensor | None = None, *, precision: int = 0) -> Tensor:
    """Distances [N, M]; see :func:`ala_metric.ops.pairwise_distance`."""
    result: Tensor = _ops.pairwise_distance(x, y, precision)
    return result


def distance_mixture(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    precision: int = 0,
    own: Tensor | None = None,
    mean: bool = False,
) -> Tensor:
    """Loss per anchor [N] or their mean; see :func:`ala_metric.ops.distance_mixture`."""
    wanted = _wanted(emb, ref_emb, phi)
    labels, ref_labels, own = labels.contiguous(), _packed(ref_labels), _packed(own)
    inputs = emb, labels, _parameters(phi), ref_emb, ref_labels, *wanted, precision, own
    return _loss("distance_mixture", mean, any(wanted), inputs, emb, ref_emb, phi)


def focal_weighting(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    *,
    offset: float = 1.0,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    precision: int = 0,
    mean: bool = False,
) -> Tensor:
    """Loss per anchor [N] or their mean; see :func:`ala_metric.ops.focal_weighting`."""
    wanted = _wanted(emb, ref_emb, phi)
    labels, ref_labels = labels.contiguous(), _packed(ref_labels)
    inputs = emb, labels, _parameters(phi), offset, ref_emb, ref_labels, *wanted, precision
    return _loss("focal_weighting", mean, any(wanted), inputs, emb, ref_emb, phi)


def distance_statistics(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    precision: int = 0,
) -> Tensor:
    """Means of the ten functions; see :func:`ala_metric.ops.distance_statistics`."""
    references = None if ref_emb is None else ref_emb.detach()
    result: Tensor = _ops.distance_statistics(
        emb.detach(), labels.contiguous(), references, _packed(ref_labels), precision
    )
    return result


def mixture_pairs(
    emb: Tensor,
    anchors: Tensor,
    others: Tensor,
    phi: Tensor,
    *,
    positive: bool,
    ref_emb: Tensor | None = None,
) -> Tensor:
    """Value per pair [P]; see :func:`ala_metric.ops.mixture_pairs`."""
    result: Tensor = _ops.mixture_pairs(
        emb, anchors.contiguous(), others.contiguous(), _parameters(phi), positive, ref_emb
    )
    return result


def mixture_triplets(
    emb: Tensor,
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    phi: Tensor,
    *,
    ref_emb: Tensor | None = None,
) -> Tensor:
    """Value per triplet [T]; see :func:`ala_metric.ops.mixture_triplets`."""
    lists = anchors.contiguous(), positives.contiguous(), negatives.contiguous()
    result: Tensor = _ops.mixture_triplets(emb, *lists, _parameters(phi), ref_emb)
    return result


def positive_ranks(
    emb: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    cosine: bool = False,
    first_only: bool = False,
) -> Tensor:
    """Ranks [2, positives], pessimistic and optimistic; ``offsets`` [N + 1] count the positives."""
    count = emb.shape[0] if first_only else int(offsets[-1])
    references = None if ref_emb is None else ref_emb.detach()
    result: Tensor = _ops.positive_ranks(
        emb.detach(), labels.contiguous(), offsets, count, references, _packed(ref_labels), cosine, first_only
    )
    return result


def _parameters(phi: Tensor) -> Tensor:
    if phi.is_cuda:  # the kernels read it themselves, as doubles: nothing waits for its values
        return phi.double().contiguous()
    return phi if phi.dtype in (torch.float32, torch.float64) else phi.float()


def _packed(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels.contiguous()


def _wanted(emb: Tensor, ref_emb: Tensor | None, phi: Tensor) -> tuple[bool, bool, bool]:
    """Which inputs need a gradient."""
    if not torch.is_grad_enabled():
        return False, False, False
    return emb.requires_grad, ref_emb is not None and ref_emb.requires_grad, phi.requires_grad


def _loss(
    name: str, mean: bool, differentiable: bool, inputs: tuple[Any, ...], *sources: Tensor | None
) -> Tensor:
    """First result of an operator, or its mean.

    Outside of a trace its autograd is a plain Function: half the overhead. ``sources``: what it is
    differentiated by, in the order of the unit gradients.
    """
    result: Tensor
    if torch.compiler.is_compiling():
        result = getattr(_ops, name)(*inputs)[0]
    elif not differentiable:
        result = _run(name, inputs)[0]
    elif mean:
        result = _Mean.apply(name, inputs, *sources)
        return result
    else:
        result = _functions[name].apply(*inputs)
    return mean_of(result) if mean else result


def _run(name: str, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """All results of an operator whose autograd is taken care of: its registration is for traces."""
    with torch._C._AutoDispatchBelowAutograd():
        results: tuple[Tensor, ...] = getattr(_ops, name).default(*inputs)
    return results


def _new(emb: Tensor, *shape: int) -> Tensor:
    """Room in the compute type: float64 for float64 embeddings, else float32."""
    return emb.new_empty(shape, dtype=torch.float64 if emb.dtype == torch.float64 else torch.float32)


def _like(wanted: bool, x: Tensor | None, emb: Tensor) -> Tensor:
    """Room for a gradient; an empty one where it is not wanted."""
    return _new(emb, *x.shape) if wanted and x is not None else _new(emb, 0)


def _as(gradient: Tensor, x: Tensor | None, wanted: bool) -> Tensor | None:
    """A gradient in the dtype of its input."""
    if not wanted or x is None:
        return None
    return gradient if gradient.dtype == x.dtype else gradient.to(x.dtype)


# ---- shapes of the results, for tracing


def _pairwise_distance_shape(x: Tensor, y: Tensor | None, precision: int = 0) -> Tensor:
    return _new(x, x.shape[0], (x if y is None else y).shape[0])


def _pairwise_distance_backward_shape(
    grad: Tensor, x: Tensor, y: Tensor | None, x_grad: bool, y_grad: bool, precision: int = 0
) -> tuple[Tensor, Tensor]:
    return _like(x_grad, x, x), _like(y_grad, y, x)


def _distance_mixture_shape(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    emb_grad: bool,
    ref_grad: bool,
    phi_grad: bool,
    precision: int = 0,
    own: Tensor | None = None,
) -> tuple[Tensor, ...]:
    units = _like(emb_grad, emb, emb), _like(ref_grad, ref_emb, emb), _like(phi_grad, phi, emb)
    return _new(emb, emb.shape[0]), *units


def _distance_mixture_backward_shape(
    grad: Tensor,
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    unit_emb: Tensor,
    unit_ref: Tensor,
    unit_phi: Tensor,
    precision: int = 0,
    own: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return torch.empty_like(unit_emb), torch.empty_like(unit_ref), torch.empty_like(unit_phi)


def _focal_weighting_shape(
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    emb_grad: bool,
    ref_grad: bool,
    phi_grad: bool,
    precision: int = 0,
) -> tuple[Tensor, ...]:
    units = _like(emb_grad, emb, emb), _like(ref_grad, ref_emb, emb), _like(phi_grad, phi, emb)
    lse = emb.new_empty(emb.shape[0], 2, dtype=torch.float64)
    return _new(emb, emb.shape[0]), lse, *units


def _focal_weighting_backward_shape(
    grad: Tensor,
    emb: Tensor,
    labels: Tensor,
    phi: Tensor,
    offset: float,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    lse: Tensor,
    unit_emb: Tensor,
    unit_ref: Tensor,
    unit_phi: Tensor,
    precision: int = 0,
) -> tuple[Tensor, ...]:
    return torch.empty_like(unit_emb), torch.empty_like(unit_ref), torch.empty_like(unit_phi)


def _distance_statistics_shape(
    emb: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None, precision: int = 0
) -> Tensor:
    return _new(emb, 10)


def _positive_ranks_shape(emb: Tensor, labels: Tensor, offsets: Tensor, count: int, *_: Any) -> Tensor:
    return emb.new_empty((2, count), dtype=torch.int64)


def _mined_shape(emb: Tensor, anchors: Tensor, *_: Any) -> Tensor:
    return _new(emb, anchors.shape[0])


def _mixture_pairs_backward_shape(
    grad: Tensor,
    emb: Tensor,
    anchors: Tensor,
    others: Tensor,
    phi: Tensor,
    positive: bool,
    ref_emb: Tensor | None,
    emb_grad: bool,
    ref_grad: bool,
    phi_grad: bool,
) -> tuple[Tensor, ...]:
    return _like(emb_grad, emb, emb), _like(ref_grad, ref_emb, emb), _like(phi_grad, phi, emb)


def _mixture_triplets_backward_shape(
    grad: Tensor,
    emb: Tensor,
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    phi: Tensor,
    ref_emb: Tensor | None,
    emb_grad: bool,
    ref_grad: bool,
    phi_grad: bool,
) -> tuple[Tensor, ...]:
    return _like(emb_grad, emb, emb), _like(ref_grad, ref_emb, emb), _like(phi_grad, phi, emb)


# ---- what a forward pass keeps, and the backward pass


def _save_pairwise_distance(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *rows, ctx.precision = inputs
    ctx.save_for_backward(*rows)


def _pairwise_distance_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, y = ctx.saved_tensors
    x_grad, y_grad = ctx.needs_input_grad[:2]
    grad_x, grad_y = _ops.pairwise_distance_backward(grad, x, y, x_grad, y_grad, ctx.precision)
    return _as(grad_x, x, x_grad), _as(grad_y, y, y_grad), None


def _has_values(x: Tensor) -> bool:
    """Whether it may be looked at: it is on CPU, and not of a trace or a batched backward pass."""
    if type(x) is not Tensor or not x.is_cpu:
        return False
    functorch = torch._C._functorch
    return not (functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x))


def _scaled(grad: Tensor, units: list[Tensor]) -> tuple[Tensor, ...] | None:
    """Unit gradients times the weight that all anchors share, where that can be told without its values.

    After ``sum()`` the gradient is one number, expanded; its strides say so. After ``mean()`` it is N equal
    numbers, which are looked at on CPU. The operator refuses a second derivative, which would go unnoticed
    here.
    """
    if grad.ndim != 1 or grad.shape[0] == 0 or torch.is_grad_enabled():
        return None
    if grad.stride(0) == 0:
        weight = grad[0]
    elif _has_values(grad):
        weight, highest = torch.aminmax(grad)
        if weight.item() != highest.item():
            return None
    else:
        return None
    return tuple(unit * weight if unit.numel() else unit for unit in units)


def _save_distance_mixture(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    emb, labels, phi, ref_emb, ref_labels, *ctx.wanted, ctx.precision, own = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(emb, labels, phi, ref_emb, ref_labels, own, *output[1:])


def _distance_mixture_backward(ctx: Any, grad: Tensor | None, *_: None) -> Gradients:
    if grad is None:
        return (None,) * 10
    emb, labels, phi, ref_emb, ref_labels, own, *units = ctx.saved_tensors
    gradients = _scaled(grad, units) or _ops.distance_mixture_backward(
        grad.contiguous(), emb, labels, phi, ref_emb, ref_labels, *units, ctx.precision, own
    )
    grad_emb, grad_ref, grad_phi = map(_as, gradients, (emb, ref_emb, phi), ctx.wanted)
    return grad_emb, None, grad_phi, grad_ref, None, None, None, None, None, None


def _save_focal_weighting(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    emb, labels, phi, ctx.offset, ref_emb, ref_labels, *ctx.wanted, ctx.precision = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(emb, labels, phi, ref_emb, ref_labels, *output[1:])


def _focal_weighting_backward(ctx: Any, grad: Tensor | None, *_: None) -> Gradients:
    if grad is None:
        return (None,) * 10
    emb, labels, phi, ref_emb, ref_labels, *kept = ctx.saved_tensors
    gradients = _scaled(grad, kept[1:]) or _ops.focal_weighting_backward(
        grad.contiguous(), emb, labels, phi, ctx.offset, ref_emb, ref_labels, *kept, ctx.precision
    )
    grad_emb, grad_ref, grad_phi = map(_as, gradients, (emb, ref_emb, phi), ctx.wanted)
    return grad_emb, None, grad_phi, None, grad_ref, None, None, None, None, None


def _save_mixture_pairs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    emb, anchors, others, phi, ctx.positive, ref_emb = inputs
    ctx.save_for_backward(emb, anchors, others, phi, ref_emb)


def _mixture_pairs_backward(ctx: Any, grad: Tensor) -> Gradients:
    emb, anchors, others, phi, ref_emb = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = needs[0], needs[5], needs[3]
    gradients = _ops.mixture_pairs_backward(
        grad.contiguous(), emb, anchors, others, phi, ctx.positive, ref_emb, *wanted
    )
    grad_emb, grad_ref, grad_phi = map(_as, gradients, (emb, ref_emb, phi), wanted)
    return grad_emb, None, None, grad_phi, None, grad_ref


def _save_mixture_triplets(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mixture_triplets_backward(ctx: Any, grad: Tensor) -> Gradients:
    emb, *lists, phi, ref_emb = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = needs[0], needs[5], needs[4]
    gradients = _ops.mixture_triplets_backward(grad.contiguous(), emb, *lists, phi, ref_emb, *wanted)
    grad_emb, grad_ref, grad_phi = map(_as, gradients, (emb, ref_emb, phi), wanted)
    return grad_emb, None, None, None, grad_phi, grad_ref


class _DistanceMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _run("distance_mixture", inputs)
        _save_distance_mixture(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Gradients:
        return _distance_mixture_backward(ctx, grad)


class _FocalWeighting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _run("focal_weighting", inputs)
        _save_focal_weighting(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Gradients:
        return _focal_weighting_backward(ctx, grad)


class _Mean(torch.autograd.Function):
    """Mean of an operator's losses: all anchors weigh the same, so its gradients are scaled unit ones.

    ``inputs``, in a tuple, are not seen by autograd; ``sources`` are, for their gradients alone.
    """

    @staticmethod
    def forward(ctx: Any, name: str, inputs: tuple[Any, ...], *sources: Tensor | None) -> Tensor:
        losses, *kept = _run(name, inputs)
        ctx.name, ctx.anchors = name, losses.shape[0]
        wanted = ctx.needs_input_grad[2:]
        ctx.save_for_backward(*(x if w else None for x, w in zip(sources, wanted)), *kept[-3:])
        return mean_of(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        weight = grad / max(1, ctx.anchors)
        saved = ctx.saved_tensors
        sources, units = saved[:3], saved[3:]
        wanted = zip(units, ctx.needs_input_grad[2:])
        gradients = tuple(unit * weight if needed else None for unit, needed in wanted)
        if torch.is_grad_enabled():  # a second derivative may follow
            gradients = _Once.apply(ctx.name, gradients, grad, *sources)
        return None, None, *gradients


class _Once(torch.autograd.Function):
    """Gradients that depend on the rest of the arguments, but refuse to tell how.

    (``once_differentiable`` notices only a gradient of the result that itself needs one.)
    """

    @staticmethod
    def forward(ctx: Any, name: str, gradients: Gradients, *_: Tensor | None) -> Gradients:
        ctx.name = name
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_second_derivative(ctx.name)


def _no_second_derivative(name: str) -> NotImplementedError:
    return NotImplementedError(f"{name} is differentiable once; use impl='reference' for more")


_functions = {"distance_mixture": _DistanceMixture, "focal_weighting": _FocalWeighting}


def _register(
    name: str,
    shape: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Gradients] | None = None,
    backward_shape: Callable[..., Any] | None = None,
) -> None:
    """Tell torch about one operator and, if it is differentiable, about its backward operator."""

    def no_vmap(*_: Any) -> Any:
        raise NotImplementedError(f"vmap over {name} is not supported; call the op once per batch")

    def no_second_derivative(*_: Any) -> Any:
        raise _no_second_derivative(name)

    torch.library.register_fake(f"ala_metric::{name}", shape)
    torch.library.register_vmap(f"ala_metric::{name}", no_vmap)
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"ala_metric::{name}", device, torch.float32)
    if save is None or backward is None or backward_shape is None:
        return

    def traced(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple):  # only the loss is differentiable, not what is kept beside it
            ctx.mark_non_differentiable(*output[1:])
        save(ctx, inputs, output)

    torch.library.register_autograd(f"ala_metric::{name}", backward, setup_context=traced)
    torch.library.register_fake(f"ala_metric::{name}_backward", backward_shape)
    torch.library.register_autograd(f"ala_metric::{name}_backward", no_second_derivative)


_register(
    "pairwise_distance",
    _pairwise_distance_shape,
    _save_pairwise_distance,
    _pairwise_distance_backward,
    _pairwise_distance_backward_shape,
)
_register(
    "distance_mixture",
    _distance_mixture_shape,
    _save_distance_mixture,
    _distance_mixture_backward,
    _distance_mixture_backward_shape,
)
_register(
    "focal_weighting",
    _focal_weighting_shape,
    _save_focal_weighting,
    _focal_weighting_backward,
    _focal_weighting_backward_shape,
)
_register("distance_statistics", _distance_statistics_shape)
_register(
    "mixture_pairs",
    _mined_shape,
    _save_mixture_pairs,
    _mixture_pairs_backward,
    _mixture_pairs_backward_shape,
)
_register(
    "mixture_triplets",
    _mined_shape,
    _save_mixture_triplets,
    _mixture_triplets_backward,
    _mixture_triplets_backward_shape,
)
_register("positive_ranks", _positive_ranks_shape)
