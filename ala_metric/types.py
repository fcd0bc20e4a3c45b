"""Floor 0: the protocols and small frozen records that every other floor shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

Impl = Literal["auto", "native", "strips", "reference"]
Precision = Literal["fp32", "tf32", "bf16"]
Reduction = Literal["none", "mean"]
RankImpl = Literal["auto", "native", "strips", "reference", "faiss"]
StepRule = Literal["additive", "multiplicative"]


class AlaMetricError(Exception):
    """Base of the errors that are this package's own."""


class CheckpointError(AlaMetricError):
    """A checkpoint or policy file is damaged, truncated, or of another kind than asked for."""


@dataclass(frozen=True)
class PhiSpec:
    """Range and step rule of one loss parameter.

    A step of size ``b`` moves an additive parameter to ``value + b`` and a multiplicative one to
    ``value * exp(b)``. Steps that would leave ``[low, high]`` are not available to the controller.

    Parameters
    ----------
    name
        Shown in logs and plots.
    low, high
        Closed range of the parameter, in its own unit.
    rule
        ``"additive"`` or ``"multiplicative"``.
    scale
        Every step is multiplied by it: parameters of one loss may move at different speeds.

    Raises
    ------
    ValueError
        If the range is empty or not finite, the rule unknown, a multiplicative range not positive, or the
        scale not positive and finite.

    Examples
    --------
    >>> spec = PhiSpec("phi_1", 0.0, 1.0, "additive")
    >>> spec.step(0.95, 0.1), spec.allows(0.95, 0.1)
    (1.05, False)
    """

    name: str
    low: float
    high: float
    rule: StepRule = "additive"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in ("additive", "multiplicative"):
            raise ValueError(
                f"rule of {self.name!r} must be 'additive' or 'multiplicative', got {self.rule!r}"
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"range of {self.name!r} needs finite low < high, got low={self.low}, high={self.high}"
            )
        if self.rule == "multiplicative" and self.low <= 0:
            raise ValueError(f"multiplicative range of {self.name!r} needs low > 0, got low={self.low}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale of {self.name!r} must be positive and finite, got {self.scale}")

    def step(self, value: float, size: float) -> float:
        """Value after one step of ``size`` times the scale (not clipped to the range)."""
        size *= self.scale
        return value + size if self.rule == "additive" else value * math.exp(size)

    def allows(self, value: float, size: float) -> bool:
        """Whether the step stays inside the range, up to the rounding errors of :meth:`slack`."""
        below, above = self.slack()
        return self.low - below <= self.step(value, size) <= self.high + above

    def slack(self) -> tuple[float, float]:
        """What is forgiven below low and above high: rounding errors of a walk of float32 steps.

        They are relative to the value where steps multiply: 1e-6 of the bound. Where steps add, they are
        relative to the widest value: 1e-6 of the range, but never more than 1e-3 of a bound that is not 0.
        """
        if self.rule == "multiplicative":
            return 1e-6 * self.low, 1e-6 * self.high
        wide = 1e-6 * (self.high - self.low)
        low, high = (min(wide, 1e-3 * abs(bound)) if bound else wide for bound in (self.low, self.high))
        return low, high

    def clip(self, value: float) -> float:
        """Nearest value inside the range."""
        return min(max(value, self.low), self.high)

    def share(self, value: float) -> float:
        """Place of the value between low (0) and high (1); a multiplicative range is taken in logarithms."""
        low, high = self.low, self.high
        if self.rule == "multiplicative":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def value(self, share: float) -> float:
        """Value at a share of the way from low to high: the inverse of :meth:`share`, clipped."""
        if self.rule == "multiplicative":
            return self.clip(self.low * (self.high / self.low) ** share)
        return self.clip(self.low + share * (self.high - self.low))


class _Found(type(Protocol)):  # type: ignore[misc]
    """``isinstance`` by ``hasattr``: since Python 3.12 that of a protocol does not see a module's buffers."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return all(hasattr(instance, name) for name in ("phi", "phi_spec", "set_phi", "statistics"))


@runtime_checkable
class AdaptiveLoss(Protocol, metaclass=_Found):
    """What the controller needs from a loss: parameters it may move, and statistics to decide by.

    ``phi`` is a buffer with ``len(phi_spec)`` elements that the loss reads on every forward.
    """

    phi: torch.Tensor
    phi_spec: tuple[PhiSpec, ...]

    def set_phi(self, phi: torch.Tensor) -> None:
        """Replace the parameters in place; ValueError on a wrong length, NaN or a value out of range."""
        ...

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """``[n_params, s]`` numbers that describe the validation outputs, ``s`` per parameter."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A number to be improved: called with (outputs, targets) of a validation set."""

    name: str
    higher_is_better: bool

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Evaluate the metric."""
        ...


@runtime_checkable
class Logger(Protocol):
    """Receives one record per controller step."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one record: plain numbers, strings and lists."""
        ...


@dataclass(frozen=True)
class Decision:
    """What a scheme did at one controller step.

    Parameters
    ----------
    phi
        New parameters, in their own units.
    action
        The step of each parameter: -beta, 0 or +beta (no step where the scheme takes none).
    entropy
        Mean entropy per parameter of the distribution that the action was drawn from, in nats.

    Examples
    --------
    >>> Decision(phi=(0.6,), action=(0.1,), entropy=1.0986).phi
    (0.6,)
    """

    phi: tuple[float, ...]
    action: tuple[float, ...]
    entropy: float


@runtime_checkable
class Scheme(Protocol):
    """Moves the parameters of a loss while a model trains: the controller, or a baseline.

    Parameters travel as Python floats, so a scheme owns all its rounding and needs no device.
    """

    uses_statistics: bool

    def start(self, phi: Sequence[float]) -> tuple[float, ...]:
        """Parameters to begin the run with."""
        ...

    def step(
        self, phi: Sequence[float], statistics: torch.Tensor | None, reward: float | None, progress: float
    ) -> Decision:
        """Learn from the reward of the previous action (None: unknown), then act."""
        ...

    def drop(self) -> None:
        """Forget the previous action: its reward cannot be known."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, as tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        ...


class Record:
    """A dataclass that is readable by attribute and by key, so that ``dict(record)`` works."""

    def keys(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(entry.name for entry in fields(self))  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True)
class StepRecord(Record):
    """One controller step, readable by attribute and by key.

    Parameters
    ----------
    step
        Training iterations done when the step was taken.
    metric
        Latest value of the metric, in its own unit and direction.
    error
        Discounted mean error since the previous step (Eq. 4); lower is better.
    reward
        Earned by the previous action (Eq. 5); None where it is not known.
    action
        The step of each parameter: -beta, 0 or +beta. Empty for more than 4,096 parameters.
    phi
        Parameters after the action. Empty for more than 4,096.
    entropy
        Of the scheme's actions, in nats per parameter; None if the metric was not usable.
    seconds
        Wall-clock time spent on validation and on the controller; left out of comparisons.
    summary
        For more than 4,096 parameters what :func:`~ala_metric.controller.summary_of` says of them, else None.

    Examples
    --------
    >>> record = StepRecord(200, 0.4, -0.4, None, (0.1,), (0.6,), 1.09, 0.02)
    >>> record["step"], record.phi, dict(record)["action"]
    (200, (0.6,), (0.1,))
    """

    step: int
    metric: float
    error: float
    reward: int | None
    action: tuple[float, ...]
    phi: tuple[float, ...]
    entropy: float | None
    seconds: float = field(compare=False)
    summary: dict[str, Any] | None = field(default=None, hash=False)
