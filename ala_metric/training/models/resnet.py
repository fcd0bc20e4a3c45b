"""ResNet for CIFAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ._parts import ImageClassifier, blocks_of, convolution


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every other pixel, new channels zero (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shortcut = images[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return torch.relu(self.body(images) + shortcut)


class ResNet(ImageClassifier):
    """The residual network for CIFAR of He et al. 2016, Sec. 4.2: 6n + 2 layers, 16, 32 and 64 channels.

    At depth 32 with 10 outputs it has 464,154 parameters.

    Parameters
    ----------
    outputs
        Classes.
    depth
        6n + 2.
    inputs
        Channels of the images.

    Raises
    ------
    ValueError
        If the depth is not 6n + 2.

    Examples
    --------
    >>> import torch
    >>> ResNet(10, depth=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, outputs: int, depth: int = 32, inputs: int = 3) -> None:
        blocks = blocks_of(depth, 2, 2, "ResNet")
        layers: list[nn.Module] = [convolution(inputs, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        width = 16
        for stage in range(3):
            for block in range(blocks):
                layers.append(_Block(width, 16 << stage, 2 if stage and not block else 1))
                width = 16 << stage
        super().__init__(nn.Sequential(*layers), width, outputs)
