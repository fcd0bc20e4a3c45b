"""What the residual and dense networks share."""

from __future__ import annotations

from torch import nn


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size (at stride 1)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def pre_activated(inputs: int, *layers: nn.Module) -> nn.Sequential:
    """Batch normalisation and ReLU before the layers."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *layers)


def classifier(width: int, outputs: int) -> nn.Sequential:
    """Mean over the image, and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


def blocks_of(depth: int, per_block: int, extra: int, name: str) -> int:
    """Blocks in each of three stages of a network with ``depth`` layers."""
    blocks, rest = divmod(depth - extra, 3 * per_block)
    if depth <= extra or rest or blocks < 1:
        raise ValueError(f"depth of {name} must be {3 * per_block} n + {extra} with n >= 1, got {depth}")
    return blocks


def initialise(network: nn.Module) -> None:
    """He's initialisation of the convolutions (fan out), zero biases."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
