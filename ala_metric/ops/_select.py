"""Which implementation runs, and why."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from .. import _native
from ..types import Impl

NATIVE_OPS: tuple[str, ...] = (
    "pairwise_distance",
    "distance_mixture",
    "focal_weighting",
    "distance_statistics",
    "mixture_pairs",
    "mixture_triplets",
    "positive_ranks",
)
OPS = NATIVE_OPS
_log = logging.getLogger("ala_metric")
_noticed = False


@dataclass(frozen=True)
class Choice:
    """The implementation that an op would run, and the reason in words.

    Parameters
    ----------
    impl
        ``"native"``, ``"strips"`` or ``"reference"``.
    reason
        Why, in words.

    Examples
    --------
    >>> Choice("strips", "asked for").impl
    'strips'
    """

    impl: Impl
    reason: str


_DEMANDED = Choice("native", "asked for")
_INSTALLED = Choice("native", "the fused kernels are installed")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _native_obstacle(op: str, device: torch.device) -> str | None:
    """Why ``native`` cannot serve this op on this device, or None when it can."""
    info = _native.native_info()
    if not info.available:
        return info.reason
    kind = device.type
    if kind == "cuda" and not info.cuda_available:
        return info.cuda_reason
    if kind not in ("cpu", "cuda"):
        return f"no native kernel for {kind} in this version"
    if op not in NATIVE_OPS:
        return "no native kernel for this op in this version"
    return None


def choose(op: str, impl: Impl, device: torch.device | str) -> Choice:
    """Resolve ``impl`` for one op on one device.

    Raises
    ------
    ValueError
        For an unknown ``impl``.
    RuntimeError
        If ``impl="native"`` is demanded where it cannot run; the message says why.
    """
    global _noticed
    if impl not in ("auto", "native", "strips", "reference"):
        raise ValueError(f"impl must be 'auto', 'native', 'strips' or 'reference', got {impl!r}")
    if impl in ("strips", "reference"):
        return Choice(impl, "asked for")
    obstacle = _native_obstacle(op, device if isinstance(device, torch.device) else torch.device(device))
    if obstacle is None:
        return _DEMANDED if impl == "native" else _INSTALLED
    if impl == "native":
        raise RuntimeError(f"impl='native' cannot run {op} on {device}: {obstacle}")
    if not torch.compiler.is_compiling() and not _native.native_info().available and not _noticed:
        _noticed = True
        _log.warning("ala_metric runs without its fused kernels, in plain PyTorch: %s", obstacle)
    return Choice("strips", obstacle)


def explain(device: torch.device | str = "cpu") -> dict[str, Choice]:
    """Which implementation ``impl="auto"`` picks for every op on ``device``, and why.

    Parameters
    ----------
    device
        A device or its name.

    Returns
    -------
    dict
        Op name -> :class:`Choice` with ``impl`` and ``reason``.

    Examples
    --------
    >>> from ala_metric import ops
    >>> ops.explain("cpu")["distance_mixture"].impl in ("native", "strips")
    True
    """
    return {op: choose(op, "auto", device) for op in OPS}
