"""Two views of the same items, without labels."""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import _pml
from ._wrapper import PassesPhiOn


class SelfSupervisedLoss(PassesPhiOn, _pml.SelfSupervisedLoss):
    r"""pytorch-metric-learning's ``SelfSupervisedLoss`` for every loss: theirs admits a list of class names.

    Row i of the second view is the only positive of row i of the first:

    .. math:: \text{loss}(x, y) = L\big([x; y],\; [0 \ldots N-1,\; 0 \ldots N-1]\big)

    and with ``symmetric=False`` rows of :math:`x` are the anchors and rows of :math:`y` the references.

    Parameters
    ----------
    loss
        Any loss that takes ``(embeddings, labels, indices_tuple, ref_emb, ref_labels)``. To adapt it, put
        ``ALALoss`` around this one.
    symmetric
        Whether the second view's rows are anchors too.
    **kwargs
        None known; passed on.

    Raises
    ------
    TypeError
        If the loss is no module.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.SelfSupervisedLoss(losses.FocalWeightingLoss())
    >>> loss_fn(torch.eye(3), torch.eye(3).flip(0))
    tensor(1.0904)
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True, **kwargs: Any) -> None:
        super().__init__(loss=loss, symmetric=symmetric, **kwargs)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Admit every loss."""
