"""Retrieval metrics, all from the ranks of the positives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import ops
from ..ops._check import check_embeddings, check_labels, known_values
from ..types import RankImpl

DEFAULT_K = (1, 10, 100, 1000)
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class RetrievalResult:
    """What :func:`retrieval` returns; fractions in [0, 1], means over the queries that have a positive.

    Parameters
    ----------
    recall_at_k
        k -> fraction of queries with a positive among their k nearest references.
    r_precision
        Mean fraction of a query's R positives that stand among its R nearest references.
    map_at_r
        Mean average precision at R (Musgrave et al., ECCV 2020).
    mrr
        Mean reciprocal rank of the nearest positive.
    queries
        Number of queries in the means.
    excluded_queries
        Number of queries without any positive, left out of the means.
    tied_queries
        Number of queries for which an exact tie between a positive and a negative decides a rank.
    per_query
        If asked for: ``"recall_at_1"`` ..., ``"r_precision"``, ``"map_at_r"`` and ``"mrr"`` -> float64 [N],
        NaN for excluded queries.
    per_class
        If asked for: the same names -> means over the queries of each class, float64 [C], and ``"class"`` ->
        int64 [C], ascending. Classes without a query in the means are left out.

    Examples
    --------
    >>> RetrievalResult({1: 0.5}, 0.5, 0.5, 0.6, 10, 0, 0).recall_at_k[1]
    0.5
    """

    recall_at_k: dict[int, float]
    r_precision: float
    map_at_r: float
    mrr: float
    queries: int
    excluded_queries: int
    tied_queries: int
    per_query: dict[str, Tensor] | None = field(default=None, compare=False)
    per_class: dict[str, Tensor] | None = field(default=None, compare=False)


def retrieval(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    k: int | Sequence[int] = DEFAULT_K,
    distance: Distance = "euclidean",
    impl: RankImpl = "auto",
    per_query: bool = False,
    per_class: bool = False,
) -> RetrievalResult:
    r"""Recall@k, R-precision, MAP@R and MRR of nearest-neighbour retrieval.

    With :math:`r_{i1} < r_{i2} < \ldots` the ranks of the :math:`R_i` positives of query i,

    .. math::
        \text{Recall@}k = \operatorname{mean}_i [r_{i1} \le k], \quad
        \text{RP} = \operatorname{mean}_i \tfrac{1}{R_i} |\{j : r_{ij} \le R_i\}|, \quad
        \text{MAP@R} = \operatorname{mean}_i \tfrac{1}{R_i} \sum_{j : r_{ij} \le R_i} \tfrac{j}{r_{ij}}, \quad
        \text{MRR} = \operatorname{mean}_i \tfrac{1}{r_{i1}}

    Ranks are pessimistic: among references at exactly the same distance the negatives come first, so that
    collapsed embeddings score 0, not 1. (Recall@k as in Song et al., CVPR 2016; MAP@R as in Musgrave et al.,
    ECCV 2020.)

    Parameters
    ----------
    emb
        Queries, shape [N, D], any float dtype, taken as they are: normalise before, or use ``"cosine"``.
    labels
        Classes, shape [N], any integer dtype.
    ref_emb, ref_labels
        Gallery, shapes [M, D] and [M]; without it every query is searched among the others. It must not hold
        the queries: rows that are the same memory are refused, copies of them would find each other.
    k
        Depth or depths, integers in [1, number of references]. Of the default (1, 10, 100, 1000)
        those that exceed the references are left out; one asked for by name must fit.
    distance
        ``"euclidean"`` or ``"cosine"``.
    impl
        ``"native"``, ``"strips"``, ``"reference"``, ``"faiss"`` or ``"auto"``; see
        :func:`ala_metric.ops.positive_ranks`.
    per_query, per_class
        Keep the scores of every query, and their means over every class.

    Returns
    -------
    RetrievalResult
        All metrics, and how many queries were excluded and tied.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, NaN or Inf, a k out of range, if ``ref_emb`` holds the
        queries, and if no query has a positive.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import metrics
    >>> emb = torch.tensor([[0.0], [1.0], [1.4], [4.0]])
    >>> result = metrics.retrieval(emb, torch.tensor([0, 0, 1, 0]), k=(1, 2))
    >>> result.recall_at_k, result.excluded_queries
    ({1: 0.3333333333333333, 2: 1.0}, 1)
    """
    k = k if k is DEFAULT_K else _positive(k)
    if ref_emb is not None and (shared := _shared_rows(emb, ref_emb)):
        raise ValueError(
            f"ref_emb must not hold the queries, got {shared} of {len(emb)} rows of emb in it, which would "
            "find themselves; leave ref_emb out to search every query among the others"
        )
    both, offsets = ops.positive_ranks(
        emb,
        labels,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        distance=distance,
        ties="both",
        impl=impl,
    )
    references = emb.shape[0] - 1 if ref_emb is None else ref_emb.shape[0]
    depths = check_depths(k, references)
    asked = offsets.diff() > 0
    queries = int(asked.sum())
    if queries == 0:
        raise ValueError(f"none of the {emb.shape[0]} queries has a reference of its own class")
    scores = query_scores(both[0], offsets, depths)
    mean = {name: float(score[asked].mean()) for name, score in scores.items()}
    tied = torch.zeros_like(asked)
    tied[_query_of_rank(offsets)[both[0] != both[1]]] = True
    return RetrievalResult(
        recall_at_k={depth: mean[f"recall_at_{depth}"] for depth in depths},
        r_precision=mean["r_precision"],
        map_at_r=mean["map_at_r"],
        mrr=mean["mrr"],
        queries=queries,
        excluded_queries=len(asked) - queries,
        tied_queries=int(tied.sum()),
        per_query=scores if per_query else None,
        per_class=class_means(scores, labels, asked) if per_class else None,
    )


def _shared_rows(x: Tensor, y: Tensor) -> int:
    """How many rows of ``x`` are the memory of a row of ``y``: views of one tensor, not copies.

    Rows of expanded tensors share memory without being the same item, and count as their copies would.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return 0  # refused with the other arguments
    if x.layout != torch.strided or y.layout != torch.strided:
        return 0
    if x.ndim != 2 or y.ndim != 2 or not x.numel() or not y.numel() or x.device != y.device:
        return 0
    if x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return 0
    if any(len(v) > 1 and v.stride(0) == 0 for v in (x, y)):
        return 0
    if x.dtype != y.dtype or x.shape[1] != y.shape[1] or (x.shape[1] > 1 and x.stride(1) != y.stride(1)):
        return 0  # rows that begin alike, but go on differently
    start, other = (v.data_ptr() + torch.arange(len(v)) * v.stride(0) * v.element_size() for v in (x, y))
    return int(torch.isin(start, other).sum())


def _query_of_rank(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


def query_scores(ranks: Tensor, offsets: Tensor, depths: Sequence[int]) -> dict[str, Tensor]:
    """Scores of every query [N] from the ranks of its positives; NaN where it has none."""
    positives = offsets.diff()
    query = _query_of_rank(offsets)
    rank = ranks.double()
    r = positives[query]
    j = torch.arange(len(ranks), device=ranks.device) - offsets[query] + 1
    hit = (rank <= r).double() / r

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(positives), dtype=torch.float64, device=ranks.device).index_add_(
            0, query, values
        )

    first = total(torch.where(j == 1, rank, 0))
    scores = {f"recall_at_{depth}": (first <= depth).double() for depth in depths}
    scores |= {"r_precision": total(hit), "map_at_r": total(hit * j / rank), "mrr": 1 / first}
    return {name: score.masked_fill(positives == 0, torch.nan) for name, score in scores.items()}


def class_means(scores: dict[str, Tensor], labels: Tensor, asked: Tensor) -> dict[str, Tensor]:
    """Mean score of the ``asked`` queries of every class that has one."""
    classes, place = torch.unique(labels[asked].to(torch.int64), return_inverse=True)
    size = torch.bincount(place, minlength=len(classes))
    means = {
        name: torch.bincount(place, score[asked], minlength=len(classes)) / size
        for name, score in scores.items()
    }
    return {"class": classes, **means}


def as_tuple(k: Any) -> tuple[Any, ...]:
    """One depth or several, as a tuple."""
    return tuple(k) if isinstance(k, Iterable) and getattr(k, "ndim", 1) > 0 else (k,)


def check_depths(k: int | Sequence[int], references: int, *, trim: bool | None = None) -> tuple[int, ...]:
    """Refuse depths that are no integers in [1, references]; ``trim`` (the default ones) to fit instead."""
    if k is DEFAULT_K if trim is None else trim:
        return tuple(depth for depth in DEFAULT_K if depth <= max(1, references))
    depths = _positive(k)
    for depth in depths:
        if depth > references:
            raise ValueError(
                f"k must be at most {max(0, references)}, the number of references of a query, got {depth}"
            )
    return depths


def _positive(k: int | Sequence[int]) -> tuple[int, ...]:
    depths = as_tuple(k)
    if not depths:
        raise ValueError(f"k must be an integer or a sequence of at least one, got {k!r}")
    for depth in depths:
        if isinstance(depth, bool) or not isinstance(depth, Integral) or depth < 1:
            raise ValueError(f"k must be integers >= 1, got {depth!r}")
    return tuple(int(depth) for depth in depths)


class RecallAtK:
    r"""Mean of Recall@k over several depths k, as a :class:`ala_metric.Metric` for embeddings.

    .. math:: M = \operatorname{mean}_{k} \operatorname{mean}_i [r_{i1} \le k]

    the "average Recall@k" that the paper optimises on retrieval (Huang et al., ICML 2019, Section 6.2), with
    pessimistic ranks :math:`r` (see :func:`retrieval`).

    Parameters
    ----------
    k
        Depth or depths; of the default those that exceed the number of references are left out of the mean,
        though ``name`` keeps them: it is made before any set is seen. Name the depths to be sure of them.
    distance
        ``"euclidean"``, on the embeddings as they are, or ``"cosine"``. The losses normalise inside: for a
        model that does not normalise its own output, ``"cosine"`` measures what was trained.
    impl
        ``"native"``, ``"strips"``, ``"reference"``, ``"faiss"`` or ``"auto"``.

    Raises
    ------
    ValueError
        For depths that are no integers >= 1, an unknown ``distance`` or ``impl``.
    TypeError, ValueError
        When called: see :func:`retrieval`.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import metrics
    >>> metric = metrics.RecallAtK((1, 2))
    >>> metric(torch.tensor([[0.0], [1.0], [1.4], [4.0]]), torch.tensor([0, 0, 1, 0]))
    0.6666666666666666
    """

    higher_is_better = True

    def __init__(
        self, k: int | Sequence[int] = DEFAULT_K, *, distance: Distance = "euclidean", impl: RankImpl = "auto"
    ) -> None:
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        if impl not in get_args(RankImpl):
            raise ValueError(f"impl must be one of {get_args(RankImpl)}, got {impl!r}")
        self._trim = k is DEFAULT_K  # said here: the identity would be lost in a pickled copy
        self.k = _positive(k)
        self.distance: Distance = distance
        self.impl: RankImpl = impl
        self.name = "recall@" + ",".join(str(depth) for depth in self.k)

    @torch.no_grad()
    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Evaluate on embeddings [N, D] and classes [N]; every row is searched among the others."""
        check_embeddings(outputs, "outputs")
        check_labels(targets, outputs, "targets", "outputs")
        with known_values():
            first = ops.positive_ranks(
                outputs, targets, distance=self.distance, first_only=True, impl=self.impl
            )
        depths = check_depths(self.k, len(first) - 1, trim=self._trim)
        first = first[first > 0]
        if len(first) == 0:
            raise ValueError(f"none of the {len(targets)} queries has a reference of its own class")
        return sum(float((first <= depth).double().mean()) for depth in depths) / len(depths)
