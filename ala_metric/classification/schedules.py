"""Correlations that are set by a rule instead of a controller: the two weak baselines of Table 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from .._streams import preserved_random_streams
from ._batch import StepCounter, check_count
from .confusion import class_confusion
from .loss import AdaptiveClassificationLoss

Rule = Literal["random", "confusion"]
NOISE = 0.1


class ScheduledCorrelations(StepCounter):
    """Wraps an adaptive loss and sets its Phi by a rule every ``every`` training steps.

    ``rule="random"``: ``Phi = I + 0.1 N`` with symmetric standard normal N, drawn anew (Sec. 6.1: "identity
    matrix perturbed by 10% noise"), clipped into the loss's range.
    ``rule="confusion"``: the confusions of Eq. 7 as Phi. The paper does not say how they are brought into
    [-1, 1]; here ``Phi_ij = -(q_ij + q_ji) / 2`` off the diagonal with ``q_ij = exp(-C_ij)``, the geometric
    mean of the probability of j on samples of i, so that confused classes are pushed apart, and 1 on it.

    Parameters
    ----------
    loss
        An :class:`AdaptiveClassificationLoss`; off-diagonals move only if it has them.
    rule
        ``"random"`` or ``"confusion"``.
    every
        Training steps between two matrices.
    validate
        ``validate() -> (logits, targets)``, needed by ``"confusion"``.
    seed
        Of the noise; no global random stream is touched.

    Raises
    ------
    ValueError
        If the rule is unknown, ``every`` not positive, or ``validate`` missing where it is needed.

    Examples
    --------
    >>> loss_fn = ScheduledCorrelations(AdaptiveClassificationLoss(3, off_diagonal=True), "random", every=5)
    >>> value = loss_fn(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> bool((loss_fn.loss.phi != torch.eye(3)).any())
    True
    """

    validate: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    def __init__(
        self,
        loss: AdaptiveClassificationLoss,
        rule: Rule,
        every: int = 200,
        validate: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rule not in ("random", "confusion"):
            raise ValueError(f"rule must be 'random' or 'confusion', got {rule!r}")
        if rule == "confusion" and validate is None:
            raise ValueError("rule='confusion' needs validate, got None")
        self.loss = loss
        self.rule = rule
        self.every = check_count("every", every)
        self.__dict__["validate"] = validate
        self.generator = torch.Generator(device="cpu").manual_seed(seed)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of logits ``[B, C]`` and targets ``[B]`` under the present Phi."""
        if self.is_training_call():
            done = int(self.steps)
            if done % self.every == 0 and (self.rule == "random" or done > 0):
                self.loss.set_phi(self._matrix())
            self.steps += 1
        value: torch.Tensor = self.loss(logits, targets)
        return value

    def _matrix(self) -> torch.Tensor:
        """The next Phi, clipped into its range."""
        classes = self.loss.num_classes
        if self.rule == "random":
            noise = torch.randn(classes, classes, generator=self.generator).triu()
            matrix = torch.eye(classes) + NOISE * (noise + noise.triu(1).T)
        else:
            with preserved_random_streams(), torch.no_grad():
                outputs, labels = self.validate()
                confusion = class_confusion(outputs.double().log_softmax(1), labels, classes)
            known = torch.bincount(labels.long(), minlength=classes) > 0
            shares = torch.where(known[:, None] & known, (-confusion).exp(), 0.0)
            matrix = -(shares + shares.T) / 2
            matrix.fill_diagonal_(1.0)
        vector = matrix if self.loss.off_diagonal else matrix.diagonal()
        low = torch.full_like(vector, -1.0)
        (low.fill_diagonal_ if low.ndim == 2 else low.fill_)(self.loss.phi_spec[0].low)
        return vector.clamp(low, torch.ones_like(low))

    def get_extra_state(self) -> dict[str, Any]:
        """State of the noise."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`get_extra_state`."""
        self.generator.set_state(state["generator"].cpu())
