"""Large-margin softmax, with the classifier inside the loss."""

from __future__ import annotations

import warnings

import torch

from .._pml import LargeMarginSoftmaxLoss
from ._batch import StepCounter, check_count
from .confusion import check_batch, check_readable_targets

EASING_START, EASING_RATE, EASING_END = 1000.0, 0.1, 5.0


class LargeMarginSoftmax(StepCounter):
    """Softmax that asks for a multiple of the angle to the target's weight vector (Liu et al. 2016, Eq. 4-7).

    ``loss = -log softmax(|w_c| |x| psi(theta_c))`` with ``psi(theta) = (-1)^k cos(m theta) - 2k`` for the
    target, k the number of whole intervals pi/m in theta, and ``cos(theta)`` for the other classes. As in
    their Sec. 5.1 the target's part is eased in, ``(lambda cos(theta) + psi(theta)) / (1 + lambda)`` with
    ``lambda = max(5, 1000 / (1 + 0.1 step))``: training from the start with the whole margin does not get off
    the ground. The computation is pytorch-metric-learning's. The model gives features; the class weights are
    parameters of this loss and go to the optimizer with those of the model.

    Parameters
    ----------
    embedding_size
        Width of the features.
    num_classes
        C, at least 2.
    margin
        m; 1 is plain softmax without bias.

    Raises
    ------
    ValueError
        If a count is not positive; if a shape is wrong or a target out of range.

    Examples
    --------
    >>> loss_fn = LargeMarginSoftmax(embedding_size=3, num_classes=4)
    >>> features = torch.randn(5, 3)
    >>> loss_fn(features, torch.tensor([0, 1, 2, 3, 0])).ndim, tuple(loss_fn.logits(features).shape)
    (0, (5, 4))
    """

    def __init__(self, embedding_size: int, num_classes: int, margin: int = 2) -> None:
        super().__init__()
        if check_count("num_classes", num_classes) < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.embedding_size = check_count("embedding_size", embedding_size)
        self.num_classes = num_classes
        check_count("margin", margin)
        with warnings.catch_warnings():  # it makes NumPy 2 warn
            warnings.simplefilter("ignore", DeprecationWarning)
            self.inner = _Eased(num_classes, embedding_size, margin)
        # Its standard normal weights give logits so large that SGD at the usual rates diverges.
        torch.nn.init.normal_(self.inner.W, std=embedding_size**-0.5)

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of features ``[B, D]`` and targets ``[B]``; 0 for an empty batch."""
        check_batch("features", features, targets, self.embedding_size)
        targets = targets.long()
        check_readable_targets(targets, self.num_classes)
        if len(targets) == 0:
            return features.sum() * self.inner.W.sum()  # a 0 whose graph has both
        self.inner.easing = max(EASING_END, EASING_START / (1.0 + EASING_RATE * int(self.steps)))
        if self.is_training_call():
            self.steps += 1
        loss: torch.Tensor = self.inner(features, targets)
        return loss

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scores ``[B, C]`` to classify by: without the margin."""
        scores: torch.Tensor = self.inner.get_logits(features)
        return scores


class _Eased(LargeMarginSoftmaxLoss):
    """The margin mixed with the plain angle."""

    easing = 0.0

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = super().modify_cosine_of_target_classes(cosine_of_target_classes)
        return (self.easing * cosine_of_target_classes + whole) / (1.0 + self.easing)
