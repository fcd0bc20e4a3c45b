"""Named settings: a loss and how the controller moves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .correlations import DIAGONAL_LOW
from .loss import AdaptiveClassificationLoss, Form


@dataclass(frozen=True)
class Preset:
    """A loss for classifiers and the controller's settings that belong to it.

    ``l = f(y^T Phi log p)`` (Eq. 6) with f by ``form``.

    Parameters
    ----------
    form
        Of :class:`AdaptiveClassificationLoss`.
    off_diagonal
        Whether pairs of different classes may move.
    off_diagonal_step
        Their step in units of beta; None is ``1 / (C - 1)``.
    diagonal_low
        Least value of the diagonal.
    beta
        Step size.
    every
        Training iterations per controller step, the paper's K.
    children
        Models that share the controller.

    Examples
    --------
    >>> PRESETS["paper"].every, PRESETS["paper"].children
    (200, 10)
    """

    form: Form = "softplus"
    off_diagonal: bool = False
    off_diagonal_step: float | None = None
    diagonal_low: float = DIAGONAL_LOW
    beta: float = 0.1
    every: int = 200
    children: int = 1

    def loss(self, num_classes: int, **options: Any) -> AdaptiveClassificationLoss:
        """A new loss; ``options`` as for :class:`AdaptiveClassificationLoss`."""
        return AdaptiveClassificationLoss(
            num_classes,
            self.form,
            self.off_diagonal,
            off_diagonal_step=self.off_diagonal_step,
            diagonal_low=self.diagonal_low,
            **options,
        )


PRESETS = {
    "default": Preset(),
    "paper": Preset(form="sigmoid", off_diagonal=True, off_diagonal_step=1.0, children=10),
}


def preset(name: str) -> Preset:
    """Settings by name: ``"default"``, or ``"paper"`` for Eq. 6 and Sec. 5 taken literally.

    ``"paper"`` is ``l = -sigmoid(y^T Phi log p)`` with all class pairs free, beta 0.1, K = 200 and 10
    children. It is here to be compared with: the bounded loss has no gradient for badly wrong samples, and
    free off-diagonals harmed training in every trial.

    Parameters
    ----------
    name
        A key of ``PRESETS``.

    Returns
    -------
    Preset
        The settings.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> preset("paper").loss(10).form
    'sigmoid'
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
