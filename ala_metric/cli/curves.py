"""Precision/recall and ROC curves of a test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..data import Splits
from . import figures, tasks
from .shards import Gallery

LEVELS = 101
DRAWN = 2000


@dataclass(frozen=True)
class Curves:
    """Points of both curves, each ``[n]`` float64 in [0, 1]; ``what`` names the decisions behind them."""

    recall: Tensor
    precision: Tensor
    false_rate: Tensor
    true_rate: Tensor
    what: str


def binary_curves(scores: Tensor, positive: Tensor, what: str) -> Curves:
    """Curves over the distinct scores, the highest first; equal scores enter together."""
    order = scores.argsort(descending=True)
    scores, positive = scores[order], positive[order]
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    hits = positive.cumsum(0)[last].double()
    taken = (torch.arange(len(scores)) + 1)[last].double()
    wrong = taken - hits
    origin = torch.zeros(1, dtype=torch.float64)
    return Curves(
        recall=hits / hits[-1],
        precision=hits / taken,
        false_rate=torch.cat([origin, wrong / wrong[-1]]),
        true_rate=torch.cat([origin, hits / hits[-1]]),
        what=what,
    )


def retrieval_curves(
    embeddings: Tensor, labels: Tensor, distance: Any, impl: Any, gallery: Gallery | None = None
) -> Curves:
    """Means over the queries: precision where each recall is reached, and recall at each false rate."""
    ref_emb, ref_labels = gallery or (None, None)
    ranks, offsets = ops.positive_ranks(
        embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels, distance=distance, impl=impl
    )
    references = len(embeddings) - 1 if ref_emb is None else len(ref_emb)
    count = offsets.diff()
    start, count = offsets[:-1][count > 0], count[count > 0]
    query = torch.repeat_interleave(torch.arange(len(count)), count)
    place = torch.arange(len(ranks)) - start[query] + 1
    negatives = (references - count).clamp_min(1)
    false_rate = (ranks - place).double() / negatives[query]
    share = 1.0 / count[query].double() / len(count)
    percent = torch.arange(LEVELS)
    needed = ((percent[:, None] * count + LEVELS - 2) // (LEVELS - 1)).clamp_min(1)
    precision = torch.stack([(row.double() / ranks[start + row - 1]).mean() for row in needed])
    levels = percent.double() / (LEVELS - 1)
    rates = torch.cat([levels[:1], torch.logspace(-5, 0, LEVELS, dtype=torch.float64)])
    true_rate = torch.stack([share[false_rate <= rate].sum() for rate in rates])
    return Curves(levels, precision, rates, true_rate, f"mean of {len(count):,} queries")


def verification_curves(embeddings: Tensor, labels: Tensor, pairs: Tensor, distance: Any) -> Curves:
    """Curves over the pairs of all folds, nearest first."""
    rows = embeddings.double()
    if distance == "cosine":
        rows = torch.nn.functional.normalize(rows)
    left, right = pairs.long().T
    distances = (rows[left] - rows[right]).norm(dim=1)
    return binary_curves(-distances, labels[left] == labels[right], f"{len(pairs):,} pairs of all folds")


def classification_curves(logits: Tensor, labels: Tensor) -> Curves:
    """Curves over all decisions "this image has this class", by log-probability."""
    truth = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    scores = logits.double().log_softmax(1)
    return binary_curves(scores.flatten(), truth.flatten(), f"{truth.numel():,} decisions, one per class")


def measured(splits: Splits, outputs: Tensor, labels: Tensor, distance: Any, impl: Any) -> Curves:
    """The curves that belong to the task of a data set."""
    task = tasks.task_of(splits.name)
    if task == "classification":
        return classification_curves(outputs, labels)
    if task == "verification" and splits.pairs is not None:
        return verification_curves(outputs, labels, splits.pairs, distance)
    return retrieval_curves(outputs, labels, distance, impl)


def draw(curves: Curves, path: Path) -> None:
    """Write both curves side by side as one picture."""
    figure = figures.new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    left.plot(_thin(curves.recall), _thin(curves.precision), color=figures.ADAPTIVE)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall")
    right.plot(_thin(curves.false_rate), _thin(curves.true_rate), color=figures.ADAPTIVE)
    right.set(xlabel="false positive rate", ylabel="true positive rate", ylim=(0, 1.02), title="ROC")
    smallest = curves.false_rate[curves.false_rate > 0].min()
    right.set_xscale("symlog", linthresh=float(smallest))
    right.set_xlim(0, 1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(curves.what, fontsize=8, color=figures.FAINT)
    figures.save(figure, path)


def _thin(points: Tensor) -> Any:
    """At most ``DRAWN`` points, the first and the last among them."""
    keep = torch.linspace(0, len(points) - 1, min(len(points), DRAWN)).round().long()
    return points[keep].numpy()
