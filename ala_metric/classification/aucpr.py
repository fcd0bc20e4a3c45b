"""Area under the precision-recall curve as a loss, with anchors and Lagrange multipliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._batch import check_count, checked


class AUCPRLoss(nn.Module):
    """Recall at several precisions, each a constraint with a multiplier of its own (Eban et al. 2017).

    The area under the curve is approximated by the best recall at A anchor precisions a between the class's
    share of the data and 1. For class c and anchor a (their Eq. 8 and 10, hinge losses, divided by the
    number of samples):
    ``L = mean_a [(1 + lambda) L+ + lambda a / (1 - a) L- - lambda pi]`` with
    ``L+ = mean_i [y_i = c] max(0, 1 - (f_c(x_i) - b))``, ``L- = mean_i [y_i != c] max(0, 1 + f_c(x_i) - b)``
    and pi the share of class c. The thresholds b are minimised over, the multipliers lambda >= 0 maximised:
    their gradient is reversed, so one optimizer does both.

    Parameters
    ----------
    num_classes
        C, at least 2.
    anchors
        A, precisions per class.
    priors
        ``[C]`` shares of the classes in the training data; equal if not given.

    Raises
    ------
    ValueError
        If an argument is out of its range; if a shape is wrong or a target out of range.

    Examples
    --------
    >>> loss_fn = AUCPRLoss(num_classes=2, anchors=3)
    >>> loss = loss_fn(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> sorted(name for name, _ in loss_fn.named_parameters())
    ['multipliers', 'thresholds']
    """

    precisions: torch.Tensor
    priors: torch.Tensor

    def __init__(self, num_classes: int, anchors: int = 10, priors: torch.Tensor | None = None) -> None:
        super().__init__()
        if check_count("num_classes", num_classes) < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        check_count("anchors", anchors)
        shares = torch.full((num_classes,), 1.0 / num_classes) if priors is None else torch.as_tensor(priors)
        shares = shares.detach().to(torch.float32).clone()
        if shares.shape != (num_classes,) or not ((shares >= 0) & (shares < 1)).all():
            raise ValueError(f"priors must be [{num_classes}] shares in [0, 1), got {shares.tolist()}")
        places = torch.arange(1, anchors + 1) / (anchors + 1)
        self.num_classes = num_classes
        self.register_buffer("priors", shares)
        self.register_buffer("precisions", shares[:, None] + (1 - shares[:, None]) * places)
        self.thresholds = nn.Parameter(torch.zeros(num_classes, anchors))
        self.multipliers = nn.Parameter(torch.ones(num_classes, anchors))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of logits ``[B, C]`` and targets ``[B]``, 0 if B is; makes a ``[B, C, anchors]`` table."""
        logits, targets = checked(logits, targets, self.num_classes)
        self.multipliers.data.clamp_(min=0.0)  # .data: a graph of an earlier call may still need them
        multipliers = _Reversed.apply(self.multipliers)
        gap = logits[:, :, None] - self.thresholds
        positive = nn.functional.one_hot(targets, self.num_classes)[:, :, None].to(logits.dtype)
        count = max(len(targets), 1)
        missed = (positive * torch.relu(1.0 - gap)).sum(0) / count
        false = ((1.0 - positive) * torch.relu(1.0 + gap)).sum(0) / count
        odds = self.precisions / (1.0 - self.precisions)
        priors = self.priors[:, None] * min(len(targets), 1)
        value: torch.Tensor = ((1.0 + multipliers) * missed + multipliers * (odds * false - priors)).mean()
        return value


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient
