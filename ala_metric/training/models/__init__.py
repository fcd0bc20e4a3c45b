"""Networks of the classification tables, for images of 32 x 32 and smaller ones."""

from __future__ import annotations

from .densenet import DenseNet
from .perceptron import Perceptron
from .registry import MODELS, make
from .resnet import ResNet
from .wide_resnet import WideResNet

__all__ = ["MODELS", "DenseNet", "Perceptron", "ResNet", "WideResNet", "make"]
