"""The paper's policy, rewarded relative to siblings that share weights, optimizer state and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._actions import allowed_actions, take_actions
from ..types import PhiSpec
from .controller import check_policy
from .learner import ControllerSettings, Episode, Learner
from .policy import Policy
from .state import StateHistory


class GroupController:
    """Proposes several actions from one state and learns from how they compare.

    The reward of an action is its group-relative advantage, ``(metric - mean of siblings) / sd``. The sibling
    that takes no action is an episode too, so the policy also learns when to stay.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    statistics_width
        Validation statistics per parameter.
    beta
        Step size of the actions.
    seed
        Of the generator of all randomness.
    policy
        Where to start; copied. None draws new weights.
    freeze
        Act without learning.
    settings
        How to learn.
    standardized
        Whether the statistics are scale-free already.

    Raises
    ------
    ValueError
        If the policy was made for another statistics width, step size or number of identities.

    Examples
    --------
    >>> controller = GroupController((PhiSpec("a", 0.0, 1.0),), statistics_width=1)
    >>> stay, other = controller.propose([0.5], torch.tensor([[0.3]]), progress=0.0, count=1)
    >>> stay, round(abs(other[0] - 0.5), 6) in (0.0, 0.1)
    ((0.5,), True)
    >>> controller.learn([-1.0, 1.0])
    """

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
        self.phi_spec, self.beta = tuple(phi_spec), float(beta)
        settings = settings or ControllerSettings()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        if policy is None:
            identities = len(self.phi_spec) if settings.identity else 0
            policy = Policy(statistics_width, identities, self.beta, generator)
        else:
            check_policy(policy, statistics_width, len(self.phi_spec), self.beta)
            policy = policy.copy()
        self.learner = Learner(policy, settings, generator, freeze)
        self.history = StateHistory(self.phi_spec, statistics_width, policy.identities > 0, standardized)
        self._pending: list[Episode] = []

    @property
    def policy(self) -> Policy:
        """The policy that acts and learns."""
        return self.learner.policy

    def propose(
        self, phi: Sequence[float], statistics: torch.Tensor, progress: float, count: int
    ) -> list[tuple[float, ...]]:
        """The parameters as they are, then ``count`` actions drawn from the policy.

        Parameters
        ----------
        phi
            Current parameters.
        statistics
            ``[n_params, statistics_width]`` of the validation set now.
        progress
            Iterations done / iterations of the whole run.
        count
            Actions to draw.

        Returns
        -------
        list of tuple of float
            ``count + 1`` sets of parameters, inside their ranges.
        """
        self.history.observe(statistics)
        states = self.history.encode(phi, progress)
        allowed = allowed_actions(self.phi_spec, phi, self.beta)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            table = self.policy.log_probabilities(states, allowed)
            drawn = torch.multinomial(
                table.exp(), count, replacement=True, generator=self.learner.generator
            ).T
        unknown = torch.zeros((), dtype=torch.float32, device="cpu")
        stay = torch.ones(1, len(self.phi_spec), dtype=torch.int64)
        self._pending, found = [], []
        for choice in torch.cat([stay, drawn]):
            log_probability = table.gather(-1, choice[:, None]).squeeze(-1)
            self._pending.append(Episode(states, allowed, choice.clone(), log_probability, unknown))
            found.append(tuple(take_actions(self.phi_spec, phi, choice, self.beta)[0]))
        return found

    def learn(self, advantages: Sequence[float | None]) -> None:
        """Learn from the group-relative advantages of the latest proposals; None is dropped.

        Parameters
        ----------
        advantages
            In the order of :meth:`propose`.
        """
        for episode, advantage in zip(self._pending, advantages, strict=True):
            if advantage is not None:
                self.learner.learn(episode._replace(reward=torch.tensor(float(advantage))))
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "learner": self.learner.state_dict(),
            "history": self.history.state_dict(),
            "pending": [
                {name: value.clone() for name, value in episode._asdict().items()}
                for episode in self._pending
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a controller with the same shape."""
        self.learner.load_state_dict(state["learner"])
        self.history.load_state_dict(state["history"])
        self._pending = [Episode(**episode) for episode in state["pending"]]
