"""What the residual and dense networks share."""

from __future__ import annotations

import torch
from torch import nn


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size (at stride 1)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def pre_activated(inputs: int, *layers: nn.Module) -> nn.Sequential:
    """Batch normalisation and ReLU before the layers."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *layers)


class ImageClassifier(nn.Module):
    """Features, their mean over the image, and a linear layer; the convolutions get He's initialisation.

    Parameters
    ----------
    features
        Maps images to ``[B, width, H, W]``.
    width
        Channels of the features.
    outputs
        Classes.
    """

    def __init__(self, features: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, outputs]`` of images ``[B, inputs, H, W]``."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def blocks_of(depth: int, per_block: int, extra: int, name: str) -> int:
    """Blocks in each of three stages of a network with ``depth`` layers."""
    blocks, rest = divmod(depth - extra, 3 * per_block)
    if depth <= extra or rest or blocks < 1:
        raise ValueError(f"depth of {name} must be {3 * per_block} n + {extra} with n >= 1, got {depth}")
    return blocks
