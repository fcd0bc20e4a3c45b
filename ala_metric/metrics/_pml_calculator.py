"""The subclass of pytorch-metric-learning's calculator; imported at use, as it brings scikit-learn along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from .. import ops
from ..types import RankImpl
from .retrieval import Distance, check_depths, class_means, query_scores


class CountingCalculator(AccuracyCalculator):
    """See :func:`ala_metric.metrics.accuracy_calculator`."""

    def __init__(
        self,
        k: Sequence[int],
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        avg_of_avgs: bool,
        return_per_class: bool,
        distance: Distance,
        impl: RankImpl,
        device: torch.device | None,
    ) -> None:
        self.depths = k
        self.distance: Distance = distance
        self.impl: RankImpl = impl
        self.compute_device = device
        for depth in k:  # the parent lists what is called calculate_*
            setattr(self, f"calculate_recall_at_{depth}", self._score(f"recall_at_{depth}"))
        super().__init__(
            include=tuple(include),
            exclude=(*exclude, *(name for name in self.requires_clustering() if name not in include)),
            avg_of_avgs=avg_of_avgs,
            return_per_class=return_per_class,
            device=device or torch.device("cpu"),
            knn_func=_no_search,
        )

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Name -> score, or list of scores per class; arguments as in pytorch-metric-learning."""
        query, query_labels = self._rows(query), self._labels(query_labels)
        if reference is None:
            reference, reference_labels, ref_includes_query = query, query_labels, True
        else:
            reference, reference_labels = self._rows(reference), self._labels(reference_labels)
        n = len(query)
        for name, rows in (("query", query), ("reference", reference)):  # NaN is not even equal to itself
            if bad := int((~torch.isfinite(rows)).sum()):
                raise ValueError(f"{name} must be finite, got {bad} NaN or infinite numbers")
        if (
            ref_includes_query
            and reference is not query
            and not (torch.equal(query, reference[:n]) and torch.equal(query_labels, reference_labels[:n]))
        ):
            raise ValueError("with ref_includes_query the first rows of reference must be query")
        self.curr_function_dict = self.get_function_dict(include, exclude)
        depths = check_depths(self.depths, len(reference) - int(ref_includes_query))
        for depth in set(self.depths) - set(depths):
            self.curr_function_dict.pop(f"recall_at_{depth}", None)
        context: dict[str, Any] = {"query": query, "query_labels": query_labels}
        if set(self.curr_function_dict) & set(self.requires_clustering()):
            context["cluster_labels"] = self.get_cluster_labels(**context)
        if set(self.curr_function_dict) - set(self.requires_clustering()):
            ranks, offsets = self._ranks(query, query_labels, reference, reference_labels, ref_includes_query)
            context["scores"] = _all_scores(ranks, offsets, depths)
            if not (offsets.diff() > 0).any():
                raise ValueError(f"none of the {n} queries has a reference of its own class")
        result: dict[str, Any] = self._get_accuracy(self.curr_function_dict, **context)
        return result

    def _ranks(
        self, query: Tensor, query_labels: Tensor, reference: Tensor, reference_labels: Tensor, includes: bool
    ) -> tuple[Tensor, Tensor]:
        rank = partial(ops.positive_ranks, query, query_labels, distance=self.distance, impl=self.impl)
        if includes and len(reference) == len(query):
            return rank()
        ranks, offsets = rank(ref_emb=reference, ref_labels=reference_labels)
        if not includes:
            return ranks, offsets
        # the nearest positive of a query is itself, at distance 0: take it out, and one off all others
        others = torch.ones_like(ranks, dtype=torch.bool)
        others[offsets[:-1]] = False
        return ranks[others] - 1, offsets - torch.arange(len(offsets), device=offsets.device)

    def _score(self, name: str) -> Callable[..., Any]:
        def calculate(scores: dict[str, Tensor], query_labels: Tensor, **_: Any) -> Any:
            score = scores[name]
            asked = ~score.isnan()
            if not (self.avg_of_avgs or self.return_per_class):
                return float(score[asked].mean())
            means = class_means({name: score}, query_labels, asked)[name]
            return means.tolist() if self.return_per_class else float(means.mean())

        return calculate

    def calculate_precision_at_1(self, **context: Any) -> Any:
        return self._score("precision_at_1")(**context)

    def calculate_r_precision(self, **context: Any) -> Any:
        return self._score("r_precision")(**context)

    def calculate_mean_average_precision_at_r(self, **context: Any) -> Any:
        return self._score("map_at_r")(**context)

    def calculate_mean_average_precision(self, **context: Any) -> Any:
        return self._score("map")(**context)

    def calculate_mean_reciprocal_rank(self, **context: Any) -> Any:
        return self._score("mrr")(**context)

    def _rows(self, x: Any) -> Tensor:
        x = torch.as_tensor(x)
        return x if self.compute_device is None else x.to(self.compute_device)

    def _labels(self, labels: Any) -> Tensor:
        labels = self._rows(labels)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        return _whole(labels) if labels.is_floating_point() else labels


def _whole(labels: Tensor) -> Tensor:
    """Classes as integers: one of pytorch-metric-learning's testers hands them over as floats."""
    most = 2 / torch.finfo(labels.dtype).eps  # above it neighbouring integers have become one
    if not bool(((labels == labels.round()) & (labels.abs() < most)).all()):
        raise ValueError(f"labels of {labels.dtype} must be whole numbers below {most:.0f}; give integers")
    return labels.to(torch.int64)


def _all_scores(ranks: Tensor, offsets: Tensor, depths: Sequence[int]) -> dict[str, Tensor]:
    scores = query_scores(ranks, offsets, (1, *depths))
    scores["precision_at_1"] = scores["recall_at_1"]
    positives = offsets.diff()
    query = torch.repeat_interleave(torch.arange(len(positives), device=ranks.device), positives)
    j = torch.arange(len(ranks), device=ranks.device) - offsets[query] + 1
    total = torch.zeros_like(scores["mrr"]).index_add_(0, query, j / ranks.double())
    scores["map"] = total / positives  # 0 / 0 = NaN where there is no positive
    return scores


def _no_search(*_: Any) -> Any:
    raise AssertionError("ranks are counted, nothing is searched")
