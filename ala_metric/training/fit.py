"""The training loop: class-balanced batches, one loss, checkpoints, exact resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._arguments import integer
from .._phi import read_phi
from ..ala_loss import ALALoss
from ..controller import MANY
from ..data import ClassBalancedSampler
from ..types import CheckpointError
from .arguments import check_fit, check_settings_of, checked_target
from .arm import Phi
from .batches import SharedBatches, endless_batches
from .checkpoint import check_plain, load_checkpoint, save_checkpoint
from .children import Mode, check_mode, fit_children, make_strategy
from .embed import device_of
from .interrupt import Interrupted, first_signal
from .measure import counted, validated_by_first
from .meter import Meter
from .paired import PairedSettings
from .parts import Parts
from .processes import Processes
from .race import RaceSettings
from .random_streams import random_streams
from .result import FitResult

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class LabelledDataset(Protocol):
    """A map-style data set that knows its labels, such as :class:`ala_metric.data.ImageSet`."""

    @property
    def labels(self) -> torch.Tensor:
        """The class of each item, int64 ``[N]``."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...


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
    mode: Mode | None = None,
    budget: float = 4.0,
    children: int = 1,
    race: RaceSettings | None = None,
    paired: PairedSettings | None = None,
    vectorised: bool = False,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    mesh: DeviceMesh | None = None,
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
    mode
        Who moves the loss parameters. None leaves it to the loss. The modes need an
        :class:`ala_metric.ALALoss` as ``loss_fn`` and use its ``validate`` and ``metric``. ``"paper"``: as
        published, by a loss in its own mode ``"paper"``, with ``children`` that share its controller.
        ``"paired"``: the run forks, and the better branch goes on. ``"race"``: many sets of parameters race.
        The last two need a loss in mode ``"fixed"``; they start at its parameters and drive them by
        ``set_phi``.
    budget
        Compute of a race in full trainings, about; see :class:`RaceSettings`.
    children
        Models that share the controller in mode ``"paper"``.
    race, paired
        Settings of these modes; None for the defaults.
    vectorised
        Train the arms of a race or fork at once, by ``torch.func.vmap`` over the network. Faster for small
        perceptrons, slower for convolutions on a CPU; see Notes.
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
        Called as ``on_step(steps_done, loss)`` after each step; with children, the steps of all of them.
    mesh
        Two dimensions named ``("child", "data")``: children are divided along the first, and the processes
        along the second train one child together. See the notes.

    Returns
    -------
    FitResult
        Steps, losses and time.

    Raises
    ------
    ValueError
        If a count is out of range, ``checkpoint`` is missing where another option needs it, settings are
        given of another mode, the loss starts outside of the ranges of its ``phi_spec``, or the checkpoint
        belongs to a run with other parts or other batches.
    TypeError
        If a part lacks what is needed, a count is no integer, or a checkpoint could not hold the state of a
        part, such as a buffer of a subclass of torch.Tensor.
    OSError
        If the folder of the checkpoint is missing or read-only, or ``checkpoint`` is a folder.
    CheckpointError
        If the checkpoint is damaged or not one of ``fit``.
    FloatingPointError
        If the loss is NaN or infinite, or refuses outputs that are; the weights are those before that step.
    Interrupted
        After SIGINT or SIGTERM: the step was finished and the checkpoint saved, also where it was the last
        step or the last validation. A second signal acts at once.

    Notes
    -----
    *Children.* All begin with the same weights, optimizer and random streams and see the same batches. They
    train one after the other in the one ``model``, which holds the winner's weights at the end; the others
    wait as copies of weights and optimizer, so memory grows with the arms that may still win. A child whose
    loss or metric is not finite is dropped, and counted in the records. Under torch.distributed the children
    of every mode are divided over the processes, with the same bits as in one process; each process writes a
    checkpoint file of its own beside ``checkpoint``, and ``validate`` must not use collectives. In mode
    ``"paper"`` all children act by one policy, each with a stream of draws of its own; after every K steps
    their episodes are learned from in the order of the children, in every process alike. The paper gives
    each child an initialisation of its own (Algorithm 1); here all share weights and batches, so that they
    differ by their parameters alone. The loss's logger hears the children of rank 0.

    *One child on several devices.* With a ``mesh`` each process of a ``"data"`` group computes the loss of
    its share of every batch; gradients are averaged before the optimizer's step, and the first process of the
    group validates for it. That is the training of one process up to rounding where the loss is a mean over
    samples, or a :class:`ala_metric.losses.DistributedLoss` with ``group=mesh.get_group("data")``, and the
    model treats samples one by one (batch norm: ``SyncBatchNorm`` with that group). The model is given as it
    is, not in DistributedDataParallel. All processes of a group draw the same random numbers. Without
    ``miner`` (``DistributedLoss`` has one) and hypergradients.

    *Vectorised.* The same numbers up to the rounding of batched products, and the same bits whenever the
    vectorised run is repeated or resumed. Memory for the activations of all arms of a stage. The optimizer
    must be elementwise (those of torch except LBFGS, ASGD, Adafactor and Muon; PowerSign) and train the
    weights of the model alone; the network must run under ``vmap``: no data-dependent control flow, no
    BatchNorm with ``momentum=None``. Random numbers in the network are common to all arms, as in turn.

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
    check_fit(model, loss_fn, dataset, optimizer, scheduler, miner, on_step)
    total_steps, workers = integer("total_steps", total_steps), integer("workers", workers)
    batch_classes, per_class = integer("batch_classes", batch_classes), integer("per_class", per_class)
    seed, children = integer("seed", seed), integer("children", children)
    if checkpoint_every is not None:
        checkpoint_every = integer("checkpoint_every", checkpoint_every)
    for name, count in (("total_steps", total_steps), ("workers", workers)):
        if count < 0:
            raise ValueError(f"{name} must not be negative, got {count}")
    target = checked_target(checkpoint, checkpoint_every, resume)
    check_settings_of(mode, race, paired)
    sampler = ClassBalancedSampler(dataset.labels, classes=batch_classes, per_class=per_class, seed=seed)
    check_mode(mode, loss_fn, children, total_steps)
    if vectorised and (mode not in ("paired", "race") or mesh is not None):
        where = f"mode={mode!r}" if mesh is None else "a mesh"
        raise ValueError(f"vectorised=True needs mode='race' or 'paired' without a mesh, got {where}")
    device = device_of(model)
    processes, team = Processes(device), None
    if mesh is not None:
        if mode is None or (mode == "paper" and children == 1):
            raise ValueError(f"mesh needs several children, got mode={mode!r} and children={children}")
        processes, team = _on_mesh(mesh, device, batch_classes * per_class, miner)
    parts = Parts(model, loss_fn, optimizer, scheduler, miner, team)
    if target is not None and not any(is_lazy(value) for value in model.parameters()):
        check_plain(parts.state_dict(), "state")
    if mode in ("paired", "race") or children > 1:
        strategy = make_strategy(mode, loss_fn, total_steps, seed, budget, children, race, paired)
        batches = SharedBatches(dataset, sampler, workers)
        with validated_by_first(loss_fn, team):
            return fit_children(
                parts, strategy, batches, target, checkpoint_every, resume, on_step, processes, vectorised
            )
    return _fit_alone(
        parts, dataset, sampler, workers, total_steps, target, checkpoint_every, resume, on_step
    )


def _on_mesh(mesh: DeviceMesh, device: torch.device, rows: int, miner: Any) -> tuple[Processes, Processes]:
    """Processes among which the children are divided, and those that train one child together."""
    if mesh.mesh_dim_names != ("child", "data"):
        raise ValueError(f"mesh must have the dimensions ('child', 'data'), got {mesh.mesh_dim_names}")
    if miner is not None:
        raise ValueError("with a mesh give the miner to DistributedLoss, which sees the whole batch")
    processes, team = (Processes(device, mesh.get_group(name)) for name in ("child", "data"))
    if rows % team.size:
        raise ValueError(
            f"a batch of {rows} samples cannot be shared equally by the {team.size} processes of 'data'"
        )
    return processes, team


def _fit_alone(
    parts: Parts,
    dataset: LabelledDataset,
    sampler: ClassBalancedSampler,
    workers: int,
    total_steps: int,
    target: Path | None,
    checkpoint_every: int | None,
    resume: bool,
    on_step: Callable[[int, float], None] | None,
) -> FitResult:
    """One line of training."""
    model, loss_fn = parts.model, parts.loss_fn
    losses: list[float] = []
    meter = Meter()
    phi_history: list[tuple[int, Phi]] = []
    if resume and target is not None and target.exists():
        losses = _restore(target, parts, sampler, meter, phi_history)
    resumed_at = len(losses)
    if not model.training:
        model.train()

    def save() -> None:
        if target is not None:
            state = parts.state_dict()
            # Workers draw ahead of the training: what counts is the batches that were trained on.
            state["sampler"] = sampler.state_dict() | {"position": len(losses)}
            state["losses"] = torch.tensor(losses, dtype=torch.float64)
            state["random"] = random_streams(parts.device)
            state["meter"] = meter.state_dict()
            state["phi_history"] = [[step, list(phi)] for step, phi in phi_history]
            save_checkpoint(target, state)

    started = time.perf_counter()
    with (
        first_signal() as signals,
        closing(endless_batches(dataset, sampler, workers)) as batches,
        counted(loss_fn, meter),
    ):
        while len(losses) < total_steps and not signals:
            if (
                checkpoint_every is not None
                and len(losses) > resumed_at
                and len(losses) % checkpoint_every == 0
            ):
                save()
            inputs, labels = next(batches)
            begin, validating = time.perf_counter(), meter.validation_seconds
            value = parts.step(len(losses) + 1, inputs, labels)
            _note_phi(phi_history, len(losses), loss_fn)
            losses.append(value)
            meter.training_steps += 1
            meter.training_items += len(labels)
            meter.training_seconds += time.perf_counter() - begin - (meter.validation_seconds - validating)
            if on_step is not None:
                on_step(len(losses), value)
        save()
        if signals:
            raise Interrupted(signals[0], step=len(losses), saved_to=None if target is None else str(target))
    return FitResult(
        len(losses),
        resumed_at,
        tuple(losses),
        time.perf_counter() - started,
        phi=tuple(_phi_of(loss_fn)),
        phi_history=tuple(phi_history),
        compute=meter,
    )


def _note_phi(history: list[tuple[int, Phi]], step: int, loss_fn: Any) -> None:
    """Remember the parameters that the step after ``step`` was trained with, where they are new."""
    phi = tuple(_phi_of(loss_fn))
    if phi and (not history or history[-1][1] != phi):
        history.append((step, phi))


def _phi_of(loss_fn: Any) -> Sequence[float]:
    """Parameters of an adaptive loss; none where there are too many for a record."""
    return read_phi(loss_fn.loss) if isinstance(loss_fn, ALALoss) and len(loss_fn.phi_spec) <= MANY else ()


def _restore(
    path: Path,
    parts: Parts,
    sampler: ClassBalancedSampler,
    meter: Meter,
    phi_history: list[tuple[int, Phi]],
) -> list[float]:
    """Load every part and the random streams; the losses so far."""
    state = load_checkpoint(path)
    extra = {"losses", "random", "sampler", "meter", "phi_history"}
    found = state.keys() - {"hidden"}  # older checkpoints have none
    if not extra <= state.keys():
        raise CheckpointError(f"{path} is a checkpoint, but not one of training.fit")
    saved = found - extra
    if saved != parts.stateful.keys():
        raise ValueError(f"{path} holds {sorted(saved)}, this run has {sorted(parts.stateful)}")
    sampler.load_state_dict(state["sampler"])
    parts.restore(state)
    meter.load_state_dict(state["meter"])
    phi_history += [(int(step), tuple(phi)) for step, phi in state["phi_history"]]
    return [float(loss) for loss in state["losses"].tolist()]
