"""Our ranks behind the interface that pytorch-metric-learning's testers know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..types import RankImpl
from .retrieval import DEFAULT_K, Distance

if TYPE_CHECKING:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator


def accuracy_calculator(
    k: Sequence[int] = DEFAULT_K,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    avg_of_avgs: bool = False,
    return_per_class: bool = False,
    distance: Distance = "euclidean",
    impl: RankImpl = "auto",
    device: torch.device | None = None,
) -> AccuracyCalculator:
    """Make an ``AccuracyCalculator`` of pytorch-metric-learning that ranks by counting.

    For ``testers.GlobalEmbeddingSpaceTester(accuracy_calculator=...)`` and for direct use. Metrics:
    ``precision_at_1``, ``recall_at_K`` for every K of ``k``, ``r_precision``,
    ``mean_average_precision_at_r``, ``mean_average_precision`` and ``mean_reciprocal_rank``, the last two
    over all references. From the ranks r of the positives, ``Recall@K = mean_i [r_i1 <= K]`` and so on as in
    :func:`retrieval`, without [N, M] neighbours. Labels stay integers, ties are pessimistic, NaN and a set
    without any positive are errors.

    Parameters
    ----------
    k
        Depths of Recall@K; of the default those that exceed the references are left out of the results.
    include, exclude
        Names of metrics, as in pytorch-metric-learning. The clusterings NMI and AMI, which need faiss, are
        left out unless included and not excluded.
    avg_of_avgs, return_per_class
        Average over classes first; return a list with one value per class of queries.
    distance
        ``"euclidean"`` or ``"cosine"``.
    impl
        As in :func:`retrieval`.
    device
        Where to compute; by default where the embeddings are.

    Returns
    -------
    AccuracyCalculator
        An instance of a subclass, with ``get_accuracy(query, query_labels, reference, reference_labels,
        ref_includes_query)`` -> dict.

    Raises
    ------
    ValueError
        For unknown names of metrics or both kinds of averages; when called, as :func:`retrieval`.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import metrics
    >>> calculator = metrics.accuracy_calculator((1, 2), include=("recall_at_2", "precision_at_1"))
    >>> emb, labels = torch.tensor([[0.0], [1.0], [1.4], [4.0]]), torch.tensor([0, 0, 1, 0])
    >>> sorted(calculator.get_accuracy(emb, labels).items())
    [('precision_at_1', 0.3333333333333333), ('recall_at_2', 1.0)]
    """
    from ._pml_calculator import CountingCalculator

    return CountingCalculator(
        k,
        include=include,
        exclude=exclude,
        avg_of_avgs=avg_of_avgs,
        return_per_class=return_per_class,
        distance=distance,
        impl=impl,
        device=device,
    )
