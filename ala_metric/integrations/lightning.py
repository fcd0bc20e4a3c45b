"""A callback for Lightning: the module keeps its loss, the callback moves the loss's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch

from ..ala_loss import ALALoss
from ..controller import Policy
from ..training import embed, flatten
from ..types import Metric, StepRecord

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError("ALACallback needs Lightning: pip install lightning") from error


class ALACallback(Callback):
    r"""Adapt a loss of a ``LightningModule`` to a validation metric (Algorithm 1).

    The module stays as it is: its loss must only be an :class:`ala_metric.AdaptiveLoss` such as
    :class:`ala_metric.losses.DistanceMixtureLoss`. At the end of each batch the callback tells its
    :class:`ala_metric.ALALoss` how many optimiser steps (``trainer.global_step``) there were, and that
    measures the metric and moves the parameters where that is due. So gradient accumulation counts as it
    should, and so does manual optimisation with several steps per batch, or several optimisers. The state is
    in the checkpoints of the trainer, and a second ``trainer.fit`` with the same loss goes on with it.

    Parameters
    ----------
    loss
        Attribute of the module that holds the loss; dots reach into submodules.
    metric
        ``metric(outputs, targets) -> float`` with the attribute ``higher_is_better``.
    validation
        A loader of ``(inputs, targets)``, for which the module's ``forward`` gives the outputs; or a function
        ``(module) -> (outputs, targets)``. Never the test set.
    total_steps
        Optimiser steps of the whole run, counted as ``trainer.global_step``; None asks the trainer, and adds
        the steps before this ``fit`` that its ``global_step`` does not have. A trainer with ``max_epochs``
        only expects one step per batch: give the number where manual optimisation takes several.
    **options
        Those of :class:`ala_metric.ALALoss`: ``every``, ``policy``, ``seed``, ``mode``, ``beta``, ...

    Raises
    ------
    AttributeError
        If the module has no such attribute.
    TypeError
        If that attribute is no adaptive loss, or an ``ALALoss`` already.
    ValueError
        If neither ``total_steps`` nor the trainer bounds the run, or an option is out of range.

    Notes
    -----
    Each controller step is logged to the trainer's loggers as ``ala/metric``, ``ala/reward``,
    ``ala/entropy``, ``ala/seconds`` and ``ala/NAME`` of each parameter. Under several processes the rank 0
    validates and decides, all apply; ``validation`` must then be the whole set, not a part per rank.

    Examples
    --------
    >>> from ala_metric import metrics
    >>> callback = ALACallback("loss_fn", metrics.RecallAtK((1,)), validation=[], every=100)
    >>> callback.history
    []
    """

    def __init__(
        self,
        loss: str,
        metric: Metric,
        validation: Iterable[Any] | Callable[[Any], tuple[torch.Tensor, torch.Tensor]],
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        for name in ("validate", "step_on"):
            if name in options:
                raise TypeError(f"{name} is decided by the callback; it is no option here")
        self.loss, self.metric, self.validation = loss, metric, validation
        self.total_steps, self.options = total_steps, options
        self.ala: ALALoss | None = None
        self._restored: dict[str, Any] | None = None
        self._seen = 0

    @property
    def history(self) -> list[StepRecord]:
        """One record per controller step."""
        return [] if self.ala is None else self.ala.history

    @property
    def policy(self) -> Policy | None:
        """The controller's policy; None before training and in a mode without one."""
        return None if self.ala is None else self.ala.policy

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take hold of the loss, and go on from a checkpoint if there was one."""
        loss = attrgetter(self.loss)(pl_module)
        if isinstance(loss, ALALoss):
            raise TypeError(f"{self.loss} is an ALALoss already: give the module the loss inside it")
        state, self._restored = self._restored, None
        if state is None and self.ala is not None and self.ala.loss is loss:
            state = self.ala.get_extra_state()
        total = trainer.estimated_stepping_batches if self.total_steps is None else self.total_steps
        if total in (-1, float("inf")):
            raise ValueError("total_steps is needed: the trainer has neither max_steps nor max_epochs")
        if state is not None and self.total_steps is None:
            total += max(0, state["iterations"] - trainer.global_step)

        def validate() -> tuple[torch.Tensor, torch.Tensor]:
            with trainer.precision_plugin.forward_context():
                if callable(self.validation):
                    return self.validation(pl_module)
                return embed(pl_module, self.validation)

        given = self.options.get("logger")

        def log(record: dict[str, Any]) -> None:
            row = flatten(record, [spec.name for spec in loss.phi_spec])
            known = {f"ala/{name}": value for name, value in row.items() if value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(known, step=trainer.global_step)
            if given is not None:
                (given.log if hasattr(given, "log") else given)(record)

        settings = self.options | {"total_steps": int(total), "step_on": "optimizer", "logger": log}
        self.ala = ALALoss(loss, self.metric, validate, **settings)
        if state is not None:
            self.ala.set_extra_state(state)
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        """Tell of each optimiser step of the batch; a controller step is taken where one is due."""
        assert self.ala is not None
        while self._seen < trainer.global_step:
            self._seen += 1
            self.ala.step()

    def state_dict(self) -> dict[str, Any]:
        """State of the controller, kept in the trainer's checkpoint."""
        if self.ala is None:
            return {} if self._restored is None else {"ala": self._restored}
        return {"ala": self.ala.get_extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` at the next start of training."""
        self._restored = state_dict.get("ala")
