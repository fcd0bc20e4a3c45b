"""The losses of pytorch-metric-learning that have parameters worth adapting, with sensible ranges."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from .._pml import loss_classes
from ..types import PhiSpec

# Ranges in the unit of the attribute, wide around the published defaults. Angles are in radians there,
# although the constructors take degrees; SoftTripleLoss keeps 1/gamma.
_SCALE = (8.0, 128.0)
_TEMPERATURE = (0.01, 1.0)
_PAIR_MARGINS = {"pos_margin": (0.0, 0.6), "neg_margin": (0.2, 1.4)}
_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "AngularLoss": {"alpha": (0.3, 1.0)},
    "ArcFaceLoss": {"margin": (0.05, 1.0), "scale": _SCALE},
    "CircleLoss": {"m": (0.05, 0.6), "gamma": (16.0, 512.0)},
    "ContrastiveLoss": _PAIR_MARGINS,
    "CosFaceLoss": {"margin": (0.05, 0.7), "scale": _SCALE},
    "GeneralizedLiftedStructureLoss": _PAIR_MARGINS,
    "InstanceLoss": {"gamma": _SCALE},
    "LiftedStructureLoss": _PAIR_MARGINS,
    "MarginLoss": {"margin": (0.05, 0.6), "beta": (0.5, 1.4)},
    "MultiSimilarityLoss": {"alpha": (0.5, 20.0), "beta": (5.0, 100.0), "base": (0.0, 1.0)},
    "NCALoss": {"softmax_scale": (0.5, 64.0)},
    "NTXentLoss": {"temperature": _TEMPERATURE},
    "NormalizedSoftmaxLoss": {"temperature": _TEMPERATURE},
    "PNPLoss": {"anneal": (0.002, 0.1)},
    "ProxyAnchorLoss": {"margin": (0.01, 0.6), "alpha": _SCALE},
    "ProxyNCALoss": {"softmax_scale": (0.5, 64.0)},
    "SignalToNoiseRatioContrastiveLoss": _PAIR_MARGINS,
    "SmoothAPLoss": {"temperature": (0.002, 0.1)},
    "SoftTripleLoss": {"la": (4.0, 80.0), "gamma": (1.0, 50.0), "margin": (0.001, 0.1)},
    "SubCenterArcFaceLoss": {"margin": (0.05, 1.0), "scale": _SCALE},
    "SupConLoss": {"temperature": _TEMPERATURE},
    "ThresholdConsistentMarginLoss": {"margin_plus": (0.6, 1.0), "margin_minus": (0.2, 0.8)},
    "TripletMarginLoss": {"margin": (0.01, 0.6)},
    "TupletMarginLoss": {"margin": (0.01, 0.5), "scale": _SCALE},
}


def available() -> dict[str, dict[str, PhiSpec]]:
    """Losses of pytorch-metric-learning with numeric parameters, and sensible ranges for these.

    They are what :class:`AdaptPML` uses if no ranges are given. It takes any other loss and range too.

    Returns
    -------
    dict
        Class name -> attribute -> :class:`ala_metric.PhiSpec`, in the unit of the attribute: angles are in
        radians (the constructors of ArcFace, SubCenterArcFace, Angular and TupletMargin take degrees), and
        ``SoftTripleLoss.gamma`` is the reciprocal of its argument.

    Examples
    --------
    >>> from ala_metric import losses
    >>> spec = losses.available()["NTXentLoss"]["temperature"]
    >>> spec.low, spec.high, spec.rule
    (0.01, 1.0, 'multiplicative')
    """
    return {
        loss: {name: spec(name, *bounds) for name, bounds in ranges.items()}
        for loss, ranges in _RANGES.items()
    }


# Where an argument of the constructor is another number than the attribute.
_ARGUMENTS: dict[tuple[str, str], Callable[[float], float]] = {
    ("AngularLoss", "alpha"): math.degrees,
    ("ArcFaceLoss", "margin"): math.degrees,
    ("SoftTripleLoss", "gamma"): lambda value: 1.0 / value,
    ("SubCenterArcFaceLoss", "margin"): math.degrees,
    ("TupletMarginLoss", "margin"): math.degrees,
}


def make(loss: str, *, num_classes: int, embedding_size: int) -> Any:
    """A known loss with its default parameters; the sizes are used by losses with proxies only."""
    kind = getattr(loss_classes, loss)
    wanted = {
        name
        for parent in kind.__mro__
        if "__init__" in vars(parent)
        for name in inspect.signature(parent.__init__).parameters
    }
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    needs_sizes = "embedding_size" in wanted
    return kind(**sizes) if needs_sizes else kind()


def constructor_call(loss: str, values: Mapping[str, float]) -> str:
    """The call that builds a known loss with these values of its attributes."""
    given = {name: _ARGUMENTS.get((loss, name), lambda same: same)(value) for name, value in values.items()}
    return f"{loss}({', '.join(f'{name}={value:.4g}' for name, value in given.items())})"


def spec(name: str, low: float, high: float, rule: str | None = None) -> PhiSpec:
    """Range of one parameter; without a rule, steps multiply where low > 0 and high >= 10 low."""
    if rule is None:
        rule = "multiplicative" if 0 < 10 * low <= high else "additive"
    return PhiSpec(name, low, high, rule)  # type: ignore[arg-type]  # PhiSpec refuses another rule
