"""Ranks of positives in plain torch: strips of exact distances, counted against those of the positives."""

from __future__ import annotations

import torch
from torch import Tensor

from ._strips import chunks

_STRIP_BYTES = 8 << 20


def positives_per_query(labels: Tensor, ref_labels: Tensor | None) -> Tensor:
    """Number of references of each query's class [N], itself not counted where it is one of them."""
    classes, sizes = torch.unique(labels if ref_labels is None else ref_labels, return_counts=True)
    if classes.numel() == 0:
        return torch.zeros_like(labels)
    at = torch.searchsorted(classes, labels).clamp_max(classes.numel() - 1)
    return torch.where(classes[at] == labels, sizes[at], 0) - int(ref_labels is None)


class RankStrips:
    """The prepared rows of one call: float64, near exact, in the order of comparison."""

    def __init__(
        self,
        emb: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        distance: str,
        *,
        exact: bool = False,
    ) -> None:
        self.symmetric = ref_emb is None
        self.exact = exact
        self.labels = labels
        self.ref_labels = labels if ref_labels is None else ref_labels
        self.cosine = distance == "cosine"
        queries, references = emb.double(), (emb if ref_emb is None else ref_emb).double()
        if self.cosine:
            queries, references = _unit(queries, "emb"), _unit(references, "ref_emb")
        else:
            queries, references = _centre(queries, references)
        self.queries, self.references = queries, references
        self._prepared: tuple[Tensor, Tensor, Tensor | None] | None = None

    def _distinct(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Distinct references, half their squares, and where rows repeat the place of each among them.

        Equal rows must tie to the last bit, which a blocked product does not promise: each is compared once.
        """
        if self._prepared is None:
            rows, place = torch.unique(self.references, dim=0, return_inverse=True)
            repeated = len(rows) < len(self.references)
            rows = rows if repeated else self.references
            half = (rows * rows).sum(1) / 2
            # a zero row under "cosine" is an ordinary row: product 0 with everything
            self._prepared = (
                rows,
                torch.zeros_like(half) if self.cosine else half,
                place if repeated else None,
            )
        return self._prepared

    def order(self, rows: Tensor) -> Tensor:
        """Numbers [c, M] that sort like the distances of the queries ``rows`` to all references."""
        references, half_square, place = self._distinct()
        if self.exact and not self.cosine:
            difference = self.queries[rows][:, None, :] - references
            key = (difference * difference).sum(2)
        else:
            key = torch.addmm(half_square, self.queries[rows], references.T, alpha=-1)
        return key if place is None else key[:, place]

    def ranks(self, positives: Tensor, first_only: bool) -> Tensor:
        """Pessimistic and optimistic ranks [2, ...] of all queries."""
        wanted = positives.clamp_max(1) if first_only else positives
        asked = torch.nonzero(wanted)[:, 0]
        starts = wanted.cumsum(0) - wanted
        found = self.labels.new_zeros(2, int(wanted.sum()))
        self.count(asked, wanted, starts, found)
        if not first_only:
            return found
        first = found.new_zeros(2, len(self.labels))
        first[:, asked] = found
        return first

    def count(self, rows: Tensor, wanted: Tensor, starts: Tensor, found: Tensor) -> None:
        """Write the ranks of the ``wanted`` nearest positives of queries ``rows`` to ``found``."""
        m = max(1, len(self.ref_labels))
        for part in chunks(len(rows), max(1, _STRIP_BYTES // (8 * m))):
            strip = rows[part]
            same = self.labels[strip, None] == self.ref_labels
            negative = ~same
            if self.symmetric:
                same[torch.arange(len(strip), device=same.device), strip] = False
            write_ranks(self.order(strip), same, negative, wanted[strip], starts[strip], found)


def nearest(order: Tensor, same: Tensor, wanted: Tensor) -> Tensor:
    """The ``wanted`` smallest of ``order`` [c, M] where ``same``, ascending, padded with Inf."""
    width = int(wanted.max()) if len(wanted) else 0
    far = order.masked_fill(~same, torch.inf)
    return far.topk(width, dim=1, largest=False).values.sort(dim=1).values


def write_ranks(
    order: Tensor, same: Tensor, negative: Tensor, wanted: Tensor, starts: Tensor, found: Tensor
) -> None:
    """Count the negatives before each of the ``wanted`` nearest positives; write ranks at ``starts``."""
    thresholds = nearest(order, same, wanted)
    width = thresholds.shape[1]
    column = torch.arange(width, device=order.device)
    keep = column < wanted[:, None]
    at = (starts[:, None] + column)[keep]
    ones = negative.to(torch.int64)
    # a negative at distance t stands before every threshold >= t (pessimistic) or > t (optimistic)
    for out, right in zip(found, (False, True)):
        nearer = ones.new_zeros(len(order), width + 1)
        nearer.scatter_add_(1, torch.searchsorted(thresholds, order, right=right), ones)
        out[at] = (nearer[:, :width].cumsum(1) + column + 1)[keep]


def _centre(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Move the first reference to the origin and scale by one power of two: both keep float32 data exact."""
    if references.numel() == 0 or queries.numel() == 0:
        return queries, references
    origin = references[0]
    queries, references = queries - origin, references - origin
    largest = torch.maximum(queries.abs().max(), references.abs().max())
    if not torch.isfinite(largest):
        raise ValueError("emb must be finite with differences inside float64, got NaN, Inf or more")
    exponent = torch.frexp(largest).exponent
    return torch.ldexp(queries, -exponent), torch.ldexp(references, -exponent)


def _unit(x: Tensor, name: str) -> Tensor:
    if x.numel() == 0:
        return x
    largest = x.abs().amax(1, keepdim=True)
    bad = int((~torch.isfinite(largest)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or Inf in {bad} of {len(x)} rows")
    x = torch.ldexp(x, -torch.frexp(largest).exponent)  # norms of 1e-200 and 1e200 alike are representable
    return torch.nn.functional.normalize(x, dim=1)
