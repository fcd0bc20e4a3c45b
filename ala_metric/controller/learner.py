"""Learning the policy: replay memory, moving baseline and REINFORCE (Eq. 3)."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .policy import Policy


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller learns.

    Parameters
    ----------
    learning_rate
        Of Adam on the policy weights (Sec. 5: 0.001).
    replay_capacity
        Episodes remembered; the oldest leaves first. Bounded, because rewards of long ago were earned by
        another model.
    warm_up
        Rewarded episodes to collect before the first gradient step. Adam steps are as long on noise as on
        signal, and the first handful of episodes is mostly noise.
    batch_size
        Episodes drawn from the replay memory per gradient step, with replacement.
    gradient_steps
        Gradient steps per rewarded episode. On problems with a known best action one step finds it within
        300 episodes for every seed tried; four learn no sooner, settle on wrong actions in some seeds and
        lose twice the entropy when rewards are pure noise.
    weight_clip
        Upper bound of the importance weights new / old probability. Replay without weights collapses the
        entropy of the policy.
    baseline_decay
        Of the moving average of past rewards that is subtracted from each reward.
    adam_epsilon
        Added to Adam's denominator. Large against the usual 1e-8, so that steps fade out when every reward
        equals the baseline, instead of following rounding noise at full speed.
    identity
        One-hot parameter identity in the state; None asks the loss (attribute ``parameter_identity``).

    Raises
    ------
    ValueError
        For a value with which the policy would never learn or learn nonsense: a count below 1, a memory of
        fewer than 2 episodes or than ``warm_up``, a learning rate or clip that is not positive, a decay
        outside [0, 1).

    Examples
    --------
    >>> ControllerSettings().weight_clip
    2.0
    """

    learning_rate: float = 1e-3
    replay_capacity: int = 256
    warm_up: int = 16
    batch_size: int = 64
    gradient_steps: int = 1
    weight_clip: float = 2.0
    baseline_decay: float = 0.9
    adam_epsilon: float = 1e-5
    identity: bool | None = None

    def __post_init__(self) -> None:
        for name in ("warm_up", "batch_size", "gradient_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.replay_capacity >= max(2, self.warm_up):
            raise ValueError(
                f"replay_capacity must be at least 2 and at least warm_up={self.warm_up}, the episodes to "
                f"learn from first; got {self.replay_capacity}"
            )
        for name in ("learning_rate", "weight_clip"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 <= self.baseline_decay < 1.0:
            raise ValueError(f"baseline_decay must be in [0, 1), got {self.baseline_decay}")


class Episode(NamedTuple):
    """One action on all parameters, what it was based on and what it earned (an episode of T = 1).

    Parameters
    ----------
    states
        ``[n_params, state_width]`` float32.
    allowed
        ``[n_params, 3]`` bool.
    choice
        ``[n_params]`` int64: 0 is -beta, 1 is no step, 2 is +beta.
    log_probability
        ``[n_params]`` float32, of the choice when it was made.
    reward
        ``[]`` float32.

    Examples
    --------
    >>> n = 2
    >>> episode = Episode(torch.zeros(n, 13), torch.ones(n, 3, dtype=torch.bool), torch.tensor([2, 1]),
    ...                   torch.full((n,), -1.1), torch.tensor(1.0))
    >>> episode.reward.item()
    1.0
    """

    states: torch.Tensor
    allowed: torch.Tensor
    choice: torch.Tensor
    log_probability: torch.Tensor
    reward: torch.Tensor

    def row(self) -> torch.Tensor:
        """All of it in one float64 row of fixed size, without loss."""
        return torch.cat([part.flatten().double() for part in self])

    @staticmethod
    def of_row(row: torch.Tensor, count: int, width: int) -> Episode:
        """The episode of a :meth:`row`, of ``count`` parameters with states of this width."""
        states, allowed, choice, chances, reward = row.split(Episode.row_parts(count, width))
        return Episode(
            states.float().reshape(count, width),
            allowed.bool().reshape(count, 3),
            choice.long(),
            chances.float(),
            reward.float().reshape(()),
        )

    @staticmethod
    def row_parts(count: int, width: int) -> list[int]:
        """Numbers per field in a :meth:`row`."""
        return [count * width, 3 * count, count, count, 1]


class Learner:
    """A policy, its optimiser, replay memory and baseline, and the generator of all their randomness.

    Several controllers (children) may share one learner.

    Parameters
    ----------
    policy
        Trained in place.
    settings
        How to learn.
    generator
        CPU generator; no other random stream is touched.
    freeze
        Act without learning.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> learner = Learner(Policy(generator=generator), ControllerSettings(), generator)
    >>> learner.baseline
    0.0
    """

    def __init__(
        self, policy: Policy, settings: ControllerSettings, generator: torch.Generator, freeze: bool = False
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.generator = generator
        self.freeze = freeze
        self.baseline = 0.0
        self.replay: deque[Episode] = deque(maxlen=settings.replay_capacity)
        self.optimizer = torch.optim.Adam(
            policy.parameters(), lr=settings.learning_rate, eps=settings.adam_epsilon
        )

    def learn(self, episode: Episode) -> None:
        """Remember a rewarded episode and improve the policy on a sample of the memory.

        Parameters
        ----------
        episode
            Tensors of one step: states ``[n, width]``, allowed ``[n, 3]``, choice ``[n]``,
            log_probability ``[n]``, reward ``[]``.
        """
        if self.freeze:
            return
        decay = self.settings.baseline_decay
        self.replay.append(episode)
        before = self.baseline if len(self.replay) > 1 else float(episode.reward)
        self.baseline = decay * before + (1.0 - decay) * float(episode.reward)
        if len(self.replay) < self.settings.warm_up:
            return
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(self.settings.gradient_steps):
                self._gradient_step()

    def _gradient_step(self) -> None:
        """One Adam step on -mean((r - b) min(pi / pi_old, clip) log pi), the surrogate of Eq. 3."""
        picks = torch.randint(
            len(self.replay), (self.settings.batch_size,), generator=self.generator, device="cpu"
        )
        batch = Episode(*(torch.stack(parts) for parts in zip(*(self.replay[i] for i in picks.tolist()))))
        table = self.policy.log_probabilities(batch.states, batch.allowed)
        log_probability = table.gather(-1, batch.choice.unsqueeze(-1)).squeeze(-1)
        weight = (log_probability.detach() - batch.log_probability).exp().clamp(max=self.settings.weight_clip)
        advantage = (batch.reward - self.baseline).unsqueeze(-1)
        self.optimizer.zero_grad(set_to_none=True)
        (-(advantage * weight * log_probability).mean()).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, baseline, replay memory and generator state."""
        columns = [torch.stack(parts) for parts in zip(*self.replay)]
        return {
            "policy": {name: value.detach().clone() for name, value in self.policy.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "baseline": self.baseline,
            "replay": dict(zip(Episode._fields, columns)),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a learner with a policy of the same shape."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.baseline = float(state["baseline"])
        self.replay.clear()
        if state["replay"]:
            columns = (state["replay"][name].clone().unbind(0) for name in Episode._fields)
            self.replay.extend(Episode(*parts) for parts in zip(*columns))
        self.generator.set_state(state["generator"].cpu())
