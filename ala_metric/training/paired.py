"""Paired forks: branches on common weights, optimizer state and batches, of which the better one lives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ..controller import ControllerSettings, Critic, Policy, check_policy
from ..controller.group import GroupController
from ..controller.proposals import RADIUS, mutation, prior_draw
from ..controller.selection import ranking, relative_rewards
from ..types import Metric
from .arm import Arm, Branch, Phi
from .hypergradient import HypergradientSettings
from .measure import Validate

Proposal = Literal["policy", "hypergradient", "random", "critic", "prior"]
PROPOSALS = ("policy", "hypergradient", "random", "critic", "prior")
CANDIDATES = 12


@dataclass(frozen=True)
class PairedSettings:
    """How a run forks.

    Training costs about ``1 + (branches - 1) * horizon + draws / forks`` trainings.

    Parameters
    ----------
    forks
        The run is cut in this many intervals; each but the first begins with a fork.
    draws
        Arms with parameters drawn from the prior that train beside the start in the first interval. The best
        ``branches`` of all go on to the first fork, instead of its proposals. Steps from the start do not
        lead far; draws do.
    branches
        Arms of a fork; the first takes no action.
    horizon
        Length of a fork, as a share of the interval.
    proposals
        Where the other branches' parameters come from, in turn over branches and forks: ``"policy"`` (the
        learned controller), ``"hypergradient"`` (moved during the fork), ``"random"`` (a mutation),
        ``"critic"`` (its choice among 12 mutations), ``"prior"`` (a draw that looks at no data).
    metric, validate
        As of :class:`RaceSettings`.
    radius
        Standard deviation of mutations in the unit cube.
    beta
        Step size of the policy's actions.
    policy
        Policy to start from (copied).
    freeze
        Act by the policy without training it.
    controller
        How the policy learns.
    hypergradient
        Needed for that proposal.

    Raises
    ------
    ValueError
        If a number is out of range, a proposal unknown, or hypergradients have no settings.

    Examples
    --------
    >>> PairedSettings(forks=10, proposals=("random",)).branches
    2
    """

    forks: int = 20
    draws: int = 6
    branches: int = 2
    horizon: float = 1.0
    proposals: tuple[Proposal, ...] = ("policy", "random")
    metric: Metric | None = None
    validate: Validate | None = None
    radius: float = RADIUS
    beta: float = 0.1
    policy: Policy | None = None
    freeze: bool = False
    controller: ControllerSettings | None = None
    hypergradient: HypergradientSettings | None = None

    def __post_init__(self) -> None:
        if self.forks < 2 or self.branches < 2:
            raise ValueError(f"forks and branches must be at least 2, got {self.forks} and {self.branches}")
        if self.draws < 0:
            raise ValueError(f"draws must not be negative, got {self.draws}")
        if not 0.0 < self.horizon <= 1.0:
            raise ValueError(f"horizon must be in (0, 1], got {self.horizon}")
        unknown = [name for name in self.proposals if name not in PROPOSALS]
        if unknown or not self.proposals:
            raise ValueError(f"proposals must be some of {PROPOSALS}, got {self.proposals}")
        if "hypergradient" in self.proposals and self.hypergradient is None:
            raise ValueError("proposals name 'hypergradient', which needs hypergradient settings, got None")
        if self.policy is not None and "policy" not in self.proposals:
            raise ValueError(f"a policy needs 'policy' among the proposals, got {self.proposals}")


class Paired:
    """The strategy of paired forks; see :class:`PairedSettings`.

    Parameters
    ----------
    settings
        How to fork.
    total_steps
        Of the run.
    loss
        The adaptive loss: its ``phi_spec`` and what it says about its statistics.
    seed
        Of the generators of all draws.
    """

    def __init__(self, settings: PairedSettings, total_steps: int, loss: Any, seed: int = 0) -> None:
        self.settings, self.loss, self.seed = settings, loss, seed
        self.phi_spec = tuple(loss.phi_spec)
        self.total_steps = total_steps
        self.ends, rows = schedule(settings, total_steps)
        self.forked = tuple(count > 1 for count in rows)
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.wants_statistics = "policy" in settings.proposals
        self.controller: GroupController | None = None
        width = getattr(loss, "statistics_width", None)
        if settings.policy is not None:
            check_policy(settings.policy, width, len(self.phi_spec), settings.beta)
        if self.wants_statistics and width is not None:
            self.controller = self._controller(width)
        self.groups = getattr(loss, "phi_groups", ())
        self.critic = (
            Critic(self.phi_spec, quadratic=not self.groups) if "critic" in settings.proposals else None
        )

    def _controller(self, width: int) -> GroupController:
        how = self.settings.controller or ControllerSettings()
        if how.identity is None:
            how = replace(how, identity=bool(getattr(self.loss, "parameter_identity", False)))
        return GroupController(
            self.phi_spec,
            width,
            self.settings.beta,
            self.seed,
            self.settings.policy,
            self.settings.freeze,
            how,
            bool(getattr(self.loss, "standardized_statistics", False)),
        )

    def first(self, phi: Phi) -> list[Branch]:
        """The start and draws from the prior, up to the first fork."""
        draws = [self._branch("prior", phi, None, []) for _ in range(self.settings.draws)]
        return [Branch(phi, "start"), *draws]

    def measured(self, stage: int) -> bool:
        """Forks are; a lone arm only where the policy needs statistics for the next fork, and at the end."""
        if self.forked[stage] or stage + 1 == len(self.ends):
            return True
        return self.wants_statistics and self.forked[stage + 1]

    def keeps(self, stage: int) -> int:
        """The better branch; after the draws those of the first fork."""
        return self.settings.branches if self._opening(stage) else 1

    def after(self, stage: int, arms: Sequence[Arm]) -> list[Branch]:
        """The better branch, alone or as the stem of the next fork."""
        best = 0
        if self.forked[stage]:
            scores = [None if arm.failed else arm.score for arm in arms]
            order = ranking(scores)
            self._learn(arms, relative_rewards(scores))
            if self._opening(stage):
                living = order[: self.keeps(stage)]
                return [Branch(arms[index].phi, arms[index].source, index) for index in living]
            best = order[0]  # of equals the first: no action
        stem = arms[best]
        if stage + 1 == len(self.ends) or not self.forked[stage + 1]:
            return [Branch(stem.phi, stem.source, best)]
        return [Branch(stem.phi, "stay", best), *self._proposals(stage + 1, stem, best)]

    def _opening(self, stage: int) -> bool:
        """Whether it is the stage of the draws, with a fork after it."""
        return stage == 0 and self.settings.draws > 0 and len(self.ends) > 1

    def _learn(self, arms: Sequence[Arm], rewards: Sequence[float | None]) -> None:
        if self.critic is not None:
            self.critic.observe([arm.phi for arm in arms], rewards)
        by_policy = [i for i, arm in enumerate(arms) if arm.source == "policy"]
        if self.controller is not None and by_policy:
            self.controller.learn([rewards[i] for i in (0, *by_policy)])

    def _proposals(self, stage: int, stem: Arm, parent: int) -> list[Branch]:
        """The branches of a fork that act."""
        count = self.settings.branches - 1
        fork = sum(self.forked[:stage])
        sources = [
            self.settings.proposals[(fork * count + place) % len(self.settings.proposals)]
            for place in range(count)
        ]
        drawn: list[Phi] = []
        if stem.statistics is not None and self.wants_statistics:
            if self.controller is None:
                self.controller = self._controller(stem.statistics.shape[1])
            progress = self.ends[stage - 1] / self.total_steps
            wanted = sources.count("policy")
            drawn = self.controller.propose(stem.phi, stem.statistics, progress, max(wanted, 1))[1:]
        return [self._branch(source, stem.phi, parent, drawn) for source in sources]

    def _branch(self, source: Proposal, phi: Phi, parent: int | None, drawn: list[Phi]) -> Branch:
        if source == "policy":
            return Branch(drawn.pop(0), source, parent)
        if source == "hypergradient":
            return Branch(phi, source, parent, moving=True)
        if source == "prior":
            return Branch(prior_draw(self.phi_spec, self.groups, self.generator), source, parent)
        mutations = [
            mutation(self.phi_spec, phi, self.generator, self.settings.radius)
            for _ in range(CANDIDATES if source == "critic" else 1)
        ]
        if source == "critic" and self.critic is not None:
            return Branch(mutations[self.critic.choose(mutations, self.generator)], source, parent)
        return Branch(mutations[0], source, parent)

    def state_dict(self) -> dict[str, Any]:
        """Generators, controller and critic."""
        return {
            "generator": self.generator.get_state(),
            "width": None if self.controller is None else self.controller.policy.statistics_width,
            "controller": None if self.controller is None else self.controller.state_dict(),
            "critic": None if self.critic is None else self.critic.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        if state["controller"] is not None:
            self.controller = self._controller(state["width"])
            self.controller.load_state_dict(state["controller"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])


def schedule(settings: PairedSettings, total_steps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ends of all stages in steps, and the arms of each.

    Examples
    --------
    >>> schedule(PairedSettings(forks=2, horizon=0.5), 8)
    ((4, 6, 8), (7, 2, 1))
    """
    # At least one step: without, the draws would be compared before they have trained.
    bounds = [max(1, round(index * total_steps / settings.forks)) for index in range(1, settings.forks + 1)]
    ends, rows = [bounds[0]], [1 + settings.draws]
    for start, end in itertools.pairwise(bounds):
        if end == start:
            continue
        middle = start + max(1, round(settings.horizon * (end - start)))
        ends, rows = [*ends, middle], [*rows, settings.branches]
        if middle < end:
            ends, rows = [*ends, end], [*rows, 1]
    return tuple(ends), tuple(rows)
