"""What every loss of this package does first with a batch, and how it counts training steps."""

from __future__ import annotations

import torch
from torch import nn

from .confusion import check_batch, check_readable_targets, check_tensors


def checked(
    logits: torch.Tensor, targets: torch.Tensor, num_classes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in at least float32 and int64 targets, or an error that names what is wrong."""
    check_tensors(logits=logits, targets=targets)
    if num_classes is None:
        num_classes = logits.shape[1] if logits.ndim == 2 else 2
    check_batch("logits", logits, targets, num_classes)
    targets = targets.long()
    check_readable_targets(targets, num_classes)
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits), targets


def mean(losses: torch.Tensor) -> torch.Tensor:
    """Mean that is 0, with a graph, for an empty batch."""
    return losses.sum() / max(losses.numel(), 1)


def check_count(name: str, value: int) -> int:
    """A positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


class StepCounter(nn.Module):
    """Counts training calls: those in training mode with gradients enabled."""

    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def is_training_call(self) -> bool:
        """Whether this call belongs to a training step."""
        return self.training and torch.is_grad_enabled()
