"""Floor 1: checks of what a user hands over, most of it to ``ALALoss``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .types import AdaptiveLoss, Logger

MODES = ("paper", "fixed", "uniform", "random_walk", "random_static")
STEP_ON = ("forward", "optimizer")


def what_it_is(x: object) -> str:
    """The type of something that should have been a tensor, and how it becomes one."""
    name = type(x).__name__
    return f"{name}; torch.from_numpy(array) makes one" if name == "ndarray" else name


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
    if not isinstance(beta, (int, float)) or not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta!r}")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def usable_offsets(offsets: Sequence[int] | str, every: int) -> tuple[int, ...]:
    """Distinct offsets that fit into ``every`` iterations, ascending; ``"all"`` is each of them.

    Examples
    --------
    >>> usable_offsets((0, 5), every=5), usable_offsets("all", every=3)
    ((0,), (0, 1, 2))
    """
    if offsets == "all":
        return tuple(range(every))
    if isinstance(offsets, (str, int)):
        raise ValueError(f"offsets must be integers >= 0 or 'all', got {offsets!r}")
    if any(isinstance(o, bool) or int(o) != o or o < 0 for o in offsets):
        raise ValueError(f"offsets must be integers >= 0 or 'all', got {offsets!r}")
    usable = sorted({int(offset) for offset in offsets if offset < every})
    if not usable:
        raise ValueError(
            f"no offset of {offsets!r} is below every={every}: the metric would never be measured"
        )
    return tuple(usable)
