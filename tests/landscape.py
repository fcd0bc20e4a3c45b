"""A task without images whose best loss parameters are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ala_metric import ALALoss, PhiSpec, training

ITEMS = 8


class Rows:
    """A labelled data set of zeros: the model of this task looks at no input."""

    labels = torch.arange(2).repeat_interleave(ITEMS // 2)

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), int(self.labels[index])


class Progress(nn.Module):
    """One weight: how far the training has come. Its output is that weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(inputs), 1)


class Landscape(nn.Module):
    """A loss that moves the weight by ``1 - curvature * (distance of Phi from the optimum)^2`` per step."""

    statistics_width = 1

    def __init__(
        self,
        optimum: Sequence[float],
        start: Sequence[float],
        low: float = 0.0,
        high: float = 1.0,
        rule: str = "additive",
    ) -> None:
        super().__init__()
        self.phi_spec = tuple(PhiSpec(f"p{i}", low, high, rule) for i in range(len(start)))
        self.register_buffer("phi", torch.tensor(start, dtype=torch.float64))
        self.optimum = [spec.share(value) for spec, value in zip(self.phi_spec, optimum)]

    def set_phi(self, phi: torch.Tensor) -> None:
        for spec, value in zip(self.phi_spec, phi.tolist()):
            if not spec.allows(value, 0.0):
                raise ValueError(f"{spec.name} must lie in [{spec.low}, {spec.high}], got {value}")
        self.phi.copy_(phi)

    def distances(self, phi: Sequence[float]) -> list[float]:
        """Distance from the optimum along each parameter, as a share of its range."""
        return [abs(spec.share(v) - best) for spec, v, best in zip(self.phi_spec, phi, self.optimum)]

    def speed(self) -> float:
        return 1.0 - sum(d**2 for d in self.distances(self.phi.tolist()))

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.phi.reshape(-1, 1) + 1.0

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -self.speed() * outputs.mean()


class Height:
    """The weight itself."""

    name = "height"
    higher_is_better = True

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(outputs.mean())


class Task:
    """Model, loss and optimizer of one run, and the fit that trains them."""

    def __init__(
        self, optimum: Sequence[float] = (0.7, 0.3), start: Sequence[float] = (0.1, 0.9), **keywords: Any
    ) -> None:
        self.model = Progress()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.landscape = Landscape(optimum, start, **keywords)
        self.metric: Any = Height()
        self.data = Rows()

    def validate(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(torch.zeros(3, 1)).detach(), torch.zeros(3, dtype=torch.int64)

    def loss(self, total_steps: int, mode: str = "fixed", **keywords: Any) -> ALALoss:
        return ALALoss(self.landscape, self.metric, self.validate, total_steps, mode=mode, **keywords)

    def fit(self, total_steps: int, mode: str, **keywords: Any) -> training.FitResult:
        loss_fn = keywords.pop("loss_fn", None) or self.loss(total_steps)
        return training.fit(
            self.model,
            loss_fn,
            self.data,
            total_steps=total_steps,
            optimizer=self.optimizer,
            batch_classes=2,
            per_class=2,
            mode=mode,
            **keywords,
        )
