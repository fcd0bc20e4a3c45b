"""Evaluation shared by the ranks that torchrun has started: each embeds and ranks a part of the rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import metrics, ops, training
from ..metrics.retrieval import check_depths, query_scores

Gallery = tuple[Tensor, Tensor]
"""Rows to search, [M, D], and their classes, [M]."""


@contextmanager
def ranks() -> Iterator[int]:
    """Join the other ranks, if torchrun has started any; this process's number among them."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def world() -> int:
    """How many ranks share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_this_rank(device: torch.device) -> torch.device:
    """One GPU for every rank of this machine, in turn."""
    if device.type != "cuda" or world() == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def my_rows(total: int) -> list[Tensor]:
    """The rows of every rank, in order."""
    if total < world():
        raise ValueError(f"{world()} ranks cannot share {total} rows; start fewer")
    return list(torch.arange(total).tensor_split(world()))


def embed(everything: training.Validation) -> tuple[Tensor, Tensor]:
    """Outputs and labels of all images, on the CPU of every rank; each computes those of its part."""
    if world() == 1:
        outputs, labels = everything()
        return outputs.cpu(), labels.cpu()
    parts = my_rows(len(everything.labels))
    outputs = everything.subset(parts[dist.get_rank()])()[0].cpu()
    longest = max(map(len, parts))
    padded = outputs.new_zeros(longest, *outputs.shape[1:])
    padded[: len(outputs)] = outputs
    gathered = [torch.empty_like(padded) for _ in parts]
    dist.all_gather(gathered, padded)
    return torch.cat([block[: len(rows)] for block, rows in zip(gathered, parts)]), everything.labels


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    *,
    k: Sequence[int],
    distance: Any,
    impl: Any,
    gallery: Gallery | None = None,
) -> metrics.RetrievalResult:
    """:func:`ala_metric.metrics.retrieval` with the queries dealt to the ranks and one all_reduce."""
    if world() == 1:
        ref_emb, ref_labels = gallery or (None, None)
        return metrics.retrieval(
            embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels, k=k, distance=distance, impl=impl
        )
    depths = check_depths(k, len(embeddings) - 1 if gallery is None else len(gallery[1]))
    rows = my_rows(len(embeddings))[dist.get_rank()]
    sums = query_sums(embeddings, labels, rows, depths, distance, impl, gallery)
    dist.all_reduce(sums)
    return result_of_sums(sums, depths)


def query_sums(
    embeddings: Tensor,
    labels: Tensor,
    rows: Tensor,
    depths: Sequence[int],
    distance: Any,
    impl: Any,
    gallery: Gallery | None = None,
) -> Tensor:
    """Sums of the scores of some queries, and the counts of asked, excluded and tied ones: float64."""
    ref_emb, ref_labels = gallery or (embeddings, labels)
    both, offsets = ops.positive_ranks(
        embeddings[rows],
        labels[rows],
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        distance=distance,
        ties="both",
        impl=impl,
    )
    if gallery is None:
        # Every query is its own nearest positive here: without it, the others stand one rank higher.
        own = torch.zeros(both.shape[1], dtype=torch.bool)
        own[offsets[:-1]] = True
        both, offsets = both[:, ~own] - 1, offsets - torch.arange(len(offsets))
    asked = offsets.diff() > 0
    query = torch.repeat_interleave(torch.arange(len(rows)), offsets.diff())
    tied = query[both[0] != both[1]].unique()
    sums = [score[asked].sum() for score in query_scores(both[0], offsets, depths).values()]
    counts = torch.tensor([int(asked.sum()), int((~asked).sum()), len(tied)], dtype=torch.float64)
    return torch.cat([torch.stack(sums), counts])


def result_of_sums(sums: Tensor, depths: Sequence[int]) -> metrics.RetrievalResult:
    """The means over all queries."""
    *scores, queries, excluded, tied = sums.tolist()
    if queries == 0:
        raise ValueError(f"none of the {int(excluded)} queries has a reference of its own class")
    *hits, r_precision, map_at_r, mrr = (score / queries for score in scores)
    return metrics.RetrievalResult(
        dict(zip(depths, hits)), r_precision, map_at_r, mrr, int(queries), int(excluded), int(tied)
    )
