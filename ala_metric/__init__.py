"""ala_metric: losses that tune themselves to the metric you care about.

The sub-packages are loaded on first use: importing the package does not even import torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from . import _native
from ._version import __version__
from .types import AdaptiveLoss, AlaMetricError, CheckpointError, Metric, PhiSpec

if TYPE_CHECKING:
    from . import baselines, classification, controller, data, integrations, losses, metrics, ops, training
    from ._native import native_info
    from .ala_loss import ALALoss
    from .controller import load_policy, save_policy
    from .ops import set_checks

_PACKAGES = (
    "baselines",
    "classification",
    "controller",
    "data",
    "integrations",
    "losses",
    "metrics",
    "numpy_api",
    "ops",
    "training",
)
_NAMES = {
    "ALALoss": "ala_loss",
    "load_policy": "controller",
    "native_info": "_native",
    "save_policy": "controller",
    "set_checks": "ops",
}

__all__ = [
    "ALALoss",
    "AdaptiveLoss",
    "AlaMetricError",
    "CheckpointError",
    "Metric",
    "PhiSpec",
    "__version__",
    "baselines",
    "classification",
    "controller",
    "data",
    "integrations",
    "load_policy",
    "losses",
    "metrics",
    "native_info",
    "ops",
    "save_policy",
    "set_checks",
    "training",
]

if _native.required():
    _native.native_info()


def _compute_with_one_thread() -> None:
    """In a child of ``fork``, where the threads of torch's pool are missing: waiting for them has no end."""
    set_num_threads = getattr(sys.modules.get("torch"), "set_num_threads", None)
    if set_num_threads is not None:
        set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_with_one_thread)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
