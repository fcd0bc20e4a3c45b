"""Outputs of a model over a whole data set, leaving no trace in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._streams import preserved_random_streams


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a module that has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside every submodule has the mode it had, frozen ones included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def embed(model: nn.Module, loader: Iterable[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model over a data set: the usual ``validate`` of an adaptive loss.

    The model runs in eval mode without gradients, so BatchNorm statistics do not move. Afterwards each
    submodule is in the mode it was in, and the global random streams stand where they stood.

    Parameters
    ----------
    model
        Maps a batch of inputs to outputs ``[B, D]``.
    loader
        Yields ``(inputs [B, ...], targets [B])`` as tensors or arrays, for example a ``DataLoader`` that does
        not shuffle.

    Returns
    -------
    tuple of torch.Tensor
        Outputs ``[N, D]`` in the model's dtype and targets ``[N]``, both on the model's device.

    Raises
    ------
    TypeError
        If the loader yields anything but pairs, the model is none, or its outputs are no tensor.
    ValueError
        If the loader yields nothing, or a batch has another number of outputs than of targets.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.BatchNorm1d(3)
    >>> outputs, targets = embed(model, [(torch.randn(4, 3), torch.arange(4))])
    >>> tuple(outputs.shape), targets.tolist(), model.training, model.num_batches_tracked.item()
    ((4, 3), [0, 1, 2, 3], True, 0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    device = device_of(model)
    outputs: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    # Even a loader that does not shuffle draws one number from torch's global stream.
    with preserved_random_streams(), evaluating(model), torch.no_grad():
        for number, batch in enumerate(loader):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
                raise TypeError(f"loader must yield (inputs, targets) batches, got {what}")
            inputs, labels = batch
            if not hasattr(inputs, "to"):
                inputs = torch.as_tensor(inputs)
            found = model(inputs.to(device, non_blocking=True))
            if not isinstance(found, torch.Tensor):
                raise TypeError(f"model must give a tensor, got {type(found).__name__}")
            labels = torch.as_tensor(labels).to(device, non_blocking=True)
            if found.ndim == 0 or found.shape[:1] != labels.shape[:1]:
                raise ValueError(
                    f"model must give one row of outputs per target, got {list(found.shape)} outputs for "
                    f"{list(labels.shape)} targets in batch {number}, counted from 0"
                )
            outputs.append(found)
            targets.append(labels)
    if not outputs:
        raise ValueError("loader must yield at least one (inputs, targets) batch, got an empty one")
    return torch.cat(outputs), torch.cat(targets)
