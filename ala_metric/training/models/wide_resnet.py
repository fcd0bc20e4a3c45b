"""Wide residual network."""

from __future__ import annotations

import torch
from torch import nn

from ._parts import ImageClassifier, blocks_of, convolution, pre_activated


class _Block(nn.Module):
    """Pre-activated block; where the shape changes, the shortcut is a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.start = pre_activated(inputs)
        self.body = nn.Sequential(
            convolution(inputs, outputs, stride=stride),
            pre_activated(outputs, nn.Dropout(dropout), convolution(outputs, outputs)),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride) if changes else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        active = self.start(images)
        shortcut = images if self.shortcut is None else self.shortcut(active)
        total: torch.Tensor = self.body(active) + shortcut
        return total


class WideResNet(ImageClassifier):
    """WRN-28-10 of Zagoruyko & Komodakis 2016: 6n + 4 layers, the channels of ResNet times a width.

    With 10 outputs it has 36,479,194 parameters.

    Parameters
    ----------
    outputs
        Classes.
    depth
        6n + 4.
    width
        Factor on 16, 32 and 64 channels.
    dropout
        Between the two convolutions of a block, in [0, 1).
    inputs
        Channels of the images.

    Raises
    ------
    ValueError
        If the depth is not 6n + 4.

    Examples
    --------
    >>> import torch
    >>> WideResNet(10, depth=10, width=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, outputs: int, depth: int = 28, width: int = 10, dropout: float = 0.0, inputs: int = 3
    ) -> None:
        blocks = blocks_of(depth, 2, 4, "WideResNet")
        layers: list[nn.Module] = [convolution(inputs, 16)]
        channels = 16
        for stage in range(3):
            for block in range(blocks):
                layers.append(
                    _Block(channels, (16 << stage) * width, 2 if stage and not block else 1, dropout)
                )
                channels = (16 << stage) * width
        super().__init__(nn.Sequential(*layers, pre_activated(channels)), channels, outputs)
