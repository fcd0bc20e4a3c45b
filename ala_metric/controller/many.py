"""The controller for thousands of parameters, such as all pairs of a thousand classes.

The same policy, states and learning as :class:`Controller`, computed on columns instead of objects: states
lie feature by feature in one buffer, the policy runs over blocks of columns that fit in the cache, and the
learner remembers a random part of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from .._arguments import check_statistics
from ..types import Decision, PhiSpec
from .controller import Controller
from .learner import Episode
from .state import EMA_DECAY, HISTORY, LIMIT

MANY = 4096
"""More parameters than this travel as tensors, and are left out of the records of a run."""
REMEMBERED = 128
BLOCK = 4096


class Ranges:
    """The :class:`PhiSpec` of all parameters as float32 columns.

    Parameters
    ----------
    phi_spec
        One per parameter, all with the same step rule.
    beta
        Step size.
    """

    def __init__(self, phi_spec: Sequence[PhiSpec], beta: float) -> None:
        rules = {spec.rule for spec in phi_spec}
        if len(rules) > 1:
            raise ValueError(f"more than {MANY} parameters must have one step rule, got {sorted(rules)}")
        self.multiplicative = rules == {"multiplicative"}
        rows = [(spec.low, spec.high, spec.scale, *spec.slack()) for spec in phi_spec]
        columns = torch.tensor(rows, dtype=torch.float32, device="cpu").T.contiguous()
        self.low, self.high, scale, below, above = columns
        self.size = beta * scale
        # From the floor up there is room for a step down, from the ceiling down for one up.
        floor, ceiling = self.low - below, self.high + above
        if self.multiplicative:
            self.floor, self.ceiling = floor * self.size.exp(), ceiling * (-self.size).exp()
        else:
            self.floor, self.ceiling = floor + self.size, ceiling - self.size
        low, high = (self.low.log(), self.high.log()) if self.multiplicative else (self.low, self.high)
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    def stepped(self, values: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
        """Values after a step in the direction -1, 0 or 1, inside their ranges."""
        if self.multiplicative:
            moved = values * (way * self.size).exp_()
        else:
            moved = torch.addcmul(values, way, self.size)
        return torch.minimum(torch.maximum(moved, self.low, out=moved), self.high, out=moved)

    def coordinate(self, values: torch.Tensor) -> torch.Tensor:
        """Place in the range, from -1 to 1."""
        return ((values.log() if self.multiplicative else values) - self.middle).div_(self.half)


class ColumnHistory:
    """States of many parameters, ``[width, n]``; the past is a ring of rows.

    Parameters
    ----------
    count
        Number of parameters, n.
    statistics_width
        Statistics per parameter and step.
    standardized
        As of :class:`StateHistory`.
    """

    def __init__(self, count: int, statistics_width: int, standardized: bool) -> None:
        self.statistics_width, self.standardized = statistics_width, standardized
        self.count = 0
        shape = (statistics_width, count)
        self.past = torch.zeros(HISTORY * statistics_width, count, device="cpu")  # clamped if standardized
        self.magnitude = torch.zeros(shape, device="cpu")
        self.average = torch.zeros(shape, device="cpu")
        self.change = torch.zeros(shape, device="cpu")

    def observe(self, statistics: torch.Tensor) -> None:
        """Take the statistics ``[n, s]`` of one controller step."""
        check_statistics(statistics)
        values = statistics.detach().to("cpu", torch.float32)
        if values.shape != (self.past.shape[1], self.statistics_width):
            raise ValueError(
                f"statistics must have shape {[self.past.shape[1], self.statistics_width]}, "
                f"got {list(values.shape)}"
            )
        columns = values.T.contiguous()
        if not math.isfinite(float(columns.sum())):
            raise ValueError("statistics must be finite")
        slot, width = self.count % HISTORY, self.statistics_width
        kept = columns.clamp(-LIMIT, LIMIT) if self.standardized else columns
        if self.count == 0:
            self.past.copy_(kept.repeat(HISTORY, 1))
            self.average.copy_(columns)
        else:
            self.past[slot * width : (slot + 1) * width] = kept
        self.count += 1
        if not self.standardized:
            self.magnitude += (columns.abs() - self.magnitude) / self.count
        torch.sub(columns, self.average, out=self.change)
        if not self.standardized:
            self.change.copy_(_scaled(self.change, self.average.abs()))
        self.change.clamp_(-LIMIT, LIMIT)
        self.average.lerp_(columns, 1.0 - EMA_DECAY)

    def order(self) -> list[int]:
        """Rows of the past from the oldest to the newest."""
        width = self.statistics_width
        slots = [(self.count + place) % HISTORY for place in range(HISTORY)]
        return [slot * width + column for slot in slots for column in range(width)]

    def at(self, part: slice | torch.Tensor) -> torch.Tensor:
        """``[10 s, part]``: the past of some parameters, in the order of its rows."""
        past = self.past[:, part]
        if self.standardized:
            return past
        return _scaled(past, self.magnitude[:, part].repeat(HISTORY, 1)).clamp_(-LIMIT, LIMIT)

    def state_dict(self) -> dict[str, Any]:
        """Everything observed so far."""
        names = ("past", "magnitude", "average", "change")
        return {"count": self.count} | {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.count = int(state["count"])
        for name in ("past", "magnitude", "average", "change"):
            getattr(self, name).copy_(state[name])


class ManyController(Controller):
    """A :class:`Controller` for more than 4,096 parameters.

    Takes and returns parameters as float32 tensors. An episode remembers 128 of the parameters, drawn anew at
    each step, so memory and learning do not grow with their number; the mean over parameters that REINFORCE
    takes is estimated from them, and so is the entropy.

    Parameters
    ----------
    phi_spec, statistics_width, beta, seed, policy, freeze, settings, standardized
        As of :class:`Controller`.

    Raises
    ------
    ValueError
        As of :class:`Controller`; also if the policy tells parameters apart.

    Examples
    --------
    >>> controller = ManyController([PhiSpec("a", 0.0, 1.0)] * 5000, statistics_width=1, seed=0)
    >>> decision = controller.step(torch.full((5000,), 0.5), torch.zeros(5000, 1), None, progress=0.0)
    >>> sorted({round(value, 1) for value in decision.phi.tolist()})
    [0.4, 0.5, 0.6]
    """

    def __init__(
        self, phi_spec: Sequence[PhiSpec], statistics_width: int = 1, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(phi_spec[:0], statistics_width, *args, **kwargs)
        if self.learner.settings.identity:
            raise ValueError(f"identity=True tells at most {MANY} parameters apart, got {len(phi_spec)}")
        self.phi_spec = tuple(phi_spec)
        self.ranges = Ranges(phi_spec, self.beta)
        self.columns = ColumnHistory(len(phi_spec), statistics_width, self.history.standardized)

    def act(
        self, phi: Sequence[float] | torch.Tensor, progress: float, generator: torch.Generator | None = None
    ) -> Decision:
        """As :meth:`Controller.act`; the decision holds tensors ``[n]``."""
        values = torch.as_tensor(phi, dtype=torch.float32, device="cpu")
        generator = generator or self.learner.generator
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            choice = self._choose(values, progress, generator)
            remembered = self._remember(values, choice, progress, generator)
        way = choice.float().sub_(1.0)
        moved = self.ranges.stepped(values, way)
        return Decision(
            cast(tuple[float, ...], moved), cast(tuple[float, ...], way.mul_(self.beta)), remembered
        )

    def episode_size(self) -> tuple[int, int]:
        """As :meth:`Controller.episode_size`."""
        return min(REMEMBERED, len(self.phi_spec)), self.policy.state_width

    def _see(self, statistics: torch.Tensor) -> None:
        """Take the statistics of one step into the columns."""
        self.columns.observe(statistics)

    def _choose(self, values: torch.Tensor, progress: float, generator: torch.Generator) -> torch.Tensor:
        """``[n]`` draws: 0 is -beta, 1 is no step, 2 is +beta."""
        count, columns = len(values), self.columns
        draws = torch.rand(count, generator=generator)
        coordinates = self.ranges.coordinate(values)
        down, up = values >= self.ranges.floor, values <= self.ranges.ceiling
        choice = torch.empty(count, dtype=torch.int8)
        # Biases are weights of a row of ones; progress, the same for all, belongs to the first of them.
        first, second, last = (
            torch.cat((weight.detach(), bias.detach()[:, None]), 1)
            for weight, bias in zip(self.policy.weights, self.policy.biases)
        )
        past, change = columns.past.shape[0], self.columns.statistics_width
        of_past = torch.empty(len(first), past)
        of_past[:, columns.order()] = first[:, :past]  # the ring's rows, wherever they are
        of_rest = torch.cat((first[:, past:-2], first[:, -1:] + progress * first[:, -2:-1]), 1)
        size = min(BLOCK, count)
        states, hidden = torch.ones(change + 2, size), torch.ones(2, len(first) + 1, size)
        for begin in range(0, count, size):
            part = slice(begin, min(begin + size, count))
            width = part.stop - begin
            block, below, above = states[:, :width], hidden[0, :, :width], hidden[1, :, :width]
            block[:change] = columns.change[:, part]
            block[change] = coordinates[part]
            torch.mm(of_past, columns.at(part), out=below[:-1]).addmm_(of_rest, block).relu_()
            torch.mm(second, below, out=above[:-1]).relu_()
            weights = last @ above
            weights[0].masked_fill_(~down[part], -math.inf)
            weights[2].masked_fill_(~up[part], -math.inf)
            weights.sub_(weights.amax(0)).exp_()
            low = weights[0]
            middle = weights[1].add_(low)
            place = weights[2].add_(middle).mul_(draws[part])
            # "& up": rounding may put a draw on the very edge, where the step up has no room.
            choice[part] = (place >= low).to(torch.int8).add_((place >= middle).logical_and_(up[part]))
        return choice

    def _remember(
        self, values: torch.Tensor, choice: torch.Tensor, progress: float, generator: torch.Generator
    ) -> float:
        """Keep a random part as the episode in flight; the mean entropy of its actions."""
        count, columns, ranges = self.episode_size()[0], self.columns, self.ranges
        rows = torch.randint(len(values), (count,), generator=generator)
        own = torch.stack((ranges.coordinate(values)[rows], torch.full((count,), progress)))
        states = torch.cat((columns.at(rows)[columns.order()], columns.change[:, rows], own)).T
        some = values[rows]
        stay = torch.ones(count, dtype=torch.bool)
        allowed = torch.stack((some >= ranges.floor[rows], stay, some <= ranges.ceiling[rows]), 1)
        table = self.policy.log_probabilities(states, allowed)
        picked = choice[rows].long()
        self._pending = Episode(
            states.contiguous(),
            allowed,
            picked,
            table.gather(1, picked[:, None])[:, 0],
            torch.zeros((), dtype=torch.float32, device="cpu"),
        )
        return float(-(table.exp() * table.masked_fill(~allowed, 0.0)).sum(-1).mean())

    def child_state(self) -> dict[str, Any]:
        """As of :class:`Controller`, with the columns."""
        return super().child_state() | {"columns": self.columns.state_dict()}

    def load_child_state(self, state: dict[str, Any]) -> None:
        """Go on as the child of a :meth:`child_state`."""
        super().load_child_state(state)
        self.columns.load_state_dict(state["columns"])


def _scaled(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values in units of the scale, 0 where that is 0."""
    return torch.where(scale > 0, values / scale, torch.zeros_like(values))
