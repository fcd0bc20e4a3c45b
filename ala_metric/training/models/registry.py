"""Networks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from ..networks import SmallConvNet
from .densenet import DenseNet
from .perceptron import Perceptron
from .resnet import ResNet
from .wide_resnet import WideResNet

Shape = tuple[int, int, int]


def _nasnet(outputs: int, shape: Shape) -> nn.Module:
    """NASNet-A (Large), from timm alone."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("the network nasnet comes with timm: pip install timm") from error
    network: nn.Module = timm.create_model(
        "nasnetalarge", pretrained=False, num_classes=outputs, in_chans=shape[0]
    )
    return network


MODELS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "perceptron": lambda outputs, shape: Perceptron(outputs, shape),
    "convnet": lambda outputs, shape: SmallConvNet(outputs, inputs=shape[0]),
    "resnet32": lambda outputs, shape: ResNet(outputs, inputs=shape[0]),
    "wrn": lambda outputs, shape: WideResNet(outputs, inputs=shape[0]),
    "densenet": lambda outputs, shape: DenseNet(outputs, inputs=shape[0]),
    "nasnet": _nasnet,
}


def make(name: str, outputs: int, shape: Shape) -> nn.Module:
    """A network with new weights, drawn from torch's global stream.

    Parameters
    ----------
    name
        ``"perceptron"``, ``"convnet"``, ``"resnet32"``, ``"wrn"`` (WRN-28-10), ``"densenet"``
        (DenseNet-BC, 100 layers, growth 12) or ``"nasnet"`` (NASNet-A, needs timm).
    outputs
        Classes.
    shape
        Of an image, ``(channels, height, width)``.

    Returns
    -------
    torch.nn.Module
        Maps images ``[B, *shape]`` to logits ``[B, outputs]``.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the network needs a package that is missing.

    Examples
    --------
    >>> sum(p.numel() for p in make("resnet32", 10, (3, 32, 32)).parameters())
    464154
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](outputs, shape)
