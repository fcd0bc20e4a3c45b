"""What every op demands of its arguments; each error names the argument, the expectation and the find."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._arguments import what_it_is
from ..types import Impl, Precision, Reduction

_checks: Literal["auto", "full", "cheap"] = "auto"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PRECISIONS = {"fp32": 0, "tf32": 1, "bf16": 2}  # as in csrc/include/ala_metric/cuda.h
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def set_checks(level: Literal["auto", "full", "cheap"]) -> None:
    """Choose how much of the input the ops examine.

    ``"full"`` also looks at values (NaN and Inf rows, NaN parameters), which on CUDA waits for the device;
    ``"cheap"`` looks at shapes, dtypes and devices only. ``"auto"``, the start value, is full on CPU and
    cheap elsewhere. Values are never examined while ``torch.compile`` traces.

    Parameters
    ----------
    level
        ``"auto"``, ``"full"`` or ``"cheap"``.

    Raises
    ------
    ValueError
        For any other level.

    Examples
    --------
    >>> import ala_metric as ala
    >>> ala.set_checks("cheap")
    >>> ala.set_checks("auto")
    """
    global _checks
    if level not in ("auto", "full", "cheap"):
        raise ValueError(f"level must be 'auto', 'full' or 'cheap', got {level!r}")
    _checks = level


class _Thread(threading.local):
    known = False


_thread = _Thread()


@contextmanager
def known_values() -> Iterator[None]:
    """In this thread, values were examined before: look at shapes, dtypes and devices only."""
    _thread.known = True
    try:
        yield
    finally:
        _thread.known = False


def _values_are_checked(x: Tensor) -> bool:
    if _checks == "cheap" or _thread.known or (_checks == "auto" and not x.is_cpu):
        return False
    return not torch.compiler.is_compiling()


def _all_finite(x: Tensor) -> bool:
    """One cheap pass: a sum is finite unless a term is not, or it overflows; only then look at each."""
    return math.isfinite(x.detach().sum().item()) or bool(torch.isfinite(x.detach()).all())


def _refuse_batched(x: Tensor, name: str) -> None:
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(x):
        raise NotImplementedError(f"vmap over {name} is not supported; call the op once per batch")


def refuse_batched_labels(labels: Tensor, ref_labels: Tensor | None) -> None:
    """NotImplementedError under vmap over labels, for ops that must look at them."""
    _refuse_batched(labels, "labels")
    if ref_labels is not None:
        _refuse_batched(ref_labels, "ref_labels")


def _keepable(x: Tensor) -> Tensor:
    """``x``, or its copy if it is an inference tensor and autograd may have to keep it."""
    if torch.compiler.is_compiling() or not x.is_inference():
        return x
    return x.clone() if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() else x


def check_derivatives(op: str, impl: Impl, *inputs: Tensor | None) -> None:
    """Refuse derivatives that kernels and strips lack: torch takes some for zero, and fails at others."""
    if torch.compiler.is_compiling() or impl == "reference":
        return
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return
    for x in inputs:
        if x is None:
            continue
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(f"{op} has no forward-mode derivative; use impl='reference' for one")
        if torch._C._functorch.is_gradtrackingtensor(x):
            raise NotImplementedError(f"torch.func does not differentiate {op}; use impl='reference' there")


def check_embeddings(x: Tensor, name: str) -> Tensor:
    """Refuse anything but a dense 2-D floating point tensor (without NaN and Inf under full checks).

    What comes back can be kept for a backward pass: of inference tensors it is a copy.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {what_it_is(x)}")
    _refuse_batched(x, name)
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {x.layout}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape [rows, dimensions], got {tuple(x.shape)}")
    if _values_are_checked(x) and not _all_finite(x):
        bad = int((~torch.isfinite(x.detach())).any(dim=1).sum())
        raise ValueError(f"{name} must be finite, got NaN or Inf in {bad} of {x.shape[0]} rows")
    return _keepable(x)


def check_labels(labels: Tensor, emb: Tensor, name: str, emb_name: str) -> Tensor:
    """Refuse labels that do not fit ``emb``; return them as int64, and no inference tensor."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {what_it_is(labels)}")
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{name} must have an integer dtype, got {labels.dtype}")
    if labels.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {labels.layout}")
    if labels.ndim != 1 or labels.shape[0] != emb.shape[0]:
        raise ValueError(
            f"{name} must have shape [{emb.shape[0]}] like the rows of {emb_name}, got {tuple(labels.shape)}"
        )
    if labels.device != emb.device:
        raise ValueError(f"{name} must be on {emb.device} like {emb_name}, got {labels.device}")
    return _keepable(labels) if labels.dtype == torch.int64 else labels.to(torch.int64)


def check_references(x: Tensor, y: Tensor, name: str = "emb", y_name: str = "ref_emb") -> Tensor:
    """Refuse references ``y`` of another width, dtype or device than ``x``."""
    y = check_embeddings(y, y_name)
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"{y_name} must have {x.shape[1]} dimensions like {name}, got {y.shape[1]}")
    if y.dtype != x.dtype:
        raise TypeError(f"{y_name} must have dtype {x.dtype} like {name}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"{y_name} must be on {x.device} like {name}, got {y.device}")
    return y


def check_batch(
    emb: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check the four arguments that all batch ops share; labels come back as int64."""
    emb = check_embeddings(emb, "emb")
    labels = check_labels(labels, emb, "labels", "emb")
    if (ref_emb is None) != (ref_labels is None):
        given, missing = ("ref_labels", "ref_emb") if ref_emb is None else ("ref_emb", "ref_labels")
        raise ValueError(f"{given} was given without {missing}; give both or neither")
    if ref_emb is not None and ref_labels is not None:
        ref_emb = check_references(emb, ref_emb)
        ref_labels = check_labels(ref_labels, ref_emb, "ref_labels", "ref_emb")
    return emb, labels, ref_emb, ref_labels


def check_phi(phi: Tensor, length: int, emb: Tensor, *, positive: bool = False) -> Tensor:
    """Refuse loss parameters of a wrong length or device, and NaN, Inf or (if ``positive``) values <= 0.

    The signs are looked at on CPU whatever the checks.
    """
    if not isinstance(phi, Tensor) or not phi.is_floating_point():
        found = phi.dtype if isinstance(phi, Tensor) else type(phi).__name__
        raise TypeError(f"phi must be a floating point tensor, got {found}")
    _refuse_batched(phi, "phi")
    if phi.shape != (length,):
        raise ValueError(f"phi must have shape [{length}], got {tuple(phi.shape)}")
    if phi.device != emb.device:
        raise ValueError(f"phi must be on {emb.device} like emb, got {phi.device}")
    full = _values_are_checked(emb)
    if full or (positive and phi.is_cpu and not torch.compiler.is_compiling()):
        values = phi.tolist()
        if full and not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
            raise ValueError(f"phi must be finite, got {values}")
        if positive and not all(value > 0 for value in values):  # NaN is not
            raise ValueError(f"phi must be > 0, got {values}")
    return _keepable(phi)


def check_indices(index: Tensor, rows: int, emb: Tensor, name: str) -> Tensor:
    """Refuse an index list that does not point into ``rows`` rows; an empty list may have any dtype."""
    if not isinstance(index, Tensor) or index.ndim != 1:
        found = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"{name} must be a 1-D tensor of indices, got {found}")
    if index.dtype not in _INTEGERS or index.device != emb.device:
        if index.numel() == 0:
            return torch.empty(0, dtype=torch.int64, device=emb.device)
        if index.dtype not in _INTEGERS:
            raise TypeError(f"{name} must have an integer dtype, got {index.dtype}")
        raise ValueError(f"{name} must be on {emb.device} like emb, got {index.device}")
    _refuse_batched(index, name)
    if _values_are_checked(emb) and index.numel() > 0:
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= rows:
            raise ValueError(f"{name} must lie in [0, {rows - 1}], got values from {low} to {high}")
    return _keepable(index.to(torch.int64))


def check_own(own: Tensor | None, emb: Tensor, ref_emb: Tensor | None) -> Tensor | None:
    """Refuse references of the anchors themselves that are none; return them as int64."""
    if own is None:
        return None
    if ref_emb is None:
        raise ValueError("own was given without ref_emb: a row is no pair of itself there")
    own = check_labels(own, emb, "own", "emb")
    _refuse_batched(own, "own")
    if own.numel() > 0 and _values_are_checked(emb):
        low, high = (int(v) for v in torch.aminmax(own))
        if low < -1 or high >= ref_emb.shape[0]:
            raise ValueError(f"own must lie in [-1, {ref_emb.shape[0] - 1}], got values from {low} to {high}")
    return own


def check_precision(precision: Precision, emb: Tensor) -> int:
    """Refuse an unknown precision, and a lowered one for float64; the number that operators take."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be 'fp32', 'tf32' or 'bf16', got {precision!r}")
    if precision != "fp32" and emb.dtype == torch.float64:
        raise ValueError(
            f"precision={precision!r} is for float32, float16 and bfloat16 embeddings, got {emb.dtype}"
        )
    return _PRECISIONS[precision]


def check_reduction(reduction: Reduction) -> bool:
    """Whether the losses of the anchors are averaged; ValueError on another word."""
    if reduction not in ("none", "mean"):
        raise ValueError(f"reduction must be 'none' or 'mean', got {reduction!r}")
    return reduction == "mean"


def compute(x: Tensor) -> Tensor:
    """Contiguous rows in the dtype of computation: float64 stays, everything else becomes float32."""
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
