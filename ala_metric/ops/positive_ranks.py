"""Where the positives of every query stand among all references: by counting, not by sorting."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..types import RankImpl
from ._check import check_batch, refuse_batched_labels
from ._rank_strips import RankStrips, positives_per_query
from ._select import choose

Ties = Literal["pessimistic", "optimistic", "both"]


@overload
def positive_ranks(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    distance: Literal["euclidean", "cosine"] = ...,
    ties: Ties = ...,
    first_only: Literal[False] = ...,
    impl: RankImpl = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def positive_ranks(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    distance: Literal["euclidean", "cosine"] = ...,
    ties: Ties = ...,
    first_only: Literal[True],
    impl: RankImpl = ...,
) -> Tensor: ...
@torch.no_grad()
def positive_ranks(
    emb: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    ties: Ties = "pessimistic",
    first_only: bool = False,
    impl: RankImpl = "auto",
) -> tuple[Tensor, Tensor] | Tensor:
    r"""Ranks of the positives of every query among all references.

    .. math:: r_{ij} = j + |\{n \in N_i : d_{in} \le d_{i(j)}\}|, \qquad j = 1 \ldots |P_i|

    where :math:`d_{i(j)}` is the distance to the j-th nearest positive. Recall@k for every k, R-precision,
    MAP@R and MRR follow from these ranks alone. With ``ties="optimistic"`` the comparison is strict.

    Distances are compared as in float64: what float32 products leave open is settled by the differences
    themselves. Identical rows tie exactly; rows at an offset keep their neighbours. ``"native"`` is as exact
    as that, and its cost grows with the number of pairs closer to a tie than float32 can tell: hardly any in
    normal data, all of them in a collapsed batch (about 30 times slower then).

    Parameters
    ----------
    emb
        Queries, shape [N, D], float16, bfloat16, float32 or float64.
    labels
        Classes of the queries, shape [N], any integer dtype.
    ref_emb, ref_labels
        Gallery, shapes [M, D] and [M]. Without it the queries are their own gallery, each query left out of
        its own list by its index (not by its distance).
    distance
        ``"euclidean"`` or ``"cosine"`` (1 - cosine; a zero vector has cosine 0 with everything).
    ties
        ``"pessimistic"`` ranks equally distant negatives first, ``"optimistic"`` last. ``"both"`` returns
        the two stacked, ranks of shape [2, ...], pessimistic first, at the cost of one.
    first_only
        Return the rank of the nearest positive only.
    impl
        ``"native"``, ``"strips"`` (torch only, float64 products, O(N * chunk) memory), ``"reference"``
        (N x M x D differences), ``"faiss"`` or ``"auto"``. ``"faiss"`` searches with the installed faiss, on
        its GPU where it has one. Its float32 distances are not trusted where they could misorder: such pairs
        are compared in float64, and queries whose positives are not among their 2048 nearest are counted by
        ``"strips"``. The ranks are those of the others; with many such queries it is the slowest.

    Returns
    -------
    (ranks, offsets) or ranks
        ``ranks`` int64 [total positives], 1-based, ascending within a query; those of query i are
        ``ranks[offsets[i]:offsets[i + 1]]`` with ``offsets`` int64 [N + 1]. With ``first_only=True`` just
        int64 [N], 0 where a query has no positive.

    Raises
    ------
    TypeError, ValueError
        For arguments of a wrong type, shape or device, an unknown ``distance`` or ``ties``, and NaN, Inf or
        values whose squares leave the range of float64.
    ImportError, RuntimeError
        With ``impl="faiss"`` if faiss is missing or two of its packages are installed over each other; with
        ``impl="native"`` where it cannot run.
    NotImplementedError
        Under ``torch.vmap``, and inside of ``torch.compile(fullgraph=True)``: the number of ranks depends on
        the labels. Without ``fullgraph`` it breaks the graph.

    Examples
    --------
    >>> import torch
    >>> from ala_metric import ops
    >>> emb, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 0])
    >>> ranks, offsets = ops.positive_ranks(emb, labels)
    >>> ranks.tolist(), offsets.tolist()
    ([1, 3, 2, 3, 2, 3], [0, 2, 4, 4, 6])
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError("positive_ranks is not compiled: call it outside of torch.compile")
    emb, labels, ref_emb, ref_labels = check_batch(emb, labels, ref_emb, ref_labels)
    refuse_batched_labels(labels, ref_labels)
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
    if ties not in ("pessimistic", "optimistic", "both"):
        raise ValueError(f"ties must be 'pessimistic', 'optimistic' or 'both', got {ties!r}")
    if impl not in ("auto", "native", "strips", "reference", "faiss"):
        raise ValueError(f"impl must be 'auto', 'native', 'strips', 'reference' or 'faiss', got {impl!r}")
    which = impl if impl == "faiss" else choose("positive_ranks", impl, emb.device).impl
    positives = positives_per_query(labels, ref_labels)
    offsets = torch.zeros(len(labels) + 1, dtype=torch.int64, device=labels.device)
    torch.cumsum(positives, 0, out=offsets[1:])
    if which == "native":
        ranks = _native_ranks(emb, labels, offsets, ref_emb, ref_labels, distance, first_only)
    else:
        rows = emb, labels, ref_emb, ref_labels, distance
        if which == "faiss":
            from ._faiss import FaissRanks

            strips: RankStrips = FaissRanks(*rows)
        else:
            strips = RankStrips(*rows, exact=which == "reference")
        ranks = strips.ranks(positives, first_only)
    ranks = ranks if ties == "both" else ranks[0 if ties == "pessimistic" else 1]
    return ranks if first_only else (ranks, offsets)


def _native_ranks(
    emb: Tensor,
    labels: Tensor,
    offsets: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    distance: str,
    first_only: bool,
) -> Tensor:
    from . import native

    extremes = [torch.stack(torch.aminmax(x)).double() for x in (emb, ref_emb) if x is not None and x.numel()]
    for low, high in extremes:
        widest = high - low if distance == "euclidean" else torch.maximum(high, -low)
        if not torch.isfinite(widest):
            raise ValueError("emb must be finite with differences inside float64, got NaN, Inf or more")
    return native.positive_ranks(
        emb,
        labels,
        offsets,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        cosine=distance == "cosine",
        first_only=first_only,
    )
