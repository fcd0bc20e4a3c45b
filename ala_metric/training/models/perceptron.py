"""A multi-layer perceptron for very small images."""

from __future__ import annotations

import math

import torch
from torch import nn


class Perceptron(nn.Module):
    """Two hidden layers of ReLU units.

    Parameters
    ----------
    outputs
        Classes.
    shape
        Of an image, ``(channels, height, width)``.
    hidden
        Units of each hidden layer.

    Raises
    ------
    ValueError
        If a number is not positive.

    Examples
    --------
    >>> import torch
    >>> Perceptron(10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, outputs: int, shape: tuple[int, int, int], hidden: int = 64) -> None:
        super().__init__()
        if min(outputs, hidden, *shape) < 1:
            raise ValueError(f"outputs, shape and hidden must be positive, got {outputs}, {shape}, {hidden}")
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, outputs]`` of images ``[B, channels, height, width]``."""
        logits: torch.Tensor = self.layers(images)
        return logits
