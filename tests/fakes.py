"""Losses and metrics without a model, for tests of what drives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ala_metric import PhiSpec


class FakeLoss(nn.Module):
    """Smallest AdaptiveLoss: the sum of phi times the mean of its input."""

    def __init__(
        self,
        n_params: int = 1,
        low: float = -1000.0,
        high: float = 1000.0,
        start: float = 0.0,
        rule: str = "additive",
        width: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("phi", torch.full((n_params,), start, dtype=torch.float64))
        self.phi_spec = tuple(PhiSpec(f"p{i}", low, high, rule) for i in range(n_params))
        self.width = width

    def set_phi(self, phi: torch.Tensor) -> None:
        if phi.shape != self.phi.shape:
            raise ValueError(f"phi must have shape {list(self.phi.shape)}, got {list(phi.shape)}")
        for spec, value in zip(self.phi_spec, phi.tolist()):
            if not spec.allows(value, 0.0):
                raise ValueError(f"{spec.name} must lie in [{spec.low}, {spec.high}], got {value}")
        self.phi.copy_(phi)

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.double().mean() + torch.arange(1.0, self.width + 1).repeat(len(self.phi), 1)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.phi.sum() * embeddings.mean()


class FakeMetric:
    """Values of a script, one per call; the last repeats. An exception in the script is raised."""

    name = "scripted"

    def __init__(self, script: Sequence[float | Exception] = (0.0,), higher_is_better: bool = True) -> None:
        self.script, self.higher_is_better, self.calls = list(script), higher_is_better, 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        value = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if isinstance(value, Exception):
            raise value
        return value


def validation_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Constant outputs and targets."""
    return torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
