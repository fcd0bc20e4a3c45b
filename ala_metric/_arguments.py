"""Floor 1: checks of what a user hands over, most of it to ``ALALoss``."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .types import AdaptiveLoss, Logger, PhiSpec

MODES = ("paper", "fixed", "uniform", "random_walk", "random_static")
STEP_ON = ("forward", "optimizer")


def what_it_is(x: object) -> str:
    """The type of something that should have been a tensor, and how it becomes one."""
    name = type(x).__name__
    return f"{name}; torch.from_numpy(array) makes one" if name == "ndarray" else name


def integer(name: str, value: Any) -> int:
    """The value as an int, those of NumPy included; TypeError if it is another kind of number or none.

    Examples
    --------
    >>> integer("every", 200)
    200
    >>> integer("every", 2.5)
    Traceback (most recent call last):
    ...
    TypeError: every must be an integer, got 2.5
    """
    try:
        if not isinstance(value, (bool, torch.Tensor)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, got {value!r}")


def metric_value(value: Any, name: str = "metric") -> float:
    """What a metric returned as a float; TypeError if it is not one number (of Python, NumPy or torch).

    Examples
    --------
    >>> metric_value(torch.tensor(0.5))
    0.5
    >>> metric_value(torch.ones(2))
    Traceback (most recent call last):
    ...
    TypeError: metric must return one number, got a Tensor of shape [2]
    """
    shape = list(getattr(value, "shape", ()))
    if not isinstance(value, (str, bytes)) and math.prod(shape) == 1:
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            pass
    what = repr(value) if isinstance(value, (str, complex)) else type(value).__name__
    what = f"a {what} of shape {shape}" if shape else what
    raise TypeError(f"{name} must return one number, got {what}")


def check_statistics(statistics: Any) -> None:
    """TypeError unless the statistics of a loss are a tensor of real numbers."""
    if not isinstance(statistics, torch.Tensor):
        raise TypeError(f"statistics must be a tensor, got {what_it_is(statistics)}")
    if statistics.is_complex():
        raise TypeError(f"statistics must be real, got {statistics.dtype}")


def check_phi_in_range(phi: Sequence[float], spec: Sequence[PhiSpec]) -> None:
    """Refuse parameters that no step of a controller could bring back into their ranges.

    Parameters
    ----------
    phi
        One number per parameter.
    spec
        Their ranges; what :meth:`PhiSpec.slack` forgives is not refused.

    Raises
    ------
    TypeError
        If an entry of ``spec`` is no :class:`PhiSpec`.
    ValueError
        If the lengths differ, or a parameter is NaN or outside of its range.

    Examples
    --------
    >>> check_phi_in_range([5.0], [PhiSpec("margin", 0.0, 1.0)])
    Traceback (most recent call last):
    ...
    ValueError: loss.phi[0] ('margin') must lie in [0.0, 1.0], got 5.0
    """
    for index, entry in enumerate(spec):
        if not isinstance(entry, PhiSpec):
            raise TypeError(f"loss.phi_spec[{index}] must be a PhiSpec, got {type(entry).__name__}")
    if len(phi) != len(spec):
        raise ValueError(f"loss.phi must have {len(spec)} elements as phi_spec, got {len(phi)}")
    for index, (value, entry) in enumerate(zip(phi, spec)):
        below, above = entry.slack()
        if not entry.low - below <= value <= entry.high + above:
            raise ValueError(
                f"loss.phi[{index}] ({entry.name!r}) must lie in [{entry.low}, {entry.high}], got {value}"
            )


def check_parts(loss: Any, metric: Any, validate: Any, logger: Any) -> None:
    """TypeError if the loss, metric, validation function or logger lacks what is needed."""
    name = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, type) or not isinstance(loss, AdaptiveLoss) or not callable(loss):
        raise TypeError(
            f"loss must be callable and have phi, phi_spec, set_phi and statistics (AdaptiveLoss), got {name}"
            "; losses.AdaptPML(loss) makes one of a loss of pytorch-metric-learning"
        )
    if len(loss.phi_spec) == 0:
        raise ValueError(f"loss must have at least one parameter, {name}.phi_spec is empty")
    name = getattr(metric, "__name__", type(metric).__name__)
    if isinstance(metric, type):
        raise TypeError(f"metric must be an object, got the class {name}: {name}() makes one")
    if not callable(metric) or not isinstance(getattr(metric, "higher_is_better", None), bool):
        raise TypeError(f"metric must be callable with a bool attribute higher_is_better, {name} is not")
    if not callable(validate):
        raise TypeError(
            f"validate must be a function returning (outputs, targets), got {type(validate).__name__}"
        )
    if not (logger is None or isinstance(logger, Logger) or callable(logger)):
        raise TypeError(f"logger must be callable or have a method log, got {type(logger).__name__}")


def outputs_and_targets(found: Any) -> tuple[Any, Any]:
    """What ``validate()`` returned; TypeError if it is no pair (a tensor of two rows is none)."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        what = f"{len(found)} values" if isinstance(found, (tuple, list)) else type(found).__name__
        raise TypeError(f"validate() must return (outputs, targets), got {what}")
    return found[0], found[1]


@contextmanager
def divergence_told(outputs: Any, what: str) -> Iterator[None]:
    """Inside, an error about outputs that are not finite is a FloatingPointError: the model has diverged."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not isinstance(outputs, torch.Tensor) or bool(outputs.isfinite().all()):
            raise
        raise FloatingPointError(f"{what} are not finite") from error


def check_settings(mode: Any, step_on: Any, seed: Any, beta: Any, counts: dict[str, Any]) -> None:
    """ValueError or TypeError on an unknown choice or a number out of range."""
    if mode in ("paired", "race"):
        raise ValueError(f"mode={mode!r} trains several children: use training.fit; one loss has {MODES}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if step_on not in STEP_ON:
        raise ValueError(f"step_on must be one of {STEP_ON}, got {step_on!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must lie in [-2**63, 2**64), got {seed}")
    number = isinstance(beta, (int, float)) and not isinstance(beta, bool)
    if not (number and math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta!r}")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def is_offset(value: Any) -> bool:
    """Whether it is a whole number of at least 0."""
    try:
        return not isinstance(value, (bool, str)) and bool(int(value) == value and value >= 0)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def usable_offsets(offsets: Sequence[int] | str, every: int) -> tuple[int, ...]:
    """Distinct offsets that fit into ``every`` iterations, ascending; ``"all"`` is each of them.

    Examples
    --------
    >>> usable_offsets((0, 5), every=5), usable_offsets("all", every=3)
    ((0,), (0, 1, 2))
    """
    if isinstance(offsets, str) and offsets == "all":
        return tuple(range(every))
    try:
        given = () if isinstance(offsets, str) else tuple(offsets)
        whole = not isinstance(offsets, str) and all(is_offset(offset) for offset in given)
    except TypeError:  # not even several
        whole = False
    if not whole:
        raise ValueError(f"offsets must be integers >= 0 or 'all', got {offsets!r}")
    usable = sorted({int(offset) for offset in given if offset < every})
    if not usable:
        raise ValueError(
            f"no offset of {offsets!r} is below every={every}: the metric would never be measured"
        )
    return tuple(usable)
