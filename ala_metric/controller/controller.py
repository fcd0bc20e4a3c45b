"""The paper's controller (Algorithm 1): one-step episodes of a shared policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from .._actions import allowed_actions, take_actions
from ..types import Decision, PhiSpec
from .learner import ControllerSettings, Episode, Learner
from .policy import Policy
from .state import StateHistory


class Controller:
    """Moves loss parameters by a policy that learns from the sign of the metric's improvement.

    Knows parameter ranges, statistics and rewards only; no model, loss or metric. All randomness (initial
    weights, actions, replay) comes from one generator of its own.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    statistics_width
        Validation statistics per parameter.
    beta
        Step size of the actions.
    seed
        Of the controller's own generator.
    policy
        Where to start; copied. None draws new weights.
    freeze
        Act without learning.
    settings
        How to learn.
    standardized
        Whether the statistics are scale-free already (see :class:`StateHistory`).

    Raises
    ------
    ValueError
        If the policy was made for another statistics width, step size or number of identities.

    Examples
    --------
    >>> controller = Controller((PhiSpec("a", 0.0, 1.0),), statistics_width=1, seed=0)
    >>> decision = controller.step([0.5], torch.tensor([[0.3]]), reward=None, progress=0.0)
    >>> abs(decision.action[0]) in (0.0, 0.1)
    True
    """

    uses_statistics = True

    def __init__(
        self,
        phi_spec: Sequence[PhiSpec],
        statistics_width: int = 1,
        beta: float = 0.1,
        seed: int = 0,
        policy: Policy | None = None,
        freeze: bool = False,
        settings: ControllerSettings | None = None,
        standardized: bool = False,
    ) -> None:
        self.phi_spec = tuple(phi_spec)
        self.beta = float(beta)
        settings = settings or ControllerSettings()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        identities = len(self.phi_spec) if settings.identity else 0
        if policy is None:
            policy = Policy(statistics_width, identities, self.beta, generator)
        else:
            check_policy(policy, statistics_width, len(self.phi_spec), self.beta)
            policy = policy.copy()
        self.learner = Learner(policy, settings, generator, freeze)
        self.history = StateHistory(self.phi_spec, statistics_width, policy.identities > 0, standardized)
        self._pending: Episode | None = None

    @property
    def policy(self) -> Policy:
        """The policy that acts and learns."""
        return self.learner.policy

    def start(self, phi: Sequence[float]) -> tuple[float, ...]:
        """Parameters to begin with: unchanged."""
        return tuple(phi)

    def step(
        self, phi: Sequence[float], statistics: torch.Tensor | None, reward: float | None, progress: float
    ) -> Decision:
        """Learn from the reward of the previous action, then draw and take the next.

        Parameters
        ----------
        phi
            Current parameters, ``n_params`` numbers.
        statistics
            ``[n_params, statistics_width]`` of the validation set now.
        reward
            Of the previous action (Eq. 5); None where it is not known, then nothing is learned from it.
        progress
            Iterations done / iterations of the whole run.

        Returns
        -------
        Decision
            New parameters, the steps taken, and the entropy of the policy.

        Raises
        ------
        ValueError
            On statistics of another shape or not finite, or a reward that is not finite.
        """
        episode = self.observe(statistics, reward)
        if episode is not None:
            self.learner.learn(episode)
        return self.act(phi, progress)

    def observe(self, statistics: torch.Tensor | None, reward: float | None) -> Episode | None:
        """The first half of :meth:`step`, without the learning.

        Parameters
        ----------
        statistics, reward
            As of :meth:`step`.

        Returns
        -------
        Episode or None
            The action in flight with its reward, for the learner; None where that is not known.
        """
        if statistics is None:
            raise ValueError("the controller needs statistics, got None")
        self._see(statistics)
        pending, self._pending = self._pending, None
        if reward is None or pending is None:
            return None
        value = torch.tensor(float(reward), dtype=torch.float32, device="cpu")
        if not torch.isfinite(value):
            raise ValueError(f"reward must be finite or None, got {reward}")
        return pending._replace(reward=value)

    def act(
        self, phi: Sequence[float] | torch.Tensor, progress: float, generator: torch.Generator | None = None
    ) -> Decision:
        """The second half of :meth:`step`: draw and take the next action.

        Parameters
        ----------
        phi, progress
            As of :meth:`step`.
        generator
            Of the draw; None for the learner's own.

        Returns
        -------
        Decision
            As of :meth:`step`.
        """
        values = cast(Sequence[float], phi)
        (self._pending,), entropy = self._draw(values, progress, 1, generator=generator)
        moved, action = take_actions(self.phi_spec, values, self._pending.choice, self.beta)
        return Decision(tuple(moved), tuple(action), entropy)

    def _see(self, statistics: torch.Tensor) -> None:
        """Take the statistics of one step into the history."""
        self.history.observe(statistics)

    def _draw(
        self,
        phi: Sequence[float],
        progress: float,
        count: int,
        *more: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Episode], float]:
        """Given choices and ``count`` drawn ones as episodes without a reward, and the policy's entropy."""
        states = self.history.encode(phi, progress)
        allowed = allowed_actions(self.phi_spec, phi, self.beta)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            table = self.policy.log_probabilities(states, allowed)
            probabilities = table.exp()
            drawn = torch.multinomial(
                probabilities, count, replacement=True, generator=generator or self.learner.generator
            )
            entropy = -(probabilities * table.masked_fill(~allowed, 0.0)).sum(dim=-1).mean()
        unknown = torch.zeros((), dtype=torch.float32, device="cpu")  # replaced when the reward is known
        return [
            Episode(states, allowed, choice, table.gather(-1, choice[:, None]).squeeze(-1), unknown)
            for choice in (*more, *(row.clone() for row in drawn.T))
        ], float(entropy)

    def episode_size(self) -> tuple[int, int]:
        """Parameters that an episode remembers, and the width of their states."""
        return len(self.phi_spec), self.policy.state_width

    def drop(self) -> None:
        """Forget the previous action: its reward cannot be known."""
        self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {"learner": self.learner.state_dict()} | self.child_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a controller with the same shape.

        Parameters
        ----------
        state
            What :meth:`state_dict` returned.
        """
        self.learner.load_state_dict(state["learner"])
        self.load_child_state(state)

    def child_state(self) -> dict[str, Any]:
        """What children that share the learner have of their own: history and the action in flight."""
        pending = self._pending
        return {
            "history": self.history.state_dict(),
            "pending": {} if pending is None else {k: v.clone() for k, v in pending._asdict().items()},
        }

    def load_child_state(self, state: dict[str, Any]) -> None:
        """Go on as the child of a :meth:`child_state`."""
        self.history.load_state_dict(state["history"])
        pending = {name: value.clone() for name, value in state["pending"].items()}
        self._pending = Episode(**pending) if pending else None


def check_policy(policy: Policy, statistics_width: int | None, n_params: int, beta: float) -> None:
    """Refuse a policy that was made for another kind of task.

    Parameters
    ----------
    policy
        The policy to be used.
    statistics_width
        Statistics per parameter of the task; None where not known yet.
    n_params
        Number of loss parameters of the task.
    beta
        Step size of the run.

    Raises
    ------
    TypeError
        If it is no :class:`Policy`.
    ValueError
        If statistics width, step size or number of identities differ; both values are named.

    Examples
    --------
    >>> check_policy(Policy(statistics_width=1), statistics_width=1, n_params=10, beta=0.1)
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy (see load_policy), got {type(policy).__name__}")
    if statistics_width is not None and policy.statistics_width != statistics_width:
        raise ValueError(
            f"the policy sees {policy.statistics_width} statistics per parameter, "
            f"the loss gives {statistics_width}"
        )
    if policy.identities not in (0, n_params):
        raise ValueError(
            f"the policy tells {policy.identities} parameters apart, the loss has {n_params} parameters"
        )
    if policy.beta != beta:
        raise ValueError(f"the policy was made for beta={policy.beta}, this run has beta={beta}")
