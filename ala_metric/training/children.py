"""From the arguments of ``fit`` to a run with children."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from .._arguments import check_phi_in_range
from .._phi import read_phi
from ..ala_loss import ALALoss
from .arm import Strategy
from .batches import SharedBatches
from .checkpoint import save_checkpoint
from .hypergradient import Hypergradient
from .interrupt import Interrupted, first_signal
from .measure import Measure, by_first, counted, smooth_metric
from .meter import Meter
from .paired import Paired, PairedSettings
from .paper import PaperChildren
from .parts import Parts
from .processes import Processes
from .race import Race, RaceSettings
from .result import FitResult
from .stacked import check_stackable
from .stages import Stages, Stopped
from .store import Store
from .validation import half

Mode = Literal["paper", "paired", "race"]
_LOSS_MODE = {"paper": "paper", "paired": "fixed", "race": "fixed"}


def check_mode(mode: Any, loss_fn: Any, children: int, total_steps: int) -> None:
    """Refuse a mode that the loss cannot train in."""
    if getattr(loss_fn, "step_on", "forward") != "forward":
        raise ValueError(
            f"fit counts forward calls: loss_fn needs step_on='forward', got {loss_fn.step_on!r}"
        )
    if mode is None:
        if children != 1:
            raise ValueError(f"children={children} needs mode='paper', got mode=None")
        return
    if mode not in _LOSS_MODE:
        raise ValueError(f"mode must be None or one of {tuple(_LOSS_MODE)}, got {mode!r}")
    if not isinstance(loss_fn, ALALoss):
        raise TypeError(f"mode={mode!r} needs an ALALoss as loss_fn, got {type(loss_fn).__name__}")
    if loss_fn.mode != _LOSS_MODE[mode]:
        raise ValueError(
            f"mode={mode!r} needs a loss in mode {_LOSS_MODE[mode]!r}, got one in mode {loss_fn.mode!r}"
        )
    if children < 1 or (children > 1 and mode != "paper"):
        raise ValueError(f"children must be at least 1, and more than 1 in mode 'paper' only; got {children}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1 in mode={mode!r}, got {total_steps}")
    if mode == "paper" and loss_fn.total_steps != total_steps:
        raise ValueError(f"the loss was made for total_steps={loss_fn.total_steps}, got {total_steps}")
    check_phi_in_range(read_phi(loss_fn.loss), loss_fn.phi_spec)


def make_strategy(
    mode: Mode | None,
    loss_fn: Any,
    total_steps: int,
    seed: int,
    budget: float,
    children: int,
    race: RaceSettings | None,
    paired: PairedSettings | None,
) -> Strategy:
    """The strategy of a mode with children."""
    if mode == "paper":
        return PaperChildren(loss_fn, children, total_steps)
    if mode == "paired":
        return Paired(paired or PairedSettings(), total_steps, loss_fn.loss, seed)
    groups = getattr(loss_fn.loss, "phi_groups", ())
    return Race(race or RaceSettings(), budget, total_steps, tuple(loss_fn.phi_spec), groups, seed)


def fit_children(
    parts: Parts,
    strategy: Strategy,
    batches: SharedBatches,
    target: Path | None,
    checkpoint_every: int | None,
    resume: bool,
    on_step: Callable[[int, float], None] | None,
    processes: Processes,
    vectorised: bool = False,
) -> FitResult:
    """Train the children of a strategy; the winner's weights are in the model at the end."""
    loss_fn: Any = parts.loss_fn
    paper = strategy if isinstance(strategy, PaperChildren) else None
    parts = Parts(
        parts.model,
        paper.own if paper else loss_fn.loss,
        parts.optimizer,
        parts.scheduler,
        parts.miner,
        parts.team,
    )
    if vectorised:
        check_stackable(parts)
    team = parts.team
    if paper and (processes.size > 1 or team):  # as the weights: those of the first process count
        state = paper.state_dict()
        paper.load_state_dict(processes.share(team.share(state, owner=0) if team else state, owner=0))
    meter = Meter()
    settings = getattr(strategy, "settings", None)
    at_end = Measure(loss_fn.validate, loss_fn.metric, loss_fn.loss, meter)
    metric = getattr(settings, "metric", None) or smooth_metric(loss_fn.metric)
    validate, part = getattr(settings, "validate", None), "given"
    if validate is None:  # paper's children measure themselves, on all of it
        validate, part = half(loss_fn.validate, metric, batches.sampler.seed)
    hypergradient = getattr(settings, "hypergradient", None)
    if team is not None:
        if hypergradient is not None:
            raise NotImplementedError("hypergradients of a child that several processes train")
        if getattr(settings, "validate", None) is not None:
            validate = by_first(validate, team)
    task = {
        "kind": type(strategy).__name__,
        "ends": list(strategy.ends),
        "phi_spec": [[spec.name, spec.low, spec.high, spec.rule] for spec in loss_fn.phi_spec],
        "parts": sorted(parts.stateful),
        "processes": processes.size,
        "sampler": batches.sampler.state_dict() | {"position": 0},
    }
    store = Store(target if team is None or team.rank == 0 else None, checkpoint_every, task, processes)
    saved = store.load() if resume and (team is None or team.rank == 0) else None
    if team is not None:
        saved = team.share({"saved": saved}, owner=0)["saved"]
    started = time.perf_counter()
    if not parts.model.training:
        parts.model.train()
    with first_signal() as signals, counted(loss_fn if paper else None, meter):

        def stopping() -> bool:
            return bool(signals) if team is None else team.totals([float(bool(signals))])[0] > 0

        def interrupted() -> Interrupted:
            where = None if store.path is None else str(store.path)
            number = int(signals[0]) if signals else int(signal.SIGTERM)  # of another process of the team
            return Interrupted(number, step=meter.training_steps, saved_to=where)

        stages = Stages(
            parts,
            loss_fn.loss,
            strategy,
            batches,
            Measure(validate, metric, loss_fn.loss, meter, part),
            at_end,
            meter,
            processes,
            store,
            None if hypergradient is None else Hypergradient(hypergradient),
            paper=paper,
            on_step=on_step,
            stopping=stopping,
            vectorised=vectorised,
        )
        if saved is None:
            stages.begin()
        else:
            stages.load_state_dict(saved)
        resumed_at = meter.training_steps
        try:
            winner = stages.run()
        except Stopped:
            store.save(stages.state_dict())
            raise interrupted() from None
        if store.path is not None:
            state = {"task": task, "stages": stages.state_dict(), "model": parts.model.state_dict()}
            save_checkpoint(store.path, state)
        totals = processes.totals([float(value) for value in meter.state_dict().values()])
        if stopping():  # after all exchanges: the others are not left waiting
            raise interrupted()
    total = Meter(**{k: type(getattr(meter, k))(v) for k, v in zip(meter.state_dict(), totals)})
    return FitResult(
        winner.step,
        resumed_at,
        tuple(winner.losses),
        time.perf_counter() - started,
        phi=tuple(read_phi(loss_fn.loss)),
        phi_history=tuple(winner.phi_history),
        records=tuple(stages.records),
        compute=total,
    )
