"""The policy: one small network shared by all loss parameters (Sec. 5)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from .._actions import DIRECTIONS
from .state import state_width

HIDDEN = 32


class Policy(nn.Module):
    """MLP with two hidden layers of 32 ReLU units and three outputs: step down, stay, step up.

    The same weights serve every parameter, so a policy without identities fits any number of them. The last
    layer starts near zero: a new policy is close to uniform.

    Parameters
    ----------
    statistics_width
        Statistics per parameter that its state holds.
    identities
        Number of parameters told apart by a one-hot vector, 0 for none.
    beta
        Step size that the actions stand for.
    generator
        Source of the initial weights; None leaves zeros, to be filled by ``load_state_dict``.

    Raises
    ------
    ValueError
        On a negative width or count, or a beta that is not positive and finite.

    Examples
    --------
    >>> policy = Policy(statistics_width=1, generator=torch.Generator().manual_seed(0))
    >>> policy(torch.zeros(7, policy.state_width)).shape
    torch.Size([7, 3])
    """

    def __init__(
        self,
        statistics_width: int = 1,
        identities: int = 0,
        beta: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if statistics_width < 0 or identities < 0:
            raise ValueError(
                f"statistics_width and identities must be >= 0, got {statistics_width} and {identities}"
            )
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta must be positive and finite, got {beta}")
        self.statistics_width = statistics_width
        self.identities = identities
        self.beta = float(beta)
        sizes = (self.state_width, HIDDEN, HIDDEN, len(DIRECTIONS))
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.zeros(fan_out, fan_in, dtype=torch.float32, device="cpu")
            if generator is not None:
                bound = math.sqrt(6.0 / fan_in) if fan_out == HIDDEN else 0.01
                weight.uniform_(-bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out, dtype=torch.float32, device="cpu")))

    @property
    def state_width(self) -> int:
        """Length of one parameter's state."""
        return state_width(self.statistics_width, self.identities)

    def copy(self) -> Policy:
        """Independent policy with the same weights."""
        twin = Policy(self.statistics_width, self.identities, self.beta)
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Action scores.

        Parameters
        ----------
        states
            ``[..., state_width]`` float32.

        Returns
        -------
        torch.Tensor
            ``[..., 3]`` logits of the steps -beta, 0, +beta.
        """
        first, second, last = zip(self.weights, self.biases)
        hidden = torch.relu(nn.functional.linear(states, *first))
        hidden = torch.relu(nn.functional.linear(hidden, *second))
        return nn.functional.linear(hidden, *last)

    def log_probabilities(self, states: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Logarithm of the action probabilities among the allowed actions.

        Parameters
        ----------
        states
            ``[..., state_width]`` float32.
        allowed
            ``[..., 3]`` bool, at least one True per row.

        Returns
        -------
        torch.Tensor
            ``[..., 3]``; -inf where the action is masked.
        """
        return self(states).masked_fill(~allowed, -math.inf).log_softmax(dim=-1)
