"""Racing loss parameters: successive halving among children, with copies of the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..controller.critic import Critic
from ..controller.proposals import RADIUS, mutation, prior_draw
from ..controller.selection import Rungs, ranking, relative_rewards, rungs_for, survivors
from ..types import Metric, PhiSpec
from .arm import Arm, Branch, Phi
from .hypergradient import HypergradientSettings
from .measure import Validate


@dataclass(frozen=True)
class RaceSettings:
    """How a race is run.

    Parameters
    ----------
    rungs
        ``(end as a fraction of the run, arms)`` of each rung, ends rising to 1 with one arm; None takes the
        schedule of :func:`ala_metric.controller.rungs_for` for the budget.
    metric
        What arms are compared by at the rungs; None takes the smooth sibling of the loss's metric: mean
        Recall@1, 2, 4, 8 for retrieval, mean class log-probability for classifiers.
    validate
        ``validate() -> (outputs, targets)`` at the rungs. None takes half of the validation set where the
        loss's ``validate`` is a :class:`ala_metric.training.Validation`: for Recall@k half of the classes,
        for metrics of classifiers half of each class, the same half at all rungs, a function of ``seed``;
        all where that would leave fewer than 500 samples or 20 classes, for other metrics, and where
        ``validate`` is another function. Give the loss's own ``validate`` to use all. The records say what
        was used. The end of the race is measured with the metric and all of the validation of the loss.
    mutated
        Share of the first arms that are mutations of the start; one is the start itself and the rest are
        draws from the prior.
    radius, shrink
        Standard deviation of mutations in the unit cube, and its factor per rung.
    copies
        Fill a third of each rung with copies of the best arm that have new parameters. False is plain
        successive halving.
    critic
        Choose the copies' parameters by a critic, True for a new one, or one to go on with (changed in
        place). False takes the first mutation.
    candidates
        Mutations that the critic chooses from; None takes 12 where the loss names groups of
        parameters, and 128 elsewhere, where the critic is quadratic and can point at a maximum.
    hypergradient
        Every other copy is moved by hypergradients, beside the best arm that stays frozen. None for none.

    Raises
    ------
    ValueError
        If the rungs do not rise to 1 with one arm, or a number is out of range.

    Examples
    --------
    >>> RaceSettings(rungs=((0.5, 4), (1.0, 1))).rungs
    ((0.5, 4), (1.0, 1))
    """

    rungs: Rungs | None = None
    metric: Metric | None = None
    validate: Validate | None = None
    mutated: float = 0.25
    radius: float = RADIUS
    shrink: float = 0.7
    copies: bool = True
    critic: Critic | bool = True
    candidates: int | None = None
    hypergradient: HypergradientSettings | None = None

    def __post_init__(self) -> None:
        if self.rungs is not None:
            ends = [end for end, _ in self.rungs]
            rising = all(a < b for a, b in zip([0.0, *ends], ends))
            if not self.rungs or not rising or ends[-1] != 1.0 or self.rungs[-1][1] != 1:
                raise ValueError(f"rungs must rise to (1.0, 1), got {self.rungs}")
            if any(rows < 1 for _, rows in self.rungs):
                raise ValueError(f"every rung needs at least one arm, got {self.rungs}")
        for name in ("radius", "shrink"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 <= self.mutated <= 1.0:
            raise ValueError(f"mutated must be in [0, 1], got {self.mutated}")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")


class Race:
    """The strategy of a race; see :class:`RaceSettings`.

    Parameters
    ----------
    settings
        How to race.
    budget
        For the schedule, where the settings name none.
    total_steps
        Of the run.
    phi_spec
        Range and step rule per parameter.
    groups
        Groups of alternative parameters, or none.
    seed
        Of the generator of all draws.
    """

    wants_statistics = False

    def __init__(
        self,
        settings: RaceSettings,
        budget: float,
        total_steps: int,
        phi_spec: Sequence[PhiSpec],
        groups: Sequence[Sequence[int]] = (),
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.phi_spec, self.groups = tuple(phi_spec), groups
        self.rungs = in_steps(settings.rungs or rungs_for(budget), total_steps)
        self.ends = tuple(end for end, _ in self.rungs)
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.candidates = settings.candidates or (12 if groups else 128)
        self.critic: Critic | None = None
        if isinstance(settings.critic, Critic):
            self.critic = settings.critic
            wanted = Critic(phi_spec, not groups, self.critic.first_noise, self.critic.decay)
            wanted.load_state_dict(self.critic.state_dict())  # ValueError if it is of another task
        elif settings.critic:
            self.critic = Critic(phi_spec, quadratic=not groups)

    def first(self, phi: Phi) -> list[Branch]:
        """The start, mutations of it, and draws from the prior."""
        rows = self.rungs[0][1]
        mutated = min(round(self.settings.mutated * rows), rows - 1)
        arms = [Branch(phi, "start")]
        arms += [Branch(self._mutation(phi, 0), "mutation") for _ in range(mutated)]
        arms += [
            Branch(prior_draw(self.phi_spec, self.groups, self.generator), "prior")
            for _ in range(rows - len(arms))
        ]
        return arms

    def measured(self, stage: int) -> bool:
        """All rungs are; the last for the record."""
        return True

    def keeps(self, stage: int) -> int:
        """As many as the next rung has arms, or the winner."""
        return self._living(self.rungs[stage + 1][1]) if stage + 1 < len(self.rungs) else 1

    def after(self, stage: int, arms: Sequence[Arm]) -> list[Branch]:
        """Survivors, and copies of the best in the free places."""
        scores = [None if arm.failed else arm.score for arm in arms]
        order = ranking(scores)
        if self.critic is not None and len(order) > 1:
            self.critic.observe([arm.phi for arm in arms], relative_rewards(scores))
        if stage + 1 == len(self.rungs):
            return [Branch(arms[order[0]].phi, arms[order[0]].source, order[0])]
        rows = self.rungs[stage + 1][1]
        living = order[: self._living(rows)]
        branches = [Branch(arms[index].phi, arms[index].source, index) for index in living]
        best = living[0]
        for place in range(rows - len(living) if self.settings.copies else 0):
            if self.settings.hypergradient is not None and place % 2 == 0:
                branches.append(Branch(arms[best].phi, "hypergradient", best, moving=True))
            else:
                branches.append(self._copy(arms[best].phi, best, stage + 1))
        return branches

    def _living(self, rows: int) -> int:
        return survivors(rows) if self.settings.copies else rows

    def _copy(self, phi: Phi, parent: int, stage: int) -> Branch:
        """A copy of the best arm with new parameters."""
        if self.critic is None:
            return Branch(self._mutation(phi, stage), "mutation", parent)
        candidates = [self._mutation(phi, stage) for _ in range(self.candidates)]
        return Branch(candidates[self.critic.choose(candidates, self.generator)], "critic", parent)

    def _mutation(self, phi: Phi, stage: int) -> Phi:
        radius = self.settings.radius * self.settings.shrink**stage
        return mutation(self.phi_spec, phi, self.generator, radius)

    def state_dict(self) -> dict[str, Any]:
        """Generator and critic."""
        return {
            "generator": self.generator.get_state(),
            "critic": None if self.critic is None else self.critic.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        if self.critic is not None and state["critic"] is not None:
            self.critic.load_state_dict(state["critic"])


def in_steps(rungs: Rungs, total_steps: int) -> list[tuple[int, int]]:
    """Rungs with their ends in steps; one that would have no step of its own is left out."""
    found: list[tuple[int, int]] = []
    for end, rows in rungs:
        step = total_steps if end == 1.0 else round(end * total_steps)
        if step > (found[-1][0] if found else 0):
            found.append((step, rows))
    return found
