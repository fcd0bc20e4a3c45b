"""The parts of one training: a step of them, and snapshots that bring them back bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._arguments import divergence_told
from .embed import device_of
from .hidden import hidden_state, restore_hidden
from .processes import Processes
from .random_streams import random_streams, restore_random_streams


class Parts:
    """Model, loss, optimizer, scheduler and miner of one training.

    Parameters
    ----------
    model, loss_fn, optimizer, scheduler, miner
        As for ``fit``.
    team
        Processes that train this model together, each on its share of every batch; None for this one alone.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> parts = Parts(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    >>> before = parts.snapshot()
    >>> loss = parts.step(1, torch.eye(2), torch.tensor([0, 1]))
    >>> parts.restore(before)
    >>> torch.equal(model.weight, before["model"]["weight"])
    True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        miner: Callable[..., Any] | None = None,
        team: Processes | None = None,
    ) -> None:
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.scheduler, self.miner, self.team = scheduler, miner, team
        self.device = device_of(model)
        candidates = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "loss": loss_fn,
            "miner": miner,
        }
        self.stateful: dict[str, Any] = {
            name: part for name, part in candidates.items() if hasattr(part, "state_dict")
        }

    def loss(self, number: int, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of a batch, with the graph for its gradient."""
        labels = labels.to(self.device)
        outputs = self.model(inputs.to(self.device))
        with divergence_told(outputs, f"the outputs of step {number}"):
            mined = () if self.miner is None else (self.miner(outputs, labels),)
            loss = self.loss_fn(outputs, labels, *mined)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn must return a tensor with one element, got {what}")
        return loss

    def step(self, number: int, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        """One optimizer step; the loss before it.

        Parameters
        ----------
        number
            Of the step, for the error message.
        inputs, labels
            A batch.

        Returns
        -------
        float
            The loss.

        Raises
        ------
        FloatingPointError
            If the loss is NaN or infinite, or refuses outputs that are; the weights have not changed then.
        TypeError
            If the loss is no tensor with one element.
        """
        team = self.team
        if team is not None:
            inputs, labels = team.part(inputs), team.part(labels)
        loss = self.loss(number, inputs, labels)
        value = float(loss.detach())
        if team is not None:  # all go on or all stop
            value = team.totals([value])[0] / team.size
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {number} is {value}")
        self.optimizer.zero_grad()
        loss.backward()
        if team is not None:
            team.average_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        """State of every part that has one, and what those leave out; shares memory with them."""
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        hidden = {name: hidden_state(part) for name, part in self.stateful.items()}
        return state | {"hidden": {name: found for name, found in hidden.items() if found}}

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that a step changes, the global random streams included."""
        return copy.deepcopy(self.state_dict()) | {"random": random_streams(self.device)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Bring back a :meth:`snapshot`, which stays as it is."""
        for name, part in self.stateful.items():
            # An optimizer goes on writing into the tensors that it was given.
            part.load_state_dict(copy.deepcopy(snapshot[name]))
            restore_hidden(part, snapshot.get("hidden", {}).get(name, {}))
        restore_random_streams(snapshot["random"], self.device)
