"""A critic shared by all children: it predicts which loss parameters are worth training with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..types import PhiSpec
from .unit_cube import to_unit

CROSS_TERMS_UP_TO = 8
NOISE_PRIOR = 4.0  # observations that the first guess of the noise is worth
NOISE_STEPS = 5


class Critic:
    r"""Bayesian linear regression of the sibling-relative reward on Phi in the unit cube.

    .. math::
        r = x(\phi)^T w + \varepsilon, \quad w \sim N(0, I), \quad \varepsilon \sim N(0, \sigma^2 / \omega),
        \quad \omega = \text{decay}^{\text{age}}

    where :math:`x` holds 1, the coordinates ``2 u - 1`` and, if ``quadratic``, their squares (and products,
    up to eight parameters), and the age counts the rungs since the reward was seen: rewards of long ago
    compare younger models. The mean of the posterior is the ridge solution
    :math:`(X^T \Omega X + \sigma^2 I)^{-1} X^T \Omega r`.

    A rung's rewards say how its siblings compare, not how good they all are, and later siblings are better
    and more alike. So from the second rung on rewards are first brought to the critic's own scale:
    their mean and standard deviation become those of its predictions for the same siblings.

    Parameters
    ----------
    phi_spec
        Range and step rule per parameter.
    quadratic
        Squares as features: for parameters with a best value inside their range.
    noise
        First guess of :math:`\sigma`, in units of the reward (standard deviations among siblings); it counts
        as four observations, and the residuals of the rewards do the rest (MacKay, 1992).
    decay
        Factor of the weights per rung.

    Raises
    ------
    ValueError
        If noise is not positive or decay outside (0, 1].

    Examples
    --------
    >>> critic = Critic((PhiSpec("a", 0.0, 1.0),))
    >>> critic.observe([(0.0,), (0.5,), (1.0,)], [-1.0, 0.0, 1.0])
    >>> low, high = critic.predict([(0.2,), (0.8,)])
    >>> low < high
    True
    """

    def __init__(
        self,
        phi_spec: Sequence[PhiSpec],
        quadratic: bool = True,
        noise: float = 0.3,
        decay: float = 0.7,
    ) -> None:
        if not noise > 0:
            raise ValueError(f"noise must be positive, got {noise}")
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1], got {decay}")
        self.phi_spec = tuple(phi_spec)
        self.quadratic = quadratic
        self.first_noise, self.decay = float(noise), float(decay)
        width = self.features([spec.low for spec in self.phi_spec]).numel()
        # Sufficient statistics: X^T Omega X and X^T Omega r.
        self.moments = torch.zeros(width, width, dtype=torch.float64, device="cpu")
        self.targets = torch.zeros(width, dtype=torch.float64, device="cpu")
        self.square = 0.0  # r^T Omega r
        self.weight = 0.0  # trace of Omega
        self.observations = 0
        self.noise = self.first_noise

    def features(self, phi: Sequence[float]) -> torch.Tensor:
        """``[width]`` float64 features of one set of parameters in their own units."""
        units = 2.0 * to_unit(self.phi_spec, phi) - 1.0
        parts = [torch.ones(1, dtype=torch.float64, device="cpu"), units]
        if self.quadratic:
            parts.append(units.square())
            if len(units) <= CROSS_TERMS_UP_TO:
                pairs = [units[i] * units[j] for i, j in itertools.combinations(range(len(units)), 2)]
                parts += [torch.stack(pairs)] if pairs else []
        return torch.cat(parts)

    def observe(self, phis: Sequence[Sequence[float]], rewards: Sequence[float | None]) -> None:
        """Take the rewards of one rung; earlier ones lose weight.

        Parameters
        ----------
        phis
            Parameters of each sibling, in their own units.
        rewards
            Of :func:`relative_rewards`; None is left out.
        """
        known = [(phi, reward) for phi, reward in zip(phis, rewards, strict=True) if reward is not None]
        if not known:
            return
        rows = torch.stack([self.features(phi) for phi, _ in known])
        values = torch.tensor([reward for _, reward in known], dtype=torch.float64, device="cpu")
        if self.observations > 0:
            expected = rows @ self.weights()
            values = expected.mean() + expected.std(correction=0) * values
        self.moments = self.decay * self.moments + rows.T @ rows
        self.targets = self.decay * self.targets + rows.T @ values
        self.square = self.decay * self.square + float(values @ values)
        self.weight = self.decay * self.weight + len(known)
        self.observations += len(known)
        self._estimate_noise()

    def _estimate_noise(self) -> None:
        """MacKay's fixed point: residuals over the observations that the weights have not used up."""
        self.noise = self.first_noise
        for _ in range(NOISE_STEPS):
            used = float((self.moments * torch.linalg.inv(self._precision())).sum())
            weights = self.weights()
            residual = (
                self.square - 2.0 * float(weights @ self.targets) + float(weights @ self.moments @ weights)
            )
            total = NOISE_PRIOR * self.first_noise**2 + max(residual, 0.0)
            # Decayed observations weigh less than the directions they have fixed.
            self.noise = math.sqrt(total / (NOISE_PRIOR + max(self.weight - used, 0.0)))

    def _precision(self) -> torch.Tensor:
        """Inverse covariance of the weights times the noise variance."""
        return self.moments + self.noise**2 * torch.eye(len(self.moments), dtype=torch.float64, device="cpu")

    def weights(self) -> torch.Tensor:
        """``[width]`` posterior mean of the weights."""
        return torch.linalg.solve(self._precision(), self.targets)

    def predict(self, phis: Sequence[Sequence[float]]) -> list[float]:
        """Expected rewards.

        Parameters
        ----------
        phis
            Parameters of each candidate, in their own units.

        Returns
        -------
        list of float
            In standard deviations among siblings.
        """
        weights = self.weights()
        return [float(self.features(phi) @ weights) for phi in phis]

    def choose(self, candidates: Sequence[Sequence[float]], generator: torch.Generator) -> int:
        """Thompson sampling: the best candidate under one draw of the weights from their posterior.

        Parameters
        ----------
        candidates
            Parameters of each, in their own units; at least one.
        generator
            Source of the draw.

        Returns
        -------
        int
            Index of the chosen candidate.
        """
        # Precision = L L^T, so noise * L^-T z has the covariance of the posterior.
        lower = torch.linalg.cholesky(self._precision())
        draw = torch.randn(len(lower), 1, generator=generator, dtype=torch.float64, device="cpu")
        offset = torch.linalg.solve_triangular(lower.T, self.noise * draw, upper=True).squeeze(-1)
        weights = self.weights() + offset
        return int(torch.stack([self.features(phi) @ weights for phi in candidates]).argmax())

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, and what it was learned for."""
        return self.task() | {
            "moments": self.moments.clone(),
            "targets": self.targets.clone(),
            "square": self.square,
            "weight": self.weight,
            "noise_now": self.noise,
            "observations": self.observations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; ValueError that names both values if it is of another task."""
        for name, mine in self.task().items():
            other = [list(row) for row in state[name]] if name == "phi_spec" else state[name]
            if other != mine:
                raise ValueError(f"the critic was made for {name}={other!r}, this run has {mine!r}")
        self.moments, self.targets = state["moments"].clone(), state["targets"].clone()
        self.square, self.weight = float(state["square"]), float(state["weight"])
        self.noise, self.observations = float(state["noise_now"]), int(state["observations"])

    def task(self) -> dict[str, Any]:
        """What a critic must share with a run: parameters, features, noise and decay."""
        rows = [[spec.name, spec.low, spec.high, spec.rule] for spec in self.phi_spec]
        return {"phi_spec": rows, "quadratic": self.quadratic, "noise": self.first_noise, "decay": self.decay}
