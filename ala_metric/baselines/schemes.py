"""Schemes to compare the controller with: same interface, no learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .._actions import allowed_actions, take_actions
from ..types import Decision, PhiSpec


class Fixed:
    """The parameters stay as they are.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.

    Examples
    --------
    >>> Fixed((PhiSpec("a", 0.0, 1.0),)).step([0.5], None, reward=1, progress=0.5).phi
    (0.5,)
    """

    uses_statistics = False

    def __init__(self, phi_spec: Sequence[PhiSpec]) -> None:
        self.phi_spec = tuple(phi_spec)

    def start(self, phi: Sequence[float]) -> tuple[float, ...]:
        """Parameters to begin the run with."""
        return tuple(phi)

    def step(
        self, phi: Sequence[float], statistics: torch.Tensor | None, reward: float | None, progress: float
    ) -> Decision:
        """Stay; statistics and reward are not looked at."""
        return Decision(tuple(phi), (0.0,) * len(self.phi_spec), entropy=0.0)

    def drop(self) -> None:
        """Nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Uniform(Fixed):
    """All parameters equal, from the start to the end of the run.

    Their common value is the mean of the values the loss came with (geometric where any parameter is
    multiplicative), clipped into each range. The weights of a mixture so keep their sum, and the loss its
    scale.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.

    Examples
    --------
    >>> Uniform((PhiSpec("a", 0.0, 1.0), PhiSpec("b", 0.0, 1.0))).start([1.0, 0.0])
    (0.5, 0.5)
    """

    def start(self, phi: Sequence[float]) -> tuple[float, ...]:
        """Parameters to begin the run with: their mean."""
        if any(spec.rule == "multiplicative" for spec in self.phi_spec) and min(phi) > 0:
            common = math.exp(sum(map(math.log, phi)) / len(phi))
        else:
            common = sum(phi) / len(phi)
        return tuple(spec.clip(common) for spec in self.phi_spec)


class RandomStatic(Fixed):
    """One random draw at the start: uniform in the range, in its logarithm for multiplicative parameters.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    seed
        Of the scheme's own generator.

    Examples
    --------
    >>> 0.0 <= RandomStatic((PhiSpec("a", 0.0, 1.0),), seed=3).start([0.5])[0] <= 1.0
    True
    """

    def __init__(self, phi_spec: Sequence[PhiSpec], seed: int = 0) -> None:
        super().__init__(phi_spec)
        self.seed = seed

    def start(self, phi: Sequence[float]) -> tuple[float, ...]:
        """Parameters to begin the run with: drawn from their ranges."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        shares = torch.rand(len(self.phi_spec), generator=generator, dtype=torch.float64, device="cpu")
        return tuple(spec.value(share) for spec, share in zip(self.phi_spec, shares.tolist()))


class RandomWalk(Fixed):
    """Random actions from the published action space: -beta, 0, +beta, each equally likely where allowed.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    beta
        Step size.
    seed
        Of the scheme's own generator.

    Examples
    --------
    >>> walk = RandomWalk((PhiSpec("a", 0.0, 1.0),), beta=0.1, seed=0)
    >>> abs(walk.step([0.5], None, reward=None, progress=0.0).action[0]) in (0.0, 0.1)
    True
    """

    def __init__(self, phi_spec: Sequence[PhiSpec], beta: float = 0.1, seed: int = 0) -> None:
        super().__init__(phi_spec)
        self.beta = float(beta)
        self.generator = torch.Generator(device="cpu").manual_seed(seed)

    def step(
        self, phi: Sequence[float], statistics: torch.Tensor | None, reward: float | None, progress: float
    ) -> Decision:
        """Move every parameter at random; statistics and reward are not looked at."""
        allowed = allowed_actions(self.phi_spec, phi, self.beta)
        choice = torch.multinomial(allowed.double(), 1, generator=self.generator).squeeze(-1)
        moved, action = take_actions(self.phi_spec, phi, choice, self.beta)
        return Decision(tuple(moved), tuple(action), float(allowed.sum(dim=-1).double().log().mean()))

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.generator.set_state(state["generator"].cpu())
