"""Self-paced learning: easy samples first."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._batch import StepCounter, check_count, checked, mean


class SelfPacedLoss(StepCounter):
    """Cross-entropy over the easiest samples of each batch, more of them as training goes on.

    ``loss = sum_i v_i l_i / sum_i v_i`` with ``v_i = [l_i <= lambda_t]`` (Kumar et al. 2010, Eq. 3 with hard
    weights). The threshold lambda_t is the quantile of the batch's losses that keeps a share of them; the
    share grows linearly from ``start`` to 1 over the first ``until`` of the run.

    Parameters
    ----------
    total_steps
        Training steps of the whole run.
    start
        Share kept at the first step, in (0, 1].
    until
        Part of the run after which every sample counts, in [0, 1].

    Raises
    ------
    ValueError
        If an argument is out of its range; if a shape is wrong or a target out of range.

    Examples
    --------
    >>> loss_fn = SelfPacedLoss(total_steps=100, start=0.5)
    >>> logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    >>> targets = torch.tensor([0, 0])
    >>> bool(loss_fn(logits, targets) < F.cross_entropy(logits, targets))
    True
    """

    def __init__(self, total_steps: int, start: float = 0.5, until: float = 0.5) -> None:
        super().__init__()
        self.total_steps = check_count("total_steps", total_steps)
        if not 0.0 < start <= 1.0:
            raise ValueError(f"start must lie in (0, 1], got {start}")
        if not 0.0 <= until <= 1.0:
            raise ValueError(f"until must lie in [0, 1], got {until}")
        self.start, self.until = float(start), float(until)

    @property
    def share(self) -> float:
        """Part of a batch that counts now."""
        done = int(self.steps) / max(self.until * self.total_steps, 1)
        return min(1.0, self.start + (1.0 - self.start) * done)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of the samples that count, for logits ``[B, C]`` and targets ``[B]``."""
        logits, targets = checked(logits, targets)
        losses = F.cross_entropy(logits, targets, reduction="none")
        if not self.is_training_call() or len(losses) == 0:
            return mean(losses)
        keep = max(1, round(self.share * len(losses)))
        self.steps += 1
        return losses.topk(keep, largest=False, sorted=False).values.mean()
