"""Densely connected network with bottlenecks and compression (DenseNet-BC)."""

from __future__ import annotations

import torch
from torch import nn

from ._parts import ImageClassifier, blocks_of, convolution, pre_activated


class _Layer(nn.Module):
    """Adds ``growth`` channels, by way of a bottleneck of four times as many."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            pre_activated(inputs, convolution(inputs, 4 * growth, 1)),
            pre_activated(4 * growth, convolution(4 * growth, growth)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat((images, self.body(images)), 1)


class DenseNet(ImageClassifier):
    """DenseNet-BC for CIFAR of Huang et al. 2017, Sec. 4.2: 6n + 4 layers, half the channels kept.

    With depth 100, growth 12 and 10 outputs it has 769,162 parameters.

    Parameters
    ----------
    outputs
        Classes.
    depth
        6n + 4.
    growth
        Channels that each layer adds.
    inputs
        Channels of the images.

    Raises
    ------
    ValueError
        If the depth is not 6n + 4.

    Examples
    --------
    >>> import torch
    >>> DenseNet(10, depth=10, growth=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, outputs: int, depth: int = 100, growth: int = 12, inputs: int = 3) -> None:
        count = blocks_of(depth, 2, 4, "DenseNet")
        channels = 2 * growth
        layers: list[nn.Module] = [convolution(inputs, channels)]
        for stage in range(3):
            for _ in range(count):
                layers.append(_Layer(channels, growth))
                channels += growth
            if stage < 2:
                layers.append(
                    pre_activated(channels, convolution(channels, channels // 2, 1), nn.AvgPool2d(2))
                )
                channels //= 2
        super().__init__(nn.Sequential(*layers, pre_activated(channels)), channels, outputs)
