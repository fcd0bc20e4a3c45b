"""The paper's policy, rewarded relative to siblings that share weights, optimizer state and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._actions import take_actions
from .controller import Controller
from .learner import Episode


class GroupController(Controller):
    """Proposes several actions from one state and learns from how they compare.

    A :class:`Controller` with the same arguments, used by :meth:`propose` and :meth:`learn` instead of
    ``step``. The reward of an action is its group-relative advantage, ``(metric - mean of siblings) / sd``.
    The sibling that takes no action is an episode too, so the policy also learns when to stay.

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
    >>> from ala_metric import PhiSpec
    >>> controller = GroupController((PhiSpec("a", 0.0, 1.0),), statistics_width=1)
    >>> stay, other = controller.propose([0.5], torch.tensor([[0.3]]), progress=0.0, count=1)
    >>> stay, round(abs(other[0] - 0.5), 6) in (0.0, 0.1)
    ((0.5,), True)
    >>> controller.learn([-1.0, 1.0])
    """

    _group: list[Episode] = []  # noqa: RUF012 (replaced, never changed in place)

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
        stay = torch.ones(len(self.phi_spec), dtype=torch.int64)
        self._group, _ = self._draw(phi, progress, count, stay)
        return [
            tuple(take_actions(self.phi_spec, phi, episode.choice, self.beta)[0]) for episode in self._group
        ]

    def learn(self, advantages: Sequence[float | None]) -> None:
        """Learn from the group-relative advantages of the latest proposals; None is dropped.

        Parameters
        ----------
        advantages
            In the order of :meth:`propose`.
        """
        for episode, advantage in zip(self._group, advantages, strict=True):
            if advantage is not None:
                self.learner.learn(episode._replace(reward=torch.tensor(float(advantage))))
        self._group = []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        group = [{name: value.clone() for name, value in e._asdict().items()} for e in self._group]
        return super().state_dict() | {"group": group}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a controller with the same shape."""
        super().load_state_dict(state)
        self._group = [Episode(**episode) for episode in state["group"]]
