"""A hook for the trainers of pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..ala_loss import ALALoss
from ..training import embed
from ..types import AdaptiveLoss, Metric, StepRecord


class TrainerHook:
    """The ``end_of_iteration_hook`` of a pytorch-metric-learning trainer that adapts its loss (Algorithm 1).

    The trainer keeps the loss itself in ``loss_funcs``; after each iteration the hook measures the metric
    and moves the parameters of the loss where that is due.

    Parameters
    ----------
    loss
        The :class:`ala_metric.AdaptiveLoss` that the trainer has among its ``loss_funcs``.
    metric
        ``metric(outputs, targets) -> float`` with the attribute ``higher_is_better``.
    validation
        A loader of ``(inputs, targets)``, embedded by the trainer's trunk and embedder; or a function
        ``(trainer) -> (outputs, targets)``. Never the test set.
    total_steps
        Iterations of the whole run: ``num_epochs * iterations_per_epoch``.
    **options
        Those of :class:`ala_metric.ALALoss`: ``every``, ``policy``, ``seed``, ``mode``, ``logger``, ...

    Raises
    ------
    TypeError, ValueError
        As :class:`ala_metric.ALALoss`; a policy needs a loss that declares ``statistics_width``.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from ala_metric import losses, metrics
    >>> loss = losses.DistanceMixtureLoss()
    >>> batch = (torch.eye(4), torch.tensor([0, 0, 1, 1]))
    >>> hook = TrainerHook(loss, metrics.RecallAtK((1,)), [batch], total_steps=4, every=2)
    >>> trainer = SimpleNamespace(models={"trunk": nn.Identity(), "embedder": nn.Identity()})
    >>> for _ in range(4):
    ...     hook(trainer)
    >>> [record.step for record in hook.history]
    [2, 4]
    """

    def __init__(
        self,
        loss: AdaptiveLoss,
        metric: Metric,
        validation: Iterable[Any] | Callable[[Any], tuple[torch.Tensor, torch.Tensor]],
        total_steps: int,
        **options: Any,
    ) -> None:
        self.validation = validation
        self._trainer: Any = None
        self.ala = ALALoss(loss, metric, self._validate, total_steps, step_on="optimizer", **options)

    @property
    def history(self) -> list[StepRecord]:
        """One record per controller step."""
        return self.ala.history

    def __call__(self, trainer: Any) -> None:
        """Tell that the trainer has finished an iteration."""
        self._trainer = trainer
        self.ala.step()

    def state_dict(self) -> dict[str, Any]:
        """Parameters of the loss and state of the controller."""
        return self.ala.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.ala.load_state_dict(state)

    def _validate(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._trainer is None:  # the constructor asks, to check the policy
            raise ValueError(
                "a policy needs a loss that declares statistics_width: there is no trainer yet whose outputs "
                "would tell the width"
            )
        if callable(self.validation):
            return self.validation(self._trainer)
        models = self._trainer.models
        parts = [_bare(models[name]) for name in ("trunk", "embedder") if name in models]
        return embed(nn.Sequential(*parts), self.validation)


def _bare(model: nn.Module) -> nn.Module:
    """The model inside a (distributed) data parallel wrapper."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model
