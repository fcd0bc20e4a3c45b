"""What to classify by: the model's outputs, or what the loss makes of them."""

from __future__ import annotations

from typing import Any

import torch


def class_scores(loss_fn: Any, outputs: torch.Tensor) -> torch.Tensor:
    """Scores ``[B, C]`` of the classes: ``loss_fn.logits(outputs)`` where the loss holds the classifier.

    Parameters
    ----------
    loss_fn
        Any loss of this package, or another callable.
    outputs
        Of the model, ``[B, D]``; without a classifier in the loss ``D = C``.

    Returns
    -------
    torch.Tensor
        ``[B, C]``.

    Raises
    ------
    ValueError
        If the outputs are not ``[B, D]``.

    Examples
    --------
    >>> class_scores(torch.nn.CrossEntropyLoss(), torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    if outputs.ndim != 2:
        raise ValueError(f"outputs must be [B, D], got {list(outputs.shape)}")
    scores: torch.Tensor = loss_fn.logits(outputs) if hasattr(loss_fn, "logits") else outputs
    return scores
