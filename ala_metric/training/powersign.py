"""PowerSign with cosine decay, an optimizer found by search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class PowerSign(torch.optim.Optimizer):
    """Steps are longer where the gradient agrees in sign with its moving average (PowerSign-cd).

    ``w <- w - lr e^(f(t) sign(g) sign(m)) g`` with ``m <- beta m + (1 - beta) g`` and the cosine decay
    ``f(t) = (1 + cos(pi t / T)) / 2`` (Bello et al. 2017, Sec. 4.4, with one half period). At the end of the
    run it is plain gradient descent.

    Parameters
    ----------
    params
        Parameters or groups of them.
    lr
        Learning rate.
    total_steps
        T; None leaves ``f = 1``.
    beta
        Decay of the moving average of gradients, in [0, 1).
    weight_decay
        Added to the gradient, times the weight.

    Raises
    ------
    ValueError
        If a number is out of its range.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = PowerSign([weight], lr=0.1)
    >>> (weight * weight).sum().backward()
    >>> optimizer.step()
    >>> round(weight.item(), 4)  # 1 - 0.1 * e * 2
    0.4563
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        total_steps: int | None = None,
        beta: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0.0 <= lr < math.inf or not 0.0 <= weight_decay < math.inf:
            raise ValueError(f"lr and weight_decay must be finite and >= 0, got {lr} and {weight_decay}")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1), got {beta}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        defaults = {"lr": lr, "total_steps": total_steps, "beta": beta, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return value

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, average=torch.zeros_like(weight))
        gradient = gradient.add(weight, alpha=group["weight_decay"])
        state["average"].lerp_(gradient, 1.0 - group["beta"])
        decay = 1.0
        if group["total_steps"] is not None:
            part = min(state["step"] / group["total_steps"], 1.0)
            decay = (1.0 + math.cos(math.pi * part)) / 2.0
        state["step"] += 1
        factor = (decay * gradient.sign() * state["average"].sign()).exp()
        weight.addcmul_(factor, gradient, value=-group["lr"])
