"""A child: one line of training with its own weights and loss parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch

from ..types import Record

Phi = tuple[float, ...]


@dataclass(frozen=True)
class Branch:
    """What a strategy asks for: an arm of the next stage.

    Parameters
    ----------
    phi
        Its loss parameters, in their own units.
    source
        Where they come from, for the records.
    parent
        Index, among the arms of the stage that ended, of the one whose weights it takes; None for the start.
    moving
        Whether hypergradients move its parameters during the stage.
    """

    phi: Phi
    source: str
    parent: int | None = None
    moving: bool = False


@dataclass
class Arm:
    """A branch that trains.

    Parameters
    ----------
    number
        Its number, unique in the run.
    phi, source, moving
        As in :class:`Branch`; ``phi`` follows what moves it.
    parent
        Number of the arm whose weights it took.
    step
        Steps its line of training has done.
    losses
        The loss of each of them.
    phi_history
        ``(step, phi)``: which parameters the steps after ``step`` were trained with.
    snapshot
        Everything that a step changes; None before the first step and for arms that are no longer needed.
    metric
        Measured at the end of the stage, in its own unit and direction.
    score
        The same, higher is better.
    statistics
        Of the loss on the validation set, where the strategy asks for them.
    failed
        Why the arm was dropped; empty for one that lives.
    memory
        Of the hypergradient's step rule.
    """

    number: int
    phi: Phi
    source: str
    parent: int | None = None
    moving: bool = False
    step: int = 0
    losses: list[float] = field(default_factory=list)
    phi_history: list[tuple[int, Phi]] = field(default_factory=list)
    snapshot: dict[str, Any] | None = None
    metric: float | None = None
    score: float | None = None
    statistics: torch.Tensor | None = None
    failed: str = ""
    memory: dict[str, Any] = field(default_factory=dict)

    def follow(self, phi: Sequence[float]) -> None:
        """Note that the next steps are trained with these parameters."""
        self.phi = tuple(phi)
        if not self.phi_history or self.phi_history[-1][1] != self.phi:
            self.phi_history.append((self.step, self.phi))

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data; tensors are shared, not copied."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return state | {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Arm:
        """The arm of a :meth:`state_dict`."""
        history = [(int(step), tuple(phi)) for step, phi in state["phi_history"]]
        return cls(**{**state, "losses": state["losses"].tolist(), "phi_history": history})


@dataclass(frozen=True)
class ArmRecord:
    """One arm in the record of a stage.

    Parameters
    ----------
    number, parent, source
        Which arm, whose weights it took, and where its parameters came from.
    phi
        Its parameters at the end of the stage.
    metric
        Measured there, in its own unit; None if it was not.
    reward
        ``(metric - mean of siblings) / sd``, higher is better; None if not known.
    lives
        Whether its weights go on.
    failed
        Why it was dropped, or empty.

    Examples
    --------
    >>> ArmRecord(0, None, "start", (1.0,), 0.4, 1.0, True, "").lives
    True
    """

    number: int
    parent: int | None
    source: str
    phi: Phi
    metric: float | None
    reward: float | None
    lives: bool
    failed: str


@dataclass(frozen=True)
class StageRecord(Record):
    """One rung of a race, or one fork: its arms, and who lived; readable by attribute and by key.

    Parameters
    ----------
    stage
        Number of the stage, from 0.
    start, end
        Steps done at its beginning and end.
    arms
        The arms that trained in it.
    dropped
        How many of them diverged or had no usable metric.
    overhead
        Share of the measured time, so far, that went into validation and hypergradients; left out of
        comparisons.
    validation
        What its arms were measured on: ``"all"`` of the validation set, a half such as ``"87 of 173
        classes"`` or ``"520 of 1040 samples"``, what was ``"given"``, or nothing.

    Examples
    --------
    >>> StageRecord(0, 0, 50, (), 0, 0.1)["end"]
    50
    """

    stage: int
    start: int
    end: int
    arms: tuple[ArmRecord, ...]
    dropped: int
    overhead: float = field(compare=False)
    validation: str = ""


class Strategy(Protocol):
    """Decides which arms train, and which go on: a race, forks, or children that share a controller.

    ``ends`` holds the step at which each stage ends; the last is the end of the run. All state, its random
    generator included, is in ``state_dict()``; equal states decide equally.
    """

    ends: tuple[int, ...]
    wants_statistics: bool

    def first(self, phi: Phi) -> list[Branch]:
        """Arms of the first stage."""
        ...

    def measured(self, stage: int) -> bool:
        """Whether the arms of a stage are validated at its end."""
        ...

    def keeps(self, stage: int) -> int:
        """How many of the best arms of a stage may be needed afterwards."""
        ...

    def after(self, stage: int, arms: Sequence[Arm]) -> list[Branch]:
        """Arms of the next stage, by the scores of this one; after the last stage the winner alone."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to decide alike."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        ...
