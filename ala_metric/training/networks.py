"""A small network for small images."""

from __future__ import annotations

import torch
from torch import nn


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class SmallConvNet(nn.Module):
    """Three convolutions with batch normalisation, pooled to 4 x 4, and a linear layer.

    Parameters
    ----------
    dim
        Width of the output: dimensions of the embedding, or classes.
    channels
        Output channels of the three convolutions.
    inputs
        Channels of the images: 1 for grey, 3 for RGB.

    Raises
    ------
    ValueError
        If ``dim`` or ``inputs`` is not positive.

    Notes
    -----
    Input float32 ``[B, inputs, H, W]`` with ``H, W >= 4``, output ``[B, dim]``, not normalised.

    Examples
    --------
    >>> import torch
    >>> SmallConvNet(dim=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, dim: int = 64, channels: tuple[int, int, int] = (16, 32, 64), inputs: int = 1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if inputs < 1:
            raise ValueError(f"inputs must be at least 1, got {inputs}")
        first, second, third = channels
        self.features = nn.Sequential(
            _convolution(inputs, first),
            nn.MaxPool2d(2),
            _convolution(first, second),
            nn.MaxPool2d(2),
            _convolution(second, third),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(third * 16, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``[B, inputs, H, W]`` to outputs ``[B, dim]``."""
        outputs: torch.Tensor = self.head(self.features(images).flatten(1))
        return outputs
