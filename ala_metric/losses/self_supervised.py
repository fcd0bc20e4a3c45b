"""Two views of the same items, without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _pml
from .._gather import world_size
from .._ranks import rank
from ._wrapper import PassesPhiOn, part_named


class SelfSupervisedLoss(PassesPhiOn, _pml.SelfSupervisedLoss):
    r"""pytorch-metric-learning's ``SelfSupervisedLoss`` for every loss: theirs admits a list of class names.

    Row i of the second view is the only positive of row i of the first:

    .. math:: \text{loss}(x, y) = L\big([x; y],\; [0 \ldots N-1,\; 0 \ldots N-1]\big)

    and with ``symmetric=False`` rows of :math:`x` are the anchors and rows of :math:`y` the references. Under
    torch.distributed the labels of the ranks differ, so that the rows of other ranks, which
    ``SelfSupervisedLoss(DistributedLoss(loss))`` compares with, are negatives.

    Parameters
    ----------
    loss
        Any loss that takes ``(embeddings, labels, indices_tuple, ref_emb, ref_labels)``. To adapt it, put
        ``ALALoss`` around this one. No ``CrossBatchMemory``: the items of other batches need other labels.
    symmetric
        Whether the second view's rows are anchors too.
    **kwargs
        None known; passed on.

    Raises
    ------
    TypeError
        If the loss is no module, or is or holds a ``CrossBatchMemory``.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import losses
    >>> loss_fn = losses.SelfSupervisedLoss(losses.FocalWeightingLoss())
    >>> loss_fn(torch.eye(3), torch.eye(3).flip(0))
    tensor(1.0904)
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True, **kwargs: Any) -> None:
        if isinstance(loss, nn.Module) and part_named(loss, "CrossBatchMemory"):
            raise TypeError(
                "SelfSupervisedLoss gives the items of every batch the same labels, and CrossBatchMemory "
                "keeps them: use CrossBatchMemory alone and call it with labels that no other item has"
            )
        super().__init__(loss=loss, symmetric=symmetric, **kwargs)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Admit every loss."""

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Any:
        """Loss of two views, both of shape [N, D]."""
        labels = torch.arange(embeddings.shape[0]) * world_size() + rank()
        if self.symmetric:
            return self.loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]))
        return self.loss(embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=labels.clone())
