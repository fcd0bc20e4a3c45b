"""What a training did."""

from __future__ import annotations

from dataclasses import dataclass, field

from .arm import Phi, StageRecord
from .meter import Meter


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
    phi
        Loss parameters at the end; of the winner, where several children trained. Empty for a loss that has
        none.
    phi_history
        ``(step, phi)`` of the line that leads to the final weights: the steps after ``step`` were trained
        with ``phi``, up to the next entry.
    records
        One per rung or fork: its arms, their metrics and rewards, where their parameters came from, and who
        lived. Empty without children.
    compute
        Training steps of all branches, validation and hypergradients;
        ``compute.in_units_of(total_steps)`` is the compute in full trainings, where a forward-only pass
        counts as a third of a training sample.

    Examples
    --------
    >>> FitResult(steps=2, resumed_at=0, losses=(1.0, 0.5), seconds=0.1).losses[-1]
    0.5
    """

    steps: int
    resumed_at: int
    losses: tuple[float, ...]
    seconds: float
    phi: Phi = ()
    phi_history: tuple[tuple[int, Phi], ...] = ()
    records: tuple[StageRecord, ...] = ()
    compute: Meter = field(default_factory=Meter)
