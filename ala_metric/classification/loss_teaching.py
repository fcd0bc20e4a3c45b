"""Learning to teach with dynamic loss functions: Phi follows a gradient (L2T-DLF of Table 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .._streams import preserved_random_streams
from ._batch import StepCounter, check_count
from .correlations import class_pairs
from .loss import AdaptiveClassificationLoss

Batch = tuple[torch.Tensor, torch.Tensor]


class LossTeaching(StepCounter):
    """Wraps an adaptive loss and moves its Phi down the gradient of a differentiable validation error.

    Every ``every`` training steps, with w the weights and one step of plain gradient descent unrolled:
    ``dE/dPhi = -lr (dE/dw)^T d^2 l_Phi / (dw dPhi)``, and ``Phi <- Phi - step dE/dPhi / max |dE/dPhi|``,
    clipped into the loss's range. E is the mean of ``1 - p``, the expected error, on a validation batch. This
    is the gradient of Wu et al. 2018 (Sec. 3.2, reverse-mode differentiation through the student's training)
    cut off after one step, for Phi itself instead of a network that puts Phi out.

    Parameters
    ----------
    loss
        An :class:`AdaptiveClassificationLoss`. With ``top_confusions`` only the pairs that its last
        ``statistics`` chose are moved.
    model
        The model that is trained; run in eval mode on the validation batch.
    validation_batch
        ``validation_batch() -> (inputs, targets)``.
    every
        Training steps between two moves.
    step
        Largest change of an entry of Phi per move.

    Raises
    ------
    ValueError
        If ``every`` or ``step`` is not positive, or the loss has class weights or label smoothing.

    Examples
    --------
    >>> model = torch.nn.Linear(4, 3)
    >>> inputs, targets = torch.randn(6, 4), torch.arange(6) % 3
    >>> loss = AdaptiveClassificationLoss(3, off_diagonal=True)
    >>> loss_fn = LossTeaching(loss, model, lambda: (inputs, targets), every=1)
    >>> value = loss_fn(model(inputs), targets)
    >>> bool((loss.phi != torch.eye(3)).any())
    True
    """

    model: nn.Module
    validation_batch: Callable[[], Batch]

    def __init__(
        self,
        loss: AdaptiveClassificationLoss,
        model: nn.Module,
        validation_batch: Callable[[], Batch],
        every: int = 10,
        step: float = 0.02,
    ) -> None:
        super().__init__()
        if loss.weight is not None or loss.label_smoothing:
            raise ValueError("LossTeaching needs a loss without class weights and label smoothing")
        self.loss = loss
        self.every = check_count("every", every)
        if not 0.0 < step < float("inf"):
            raise ValueError(f"step must be positive and finite, got {step}")
        self.step_size = float(step)
        # Not a submodule: the model's weights are saved with the model.
        self.__dict__.update(model=model, validation_batch=validation_batch)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of logits ``[B, C]`` and targets ``[B]``; moves Phi first where that is due."""
        if self.is_training_call():
            if int(self.steps) % self.every == 0 and logits.requires_grad and len(logits):
                self._move(logits, targets)
            self.steps += 1
        value: torch.Tensor = self.loss(logits, targets)
        return value

    def hypergradient(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """``dE/dPhi`` per unit of learning rate, in the order of ``loss.phi_spec``.

        Parameters
        ----------
        logits
            ``[B, C]``, with the graph back to the model's weights.
        targets
            ``[B]``.

        Returns
        -------
        torch.Tensor
            ``[n_params]``.
        """
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        outer = torch.autograd.grad(self._validation_error(), weights, allow_unused=True)
        vector = self.loss.phi_vector.to(logits.dtype).requires_grad_()
        inner = _value_at(self.loss, vector, logits, targets.long())
        slopes = torch.autograd.grad(inner, weights, create_graph=True, allow_unused=True)
        along = [(o * s).sum() for o, s in zip(outer, slopes) if o is not None and s is not None]
        if not along:
            return torch.zeros_like(vector)
        (gradient,) = torch.autograd.grad(torch.stack(along).sum(), vector, retain_graph=True)
        return -gradient

    def _validation_error(self) -> torch.Tensor:
        """Expected error of the model in eval mode; the modes of its parts are put back."""
        modes = [(part, part.training) for part in self.model.modules()]
        self.model.eval()
        try:
            with preserved_random_streams():
                inputs, targets = self.validation_batch()
                outputs = self.model(inputs)
        finally:
            for part, training in modes:
                part.training = training
        return 1.0 - outputs.softmax(1).gather(1, targets[:, None].to(outputs.device)).mean()

    def _move(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        gradient = self.hypergradient(logits, targets)
        largest = float(gradient.abs().max())
        if not 0.0 < largest < float("inf"):
            return
        spec = self.loss.phi_spec
        low, high = (gradient.new_tensor([getattr(s, end) for s in spec]) for end in ("low", "high"))
        moved = self.loss.phi_vector.to(gradient) - self.step_size * gradient / largest
        self.loss.set_phi(moved.clamp(low, high))


def _value_at(
    loss: AdaptiveClassificationLoss, vector: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The mean loss as a differentiable function of Phi too."""
    log_probs = logits.log_softmax(1)
    valid = targets != loss.ignore_index
    labels = torch.where(valid, targets, 0)
    if loss.off_diagonal:
        rows, columns = class_pairs(loss.num_classes, vector.device) if loss.pairs is None else loss.pairs
        matrix = loss.phi.to(vector).index_put((rows, columns), vector).index_put((columns, rows), vector)
        u = (matrix[labels] * log_probs).sum(1)
    else:
        u = vector[labels] * log_probs.gather(1, labels[:, None])[:, 0]
    return torch.where(valid, loss.of_u(u), 0).sum() / valid.sum().clamp_min(1)
