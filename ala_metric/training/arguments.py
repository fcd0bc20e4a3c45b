"""What ``fit`` refuses before the first step: else it would fail after hours, or be ignored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._arguments import what_it_is
from .paired import PairedSettings
from .race import RaceSettings


def check_fit(
    model: Any, loss_fn: Any, dataset: Any, optimizer: Any, scheduler: Any, miner: Any, on_step: Any
) -> None:
    """TypeError if a part of a training lacks what is needed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_kind(model)}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {_kind(loss_fn)}")
    if not all(hasattr(dataset, name) for name in ("labels", "__len__", "__getitem__")):
        raise TypeError(
            f"dataset must have labels int64 [N] and items (inputs, label), as ImageSet, got {_kind(dataset)}"
        )
    if not isinstance(dataset.labels, torch.Tensor):
        raise TypeError(f"dataset.labels must be a tensor, got {what_it_is(dataset.labels)}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {_kind(optimizer)}")
    if not (scheduler is None or callable(getattr(scheduler, "step", None))):
        raise TypeError(f"scheduler must have a method step, got {_kind(scheduler)}")
    for name, function in (("miner", miner), ("on_step", on_step)):
        if not (function is None or callable(function)):
            raise TypeError(f"{name} must be callable, got {_kind(function)}")


def check_settings_of(mode: Any, race: Any, paired: Any) -> None:
    """Refuse settings of another kind, and those of a mode that is not asked for."""
    for name, given, kind in (("race", race, RaceSettings), ("paired", paired, PairedSettings)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {_kind(given)}")
        if given is not None and mode != name:
            raise ValueError(f"{name}={kind.__name__}(...) needs mode={name!r}, got mode={mode!r}")


def checked_target(checkpoint: Any, checkpoint_every: int | None, resume: bool) -> Path | None:
    """The file of the checkpoint, which can be written; None for none."""
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if checkpoint is None:
        if resume or checkpoint_every is not None:
            raise ValueError("resume and checkpoint_every need a checkpoint file, got checkpoint=None")
        return None
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be the path of a file, got {_kind(checkpoint)}")
    target = Path(checkpoint)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder of the checkpoint does not exist: {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"folder of the checkpoint is not writable: {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"checkpoint must be the path of a file, got the folder {target}")
    return target


def _kind(given: Any) -> str:
    return type(given).__name__
