"""What a model is trained for on each data set, and the numbers that say how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from .. import metrics
from ..data import Splits
from ..types import Metric
from . import shards
from .console import format_table

Task = Literal["retrieval", "verification", "classification"]
TASKS: dict[str, Task] = {
    "lfw": "verification",
    "cifar10": "classification",
    "cifar100": "classification",
    "imagenet": "classification",
}
METRIC_NAMES: dict[Task, str] = {
    "retrieval": "Recall@1",
    "verification": "verification accuracy",
    "classification": "error",
}
"""What the validation metric of each task is called in tables and figures."""
DEPTHS = {"sop": (1, 10, 100, 1000)}
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)
ONE_CLASS = "one class: no query has a negative, so Recall@k is 100 % whatever the embeddings"


def task_of(data: str) -> Task:
    """What a model is trained for on a data set."""
    return TASKS.get(data, "retrieval")


def validation_metric(splits: Splits) -> Metric:
    """The metric that the controller improves."""
    task = task_of(splits.name)
    if task == "classification":
        return metrics.ClassificationError()
    if task == "verification":
        return metrics.VerificationAccuracy(
            splits.validation_pairs, splits.validation_folds, distance="cosine"
        )
    return metrics.RecallAtK((1,), distance="cosine")


def measure(splits: Splits, outputs: Tensor, labels: Tensor, **options: Any) -> dict[str, Any]:
    """All metrics of the test set; options are those of :func:`retrieval` or :func:`verification`."""
    task = task_of(splits.name)
    if task == "classification":
        return classification(outputs, labels)
    if task == "verification":
        return verification(outputs, labels, splits.pairs, splits.folds, options.get("distance", "cosine"))
    found = retrieval(outputs, labels, **{"depths": DEPTHS.get(splits.name), **options})
    if splits.pairs is not None:  # glyphs: images to be searched, and pairs to be verified as in LFW
        distance = options.get("distance", "cosine")
        found["verification"] = verification(outputs, labels, splits.pairs, splits.folds, distance)
    return found


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    k: Sequence[int] | None = None,
    distance: Any = "cosine",
    impl: Any = "auto",
    depths: Sequence[int] | None = None,
    gallery: shards.Gallery | None = None,
) -> dict[str, Any]:
    """Retrieval in a gallery, or among the other rows; without ``k`` those of ``depths`` that these allow."""
    if k is None:
        references = len(labels) - 1 if gallery is None else len(gallery[1])
        k = [depth for depth in depths or (1, 10, 100) if depth <= max(references, 1)]
    result = asdict(
        shards.retrieval(embeddings, labels, k=tuple(k), distance=distance, impl=impl, gallery=gallery)
    )
    found = {name: value for name, value in result.items() if value is not None}
    if gallery is not None:
        found["references"] = len(gallery[1])
        labels = torch.cat([labels, gallery[1]])
    return found | {"classes": len(labels.unique()), "distance": str(distance)}


def verification(
    embeddings: Tensor, labels: Tensor, pairs: Any, folds: Any, distance: Any = "cosine"
) -> dict[str, Any]:
    """Accuracy on pairs, by the protocol of LFW."""
    metric = metrics.VerificationAccuracy(pairs, folds, distance=distance)
    return asdict(metric.result(embeddings, labels, far=FALSE_ACCEPT_RATES)) | {"distance": str(distance)}


def classification(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Error, balanced error and area under the precision-recall curve."""
    found = (metrics.ClassificationError(), metrics.BalancedError(), metrics.AUCPR(), metrics.AUCPR("micro"))
    return {metric.name: metric(logits, labels) for metric in found} | {"images": len(labels)}


def table(result: Mapping[str, Any]) -> str:
    """The metrics of one test set as text."""
    text = format_table(("metric", "value"), list(_rows(result)))
    return f"{text}\nall of it is {ONE_CLASS}" if result.get("classes") == 1 else text


def title(what: str, result: Mapping[str, Any]) -> str:
    """What was measured and, where embeddings were compared, by which distance."""
    return f"{what}, {result['distance']} distance" if "distance" in result else what


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "recall_at_k" in result:
        rows = [(f"Recall@{k}", _percent(value)) for k, value in result["recall_at_k"].items()]
        rows += [("R-precision", _percent(result["r_precision"])), ("MAP@R", _percent(result["map_at_r"]))]
        counts = ("queries", "excluded_queries", "tied_queries", "references", "classes")
        rows += [(key.replace("_", " "), str(result[key])) for key in counts if key in result]
        return rows + [(f"pairs: {name}", value) for name, value in _rows(result.get("verification", {}))]
    if "fold_accuracies" in result:
        accuracy = f"{100 * result['accuracy']:.2f} ± {100 * result['standard_error']:.2f} %"
        rows = [("accuracy ± standard error", accuracy), ("ROC AUC", f"{result['roc_auc']:.4f}")]
        rows += [(f"TAR at FAR {far:g}", _percent(tar)) for far, tar in result["tar_at_far"].items()]
        return [*rows, ("folds", str(len(result["fold_accuracies"])))]
    if "classification_error" not in result:
        return []
    names = {
        "classification_error": "error",
        "balanced_error": "balanced error",
        "aucpr": "AUCPR, mean of classes",
        "aucpr_micro": "AUCPR, pooled",
    }
    rows = [(name, _percent(result[key])) for key, name in names.items()]
    return [*rows, ("images", str(result["images"]))]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
