"""The training loop: class-balanced batches, one loss, checkpoints, exact resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data import ClassBalancedSampler
from ..types import CheckpointError
from .checkpoint import load_checkpoint, save_checkpoint
from .embed import device_of
from .interrupt import Interrupted, first_signal, leave_signals_to_the_parent
from .random_streams import random_streams, restore_random_streams


class LabelledDataset(Protocol):
    """A map-style data set that knows its labels, such as :class:`ala_metric.data.ImageSet`."""

    @property
    def labels(self) -> torch.Tensor:
        """The class of each item, int64 ``[N]``."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...


@dataclass(frozen=True)
class FitResult:
    """What a call of :func:`fit` did.

    Parameters
    ----------
    steps
        Steps of the run so far, those before a resume included.
    resumed_at
        Steps that a checkpoint had already done.
    losses
        The loss of each of the ``steps``.
    seconds
        Wall-clock time of this call.

    Examples
    --------
    >>> FitResult(steps=2, resumed_at=0, losses=(1.0, 0.5), seconds=0.1).losses[-1]
    0.5
    """

    steps: int
    resumed_at: int
    losses: tuple[float, ...]
    seconds: float


def fit(
    model: nn.Module,
    loss_fn: Callable[..., torch.Tensor],
    dataset: LabelledDataset,
    *,
    total_steps: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    miner: Callable[..., Any] | None = None,
    batch_classes: int = 32,
    per_class: int = 4,
    seed: int = 0,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Train a model with a plain or an adaptive loss.

    One step is ``loss_fn(model(inputs), labels)``, or ``loss_fn(outputs, labels, miner(outputs, labels))``
    with a miner. A run that is stopped anywhere and resumed gives the same bits as one that was not: weights,
    optimizer, scheduler, loss and miner state, the position in the batches and all global random streams
    come back from the checkpoint.

    Parameters
    ----------
    model
        Trained in place, on the device it is on. A model in eval mode is put in train mode; submodules that
        are frozen in eval mode within a model in train mode stay so.
    loss_fn
        A loss such as :class:`ala_metric.ALALoss`, or any ``(outputs, labels) -> scalar``. Its
        ``state_dict()``, where it has one, is part of the checkpoint.
    dataset
        Items ``(inputs, label)`` and ``labels`` int64 ``[N]``.
    total_steps
        Optimizer steps of the whole run, those before a resume included.
    optimizer, scheduler
        Stepped once per batch.
    miner
        Maps ``(outputs, labels)`` to the ``indices_tuple`` of the loss.
    batch_classes, per_class
        Classes per batch, and samples of each.
    seed
        Batches are a function of it and of nothing else.
    workers
        Processes that make the items of the next batches, for data sets that decode files. Any number gives
        the same bits, provided that ``dataset[i]`` is a function of ``i`` alone.
    checkpoint
        File of the checkpoint; written at the end and when a signal stops the run.
    checkpoint_every
        Also written after each multiple of this many steps.
    resume
        Go on from ``checkpoint`` if that file exists.
    on_step
        Called as ``on_step(steps_done, loss)`` after each step.

    Returns
    -------
    FitResult
        Steps, losses and time.

    Raises
    ------
    ValueError
        If a count is out of range, ``checkpoint`` is missing where another option needs it, or the
        checkpoint belongs to a run with other parts or other batches.
    CheckpointError
        If the checkpoint is damaged or not one of ``fit``.
    FloatingPointError
        If the loss is NaN or infinite; the weights are those before that step.
    Interrupted
        After SIGINT or SIGTERM: the step was finished and the checkpoint saved. A second signal acts at once.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import data, training
    >>> digits = data.load("digits")
    >>> model = training.SmallConvNet(dim=10)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    >>> loss_fn = torch.nn.CrossEntropyLoss()
    >>> result = training.fit(
    ...     model, loss_fn, digits.train, total_steps=3, optimizer=optimizer, batch_classes=10
    ... )
    >>> result.steps, len(result.losses)
    (3, 3)
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    target = _checked_target(total_steps, checkpoint, checkpoint_every, resume)
    sampler = ClassBalancedSampler(dataset.labels, classes=batch_classes, per_class=per_class, seed=seed)
    device = device_of(model)
    candidates = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loss": loss_fn,
        "miner": miner,
        "sampler": sampler,
    }
    parts: dict[str, Any] = {name: part for name, part in candidates.items() if hasattr(part, "state_dict")}
    losses: list[float] = []
    if resume and target is not None and target.exists():
        losses = _restore(target, parts, device)
    resumed_at = len(losses)
    if not model.training:
        model.train()

    def save() -> None:
        if target is not None:
            state = {name: part.state_dict() for name, part in parts.items()}
            # Workers draw ahead of the training: what counts is the batches that were trained on.
            state["sampler"] = sampler.state_dict() | {"position": len(losses)}
            state["losses"] = torch.tensor(losses, dtype=torch.float64)
            state["random"] = random_streams(device)
            save_checkpoint(target, state)

    started = time.perf_counter()
    with first_signal() as signals, closing(_batches(dataset, sampler, workers)) as batches:
        while len(losses) < total_steps and not signals:
            if (
                checkpoint_every is not None
                and len(losses) > resumed_at
                and len(losses) % checkpoint_every == 0
            ):
                save()
            inputs, labels = next(batches)
            labels = labels.to(device)
            outputs = model(inputs.to(device))
            mined = () if miner is None else (miner(outputs, labels),)
            loss = loss_fn(outputs, labels, *mined)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss of step {len(losses) + 1} is {value}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(value)
            if on_step is not None:
                on_step(len(losses), value)
        save()
        if signals:
            raise Interrupted(signals[0], step=len(losses), saved_to=None if target is None else str(target))
    return FitResult(len(losses), resumed_at, tuple(losses), time.perf_counter() - started)


def _batches(
    dataset: Any, sampler: ClassBalancedSampler, workers: int
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Batches without end. The loader has a generator of its own: it would draw from torch's global one."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        generator=torch.Generator(),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_parent,
    )
    while True:
        yield from loader


def _checked_target(
    total_steps: int, checkpoint: str | os.PathLike[str] | None, checkpoint_every: int | None, resume: bool
) -> Path | None:
    """Refuse what would fail only after hours: bad counts, and a folder that cannot take the checkpoint."""
    if total_steps < 0:
        raise ValueError(f"total_steps must not be negative, got {total_steps}")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if checkpoint is None:
        if resume or checkpoint_every is not None:
            raise ValueError("resume and checkpoint_every need a checkpoint file, got checkpoint=None")
        return None
    target = Path(checkpoint)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder of the checkpoint does not exist: {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"folder of the checkpoint is not writable: {target.parent}")
    return target


def _restore(path: Path, parts: dict[str, Any], device: torch.device) -> list[float]:
    """Load every part and the random streams; the losses so far."""
    state = load_checkpoint(path)
    if not {"losses", "random", "sampler"} <= state.keys():
        raise CheckpointError(f"{path} is a checkpoint, but not one of training.fit")
    saved = state.keys() - {"losses", "random"}
    if saved != parts.keys():
        raise ValueError(f"{path} holds {sorted(saved)}, this run has {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    restore_random_streams(state["random"], device)
    return [float(loss) for loss in state["losses"].tolist()]
