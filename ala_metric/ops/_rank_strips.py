"""Ranks of positives in plain torch: strips of float64 products, and differences where those are unclear."""

from __future__ import annotations

import torch
from torch import Tensor

from ._strips import chunks, gather_chunks

_STRIP_BYTES = 8 << 20
_SAMPLE = 1024  # references that the centre is taken from


def positives_per_query(labels: Tensor, ref_labels: Tensor | None) -> Tensor:
    """Number of references of each query's class [N], itself not counted where it is one of them."""
    classes, sizes = torch.unique(labels if ref_labels is None else ref_labels, return_counts=True)
    if classes.numel() == 0:
        return torch.zeros_like(labels)
    at = torch.searchsorted(classes, labels).clamp_max(classes.numel() - 1)
    return torch.where(classes[at] == labels, sizes[at], 0) - int(ref_labels is None)


class RankStrips:
    """The prepared rows of one call, float64: unit rows, or rows scaled by one power of two and centred too.

    Keys sort like distances: squares of them, or minus the cosine.
    """

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
        x, y = emb.double(), None if ref_emb is None else ref_emb.double()
        if self.cosine:
            x, y = _unit(x, "emb"), None if y is None else _unit(y, "ref_emb")
            origin = None
        else:
            x, y, origin = _scale(x, y)
        y = x if y is None else y
        self.rows = x, y  # of these distances are computed where products leave them unclear
        self.queries, self.references = (x, y) if origin is None else (x - origin, y - origin)
        self._equal: Tensor | None = None

    def keys(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [c, M] of the queries ``rows`` and all references, and how wrong they may be.

        Products, additions and the key of :meth:`make_exact` round D times each, centring once; all of it is
        relative to the squared sum of the two lengths, whatever the distance.
        """
        x, y = self.queries[rows], self.references
        unit = 1.01 * (2 * x.shape[1] + 16) * 2.0**-53
        if self.cosine:
            key = -(x @ y.T)
            return key, key.new_full((1, 1), unit)
        x_square, y_square = (x * x).sum(1, keepdim=True), (y * y).sum(1)
        key = torch.addmm(y_square, x, y.T, alpha=-2).add_(x_square)
        return key, (x_square.sqrt() + y_square.sqrt()).square_().mul_(unit)

    def make_exact(self, key: Tensor, where: Tensor, rows: Tensor, near: Tensor | None = None) -> None:
        """Compute ``key`` [c, k] anew from the rows themselves; its columns are ``near``, or all references.

        Always in one order of additions, so that equal rows tie to the last bit.
        """
        x, y = self.rows
        at, column = torch.nonzero(where, as_tuple=True)
        reference = column if near is None else near[at, column]
        query, place = rows[at], None
        if len(at) > len(y) and y.shape[1]:  # a collapsed batch, perhaps of equal rows: compare each once
            if self._equal is None:
                self._equal = _first_equal(y)
            pairs, place = torch.unique(at * len(y) + self._equal[reference], return_inverse=True)
            query, reference = rows[pairs // len(y)], pairs % len(y)
        exact = x.new_empty(len(query))
        for part in gather_chunks(len(query), x):
            exact[part] = self._exact(x[query[part]], y[reference[part]])
        key[at, column] = exact if place is None else exact[place]

    def _exact(self, x: Tensor, y: Tensor) -> Tensor:
        return -(x * y).sum(-1) if self.cosine else (x - y).square_().sum(-1)

    def _settled(self, rows: Tensor, same: Tensor, negative: Tensor, wanted: Tensor) -> Tensor:
        """Keys [c, M], exact wherever the order of a positive and a negative depends on it."""
        key, slack = self.keys(rows)
        inexact = slack > 0  # else both rows are at the centre, and their distance is 0
        some = wanted < same.sum(1)
        if some.any():  # not all positives are wanted: it must be sure which
            last = nearest(key + slack, same, wanted)[0].gather(1, wanted[:, None] - 1)
            self.make_exact(key, same & inexact & some[:, None] & (key - slack <= last), rows)
        thresholds, column = nearest(key, same, wanted)
        first, end = between(key, slack + (slack * same).amax(1, keepdim=True), thresholds)
        open_ = negative & (first < end)
        # the thresholds that an open negative meets: one up at its first, one down at its end
        meet = torch.zeros(len(key), thresholds.shape[1] + 1, dtype=torch.int64, device=key.device)
        meet.scatter_add_(1, first, open_.long()).scatter_add_(1, end, -open_.long())
        met = meet.cumsum(1)[:, :-1] > 0
        self.make_exact(key, inexact & (open_ | torch.zeros_like(open_).scatter_(1, column, met)), rows)
        return key

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
            if self.exact:
                key = self._exact(self.rows[0][strip][:, None, :], self.rows[1])
            else:
                key = self._settled(strip, same, negative, wanted[strip])
            thresholds, _ = nearest(key, same, wanted[strip])
            write_ranks(key, negative, thresholds, wanted[strip], starts[strip], found)


def nearest(key: Tensor, same: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The ``wanted`` smallest of ``key`` [c, M] where ``same``, ascending, padded with Inf; their columns."""
    width = int(wanted.max()) if len(wanted) else 0
    found = key.masked_fill(~same, torch.inf).topk(width, dim=1, largest=False, sorted=True)
    return found.values, found.indices


def between(key: Tensor, slack: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """First and end of the ``thresholds`` within ``slack`` of ``key`` [c, k]: before which it is, is open."""
    first = torch.searchsorted(thresholds, key - slack)
    return first, torch.searchsorted(thresholds, key + slack, right=True)


def write_ranks(
    key: Tensor, negative: Tensor, thresholds: Tensor, wanted: Tensor, starts: Tensor, found: Tensor
) -> None:
    """Count the negatives before each of the ``wanted`` nearest positives; write ranks at ``starts``."""
    width = thresholds.shape[1]
    column = torch.arange(width, device=key.device)
    keep = column < wanted[:, None]
    at = (starts[:, None] + column)[keep]
    ones = negative.to(torch.int64)
    # a negative at distance t stands before every threshold >= t (pessimistic) or > t (optimistic)
    for out, right in zip(found, (False, True)):
        nearer = ones.new_zeros(len(key), width + 1)
        nearer.scatter_add_(1, torch.searchsorted(thresholds, key, right=right), ones)
        out[at] = (nearer[:, :width].cumsum(1) + column + 1)[keep]


def _first_equal(rows: Tensor) -> Tensor:
    """For each row the number of one that is equal to it, the same for all of these."""
    distinct, place = torch.unique(rows, dim=0, return_inverse=True)
    number = place.new_zeros(len(distinct))
    number[place] = torch.arange(len(rows), device=rows.device)
    return number[place]


def _scale(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows scaled by one power of two, and a centre; less the centre, the largest number is about 1.

    The centre is a median, which no outlier moves: products of rows near it are exact enough for all but a
    few pairs. These are left to the differences of the scaled rows, exact at any offset.
    """
    references = x if y is None else y
    if x.numel() == 0 or references.numel() == 0:
        return x, y, None
    low, high = torch.minimum(x.min(), references.min()), torch.maximum(x.max(), references.max())
    if not torch.isfinite(high - low):
        raise ValueError("emb must be finite with differences inside float64, got NaN, Inf or more")
    largest = torch.maximum(high, -low)
    origin = references[:: -(-len(references) // _SAMPLE)].median(0).values
    spread = torch.maximum((x - origin).abs().max(), (references - origin).abs().max())
    # the rows themselves must stay finite, too
    exponent = torch.maximum(torch.frexp(spread).exponent, torch.frexp(largest).exponent - 900)
    x, origin = torch.ldexp(x, -exponent), torch.ldexp(origin, -exponent)
    return x, None if y is None else torch.ldexp(y, -exponent), origin


def _unit(x: Tensor, name: str) -> Tensor:
    if x.numel() == 0:
        return x
    largest = x.abs().amax(1, keepdim=True)
    bad = int((~torch.isfinite(largest)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or Inf in {bad} of {len(x)} rows")
    x = torch.ldexp(x, -torch.frexp(largest).exponent)  # norms of 1e-200 and 1e200 alike are representable
    return torch.nn.functional.normalize(x, dim=1)
