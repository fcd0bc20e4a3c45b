"""The validation metric of a child: counted, timed, and without a trace in the training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .._arguments import check_statistics, divergence_told, metric_value, outputs_and_targets
from .._streams import preserved_random_streams
from ..ala_loss import ALALoss
from ..metrics import RecallAtK
from ..types import Metric
from .meter import Meter
from .processes import Processes

Validate = Callable[[], tuple[torch.Tensor, torch.Tensor]]
RUNG_DEPTHS = (1, 2, 4, 8)
ERRORS_OF_CLASSES = ("classification_error", "balanced_error", "aucpr", "aucpr_micro")


class MeanLogProbability:
    """Mean over the classes of the mean log-probability of the class's samples: a smooth accuracy.

    ``M = mean_c mean_{i: y_i = c} log softmax(z_i)_c``; classes without samples are left out.

    Examples
    --------
    >>> MeanLogProbability()(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    -0.6931471805599453
    """

    name = "mean_log_probability"
    higher_is_better = True

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Evaluate on logits ``[N, C]`` and targets ``[N]``."""
        log_probabilities = outputs.double().log_softmax(1).gather(1, targets.long()[:, None]).squeeze(1)
        count = torch.bincount(targets)
        total = torch.zeros(len(count), dtype=torch.float64, device=outputs.device)
        total = total.index_add(0, targets.long(), log_probabilities)
        return float((total / count)[count > 0].mean())


def smooth_metric(metric: Metric) -> Metric:
    """What siblings are compared by on the way, where the metric itself is too coarse for small differences.

    Mean Recall@1, 2, 4, 8 for :class:`ala_metric.metrics.RecallAtK`, the mean log-probability of the classes
    for the metrics of classifiers, and the metric itself for everything else.

    Parameters
    ----------
    metric
        The metric of the run.

    Returns
    -------
    Metric
        Another metric, or the same.

    Examples
    --------
    >>> from ala_metric import metrics
    >>> smooth_metric(metrics.RecallAtK((1,))).name, smooth_metric(metrics.ClassificationError()).name
    ('recall@1,2,4,8', 'mean_log_probability')
    """
    if type(metric) is RecallAtK:
        return RecallAtK(RUNG_DEPTHS, distance=metric.distance, impl=metric.impl)
    if getattr(metric, "name", None) in ERRORS_OF_CLASSES:
        return MeanLogProbability()
    return metric


@dataclass
class Measure:
    """Validates the model as it is now.

    Parameters
    ----------
    validate, metric
        As of an :class:`ala_metric.ALALoss`.
    loss
        The adaptive loss, for its statistics.
    meter
        Counts the pass.
    part
        Which part of the validation set it is, for the records.
    """

    validate: Validate
    metric: Metric
    loss: Any
    meter: Meter
    part: str = "all"

    def __call__(self, with_statistics: bool = False) -> tuple[float, float, torch.Tensor | None]:
        """Metric, score (higher is better) and, if asked for, statistics."""
        begin = time.perf_counter()
        with preserved_random_streams(), torch.no_grad():
            outputs, targets = outputs_and_targets(self.validate())
            self.meter.validation_passes += 1
            self.meter.validation_items += len(targets)
            with divergence_told(outputs, "the validation outputs"):
                value = metric_value(self.metric(outputs, targets))
                statistics = self.loss.statistics(outputs, targets) if with_statistics else None
                if statistics is not None:
                    check_statistics(statistics)
        self.meter.validation_seconds += time.perf_counter() - begin
        score = value if self.metric.higher_is_better else -value
        return value, score, None if statistics is None else statistics.detach().cpu()


@contextmanager
def validated_by_first(loss_fn: Any, team: Processes | None) -> Iterator[None]:
    """Inside, the first process of a team validates for the others, so that all decide alike."""
    original = loss_fn.validate
    if team is not None:
        loss_fn.__dict__["validate"] = by_first(original, team)
    try:
        yield
    finally:
        loss_fn.__dict__["validate"] = original


def by_first(validate: Validate, team: Processes) -> Validate:
    """A validation that the first process of a team does for all."""

    def validated() -> tuple[torch.Tensor, torch.Tensor]:
        found: dict[str, Any] = {}
        failure: Exception | None = None
        if team.rank == 0:
            try:
                outputs, targets = outputs_and_targets(validate())
                found = {"outputs": outputs, "targets": targets, "device": outputs.device.type, "error": ""}
            except Exception as error:
                failure, found = error, {"error": f"{type(error).__name__}: {error}"}
        found = team.share(found, owner=0)
        if failure is not None:
            raise failure
        if found["error"]:
            raise RuntimeError(f"the first process of the team failed: {found['error']}")
        return found["outputs"].to(found["device"]), found["targets"].to(found["device"])

    return validated


@contextmanager
def counted(loss_fn: Any, meter: Meter) -> Iterator[None]:
    """Count what an :class:`ala_metric.ALALoss` validates on its own inside."""
    if not isinstance(loss_fn, ALALoss):
        yield
        return
    original = loss_fn.validate

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        begin = time.perf_counter()
        outputs, targets = outputs_and_targets(original())
        meter.validation_passes += 1
        meter.validation_items += len(targets)
        meter.validation_seconds += time.perf_counter() - begin
        return outputs, targets

    loss_fn.__dict__["validate"] = validate
    try:
        yield
    finally:
        loss_fn.__dict__["validate"] = original
