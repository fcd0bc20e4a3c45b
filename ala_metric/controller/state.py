"""What the policy sees of each loss parameter (Sec. 3.2, "State space")."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from .._arguments import check_statistics
from ..types import PhiSpec

HISTORY = 10
EMA_DECAY = 0.9
LIMIT = 10.0


def state_width(statistics_width: int, identities: int = 0) -> int:
    """Numbers in one parameter's state: 10 past statistics, change, phi, progress, identity.

    Parameters
    ----------
    statistics_width
        Statistics per parameter and step.
    identities
        Length of the one-hot identity, 0 for none.

    Returns
    -------
    int
        ``11 * statistics_width + 2 + identities``.

    Examples
    --------
    >>> state_width(1), state_width(2, identities=10)
    (13, 34)
    """
    return (HISTORY + 1) * statistics_width + 2 + identities


def range_coordinate(spec: PhiSpec, value: float) -> float:
    """Place of a parameter in its range, from -1 (low) to 1 (high), in the geometry of its steps.

    Parameters
    ----------
    spec
        Range and step rule; a multiplicative range is measured in logarithms.
    value
        The parameter, in its own unit.

    Returns
    -------
    float
        A coordinate without unit.

    Examples
    --------
    >>> range_coordinate(PhiSpec("a", 0.0, 4.0), 3.0)
    0.5
    >>> range_coordinate(PhiSpec("b", 0.5, 50.0, "multiplicative"), 5.0)
    0.0
    """
    return 2.0 * spec.share(value) - 1.0


class StateHistory:
    """Remembers the validation statistics of one training run and turns them into policy states.

    Each statistic is divided by the running mean of its own magnitude and its change is taken relative to its
    exponential moving average, so the state does not depend on the scale of the task. A missing past repeats
    the oldest statistic that is known.

    Parameters
    ----------
    phi_spec
        One entry per parameter.
    statistics_width
        Statistics per parameter and step, ``s``.
    identity
        Whether a one-hot vector tells the parameters apart (then the policy fits this number of them only).
    standardized
        Whether the loss already delivers scale-free statistics, such as z-scores across parameters. They are
        used as they are, since dividing each by its own magnitude would hide how the parameters compare.

    Examples
    --------
    >>> history = StateHistory((PhiSpec("a", 0.0, 1.0),), statistics_width=1)
    >>> history.observe(torch.tensor([[4.0]]))
    >>> history.encode([0.5], progress=0.25)[0, -4:].tolist()
    [1.0, 0.0, 0.0, 0.25]
    """

    def __init__(
        self,
        phi_spec: Sequence[PhiSpec],
        statistics_width: int,
        identity: bool = False,
        standardized: bool = False,
    ) -> None:
        self.phi_spec = tuple(phi_spec)
        self.statistics_width = statistics_width
        self.identity = identity
        self.standardized = standardized
        self.count = 0
        shape = (len(self.phi_spec), statistics_width)
        self._magnitude = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self._average = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self._change = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self._past: deque[torch.Tensor] = deque(maxlen=HISTORY)

    def observe(self, statistics: torch.Tensor) -> None:
        """Take the statistics of one controller step.

        Parameters
        ----------
        statistics
            ``[n_params, s]``, any real dtype and device.

        Raises
        ------
        ValueError
            On another shape or values that are not finite.
        TypeError
            If they are no tensor of real numbers.
        """
        check_statistics(statistics)
        values = statistics.detach().to("cpu", torch.float64)
        if values.shape != self._magnitude.shape:
            raise ValueError(
                f"statistics must have shape {list(self._magnitude.shape)}, got {list(values.shape)}"
            )
        if not torch.isfinite(values).all():
            raise ValueError("statistics must be finite")
        self.count += 1
        self._magnitude = self._magnitude + (values.abs() - self._magnitude) / self.count
        before = values if self.count == 1 else self._average
        self._change = self._scaled(values - before, before.abs())
        self._average = EMA_DECAY * before + (1.0 - EMA_DECAY) * values
        self._past.append(values.clone())

    def encode(self, phi: Sequence[float], progress: float) -> torch.Tensor:
        """State of every parameter.

        Parameters
        ----------
        phi
            Current parameters, ``n_params`` numbers.
        progress
            Iterations done / iterations of the whole run.

        Returns
        -------
        torch.Tensor
            ``[n_params, state_width]`` float32: statistics from the oldest to the newest (each in units of
            its running mean magnitude), relative change, phi in its range, progress, identity.

        Raises
        ------
        RuntimeError
            If nothing was observed yet.
        """
        if not self._past:
            raise RuntimeError("observe() the statistics of a step before encoding it")
        past = [self._past[0]] * (HISTORY - len(self._past)) + list(self._past)
        rows = len(self.phi_spec)
        coordinates = [[range_coordinate(spec, v), progress] for spec, v in zip(self.phi_spec, phi)]
        parts = [self._scaled(values, self._magnitude) for values in past]
        parts += [self._change, torch.tensor(coordinates, dtype=torch.float64, device="cpu")]
        if self.identity:
            parts.append(torch.eye(rows, dtype=torch.float64, device="cpu"))
        return torch.cat(parts, dim=1).float()

    def state_dict(self) -> dict[str, Any]:
        """Everything observed so far, as tensors and numbers."""
        return {
            "count": self.count,
            "magnitude": self._magnitude.clone(),
            "average": self._average.clone(),
            "change": self._change.clone(),
            "past": [values.clone() for values in self._past],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a history with the same shape."""
        self.count = int(state["count"])
        self._magnitude = state["magnitude"].clone()
        self._average = state["average"].clone()
        self._change = state["change"].clone()
        self._past = deque((values.clone() for values in state["past"]), maxlen=HISTORY)

    def _scaled(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Values in units of the scale (0 where that is 0), within +-10."""
        if not self.standardized:
            values = torch.where(scale > 0, values / scale, torch.zeros_like(values))
        return values.clamp(-LIMIT, LIMIT)
