"""Verification accuracy as a metric of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._arguments import what_it_is
from .verification import VerificationResult, to_cpu, verification

_PAIRS_PER_BLOCK = 16_384


class VerificationAccuracy:
    """Verification accuracy of embeddings on fixed pairs and folds, as a metric to be maximised.

    ``M = mean_folds mean_pairs [(d <= threshold) = same]``, by :func:`verification`. The distance d of a pair
    is the Euclidean distance of its two embeddings, in float64 from direct differences. A pair is "same" when
    the targets of its two rows are equal.

    Parameters
    ----------
    pairs
        ``[P, 2]`` integers: the two rows of each pair.
    folds
        ``[P]`` integers: the fold of each pair.
    distance
        ``"euclidean"``, on the embeddings as they are, or ``"cosine"``: L2-normalised first, as the losses
        do by default, which orders pairs like their cosine; a zero row stays zero.

    Raises
    ------
    ValueError
        If the shapes are wrong or a row number is negative.
    TypeError
        If ``pairs`` are not integers, or ``pairs`` or ``folds`` cannot be made a tensor.

    Notes
    -----
    Outputs are ``[N, D]``, or ``[N, V, D]`` with V views of every item (an image and its mirror image,
    say), which are averaged first: the usual flip-averaging.

    Examples
    --------
    >>> outputs = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> metric = VerificationAccuracy([[0, 1], [0, 2], [2, 3], [1, 3]], [0, 0, 1, 1])
    >>> metric(outputs, torch.tensor([5, 5, 7, 7]))
    1.0
    """

    name = "verification_accuracy"
    higher_is_better = True

    def __init__(self, pairs: Any, folds: Any, *, distance: str = "euclidean") -> None:
        self.pairs = to_cpu("pairs", pairs)
        self.folds = to_cpu("folds", folds)
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        self.distance = distance
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"pairs must be [P, 2], got {list(self.pairs.shape)}")
        if self.pairs.is_floating_point() or self.pairs.dtype == torch.bool:
            raise TypeError(f"pairs must be integers, got {self.pairs.dtype}")
        if self.folds.shape != self.pairs.shape[:1]:
            raise ValueError(f"folds must be [{len(self.pairs)}], got {list(self.folds.shape)}")
        self.pairs = self.pairs.long()
        if len(self.pairs) and int(self.pairs.min()) < 0:
            raise ValueError(f"pairs must hold row numbers >= 0, got {int(self.pairs.min())}")

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Mean accuracy over the held-out folds; errors as in :meth:`result`."""
        return self.result(outputs, targets).accuracy

    def result(
        self, outputs: torch.Tensor, targets: torch.Tensor, *, far: Sequence[float] = (1e-3,)
    ) -> VerificationResult:
        """Everything that :func:`verification` reports for these embeddings.

        Parameters
        ----------
        outputs
            ``[N, D]`` or ``[N, V, D]`` embeddings of any floating dtype.
        targets
            ``[N]`` integers.
        far
            As in :func:`verification`.

        Returns
        -------
        VerificationResult

        Raises
        ------
        ValueError
            If an embedding is NaN or infinite, shapes disagree, a pair names a row beyond N, or
            :func:`verification` refuses the pairs.
        TypeError
            If outputs or targets are no tensors, outputs are complex, or targets not integers.
        """
        for name, value in (("outputs", outputs), ("targets", targets)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {what_it_is(value)}")
        if outputs.is_complex():
            raise TypeError(f"outputs must be real numbers, got {outputs.dtype}")
        if outputs.ndim not in (2, 3):
            raise ValueError(f"outputs must be [N, D] or [N, V, D], got {list(outputs.shape)}")
        if targets.shape != outputs.shape[:1]:
            raise ValueError(f"targets must be [{len(outputs)}], got {list(targets.shape)}")
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise TypeError(f"targets must be integers, got {targets.dtype}")
        if len(self.pairs) and int(self.pairs.max()) >= len(outputs):
            raise ValueError(f"pairs name row {int(self.pairs.max())}, but outputs have {len(outputs)} rows")
        if bad := int((~torch.isfinite(outputs)).flatten(1).any(1).sum()):
            raise ValueError(f"outputs must be finite, got NaN or Inf in {bad} of {len(outputs)} rows")
        pairs = self.pairs.to(outputs.device)
        blocks = [
            _norms(self._rows(outputs, block[:, 0]) - self._rows(outputs, block[:, 1]))[:, 0]
            for block in pairs.split(_PAIRS_PER_BLOCK)
        ]
        labels = targets.detach().cpu()[self.pairs]
        return verification(torch.cat(blocks), labels[:, 0] == labels[:, 1], self.folds, far=far)

    def _rows(self, outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Rows in float64, averaged over views, and normalised for the cosine."""
        rows: torch.Tensor = outputs.detach()[index].double()
        if rows.ndim == 3:
            rows = rows.mean(1)
        if self.distance == "euclidean":
            return rows
        norms = _norms(rows)
        return torch.where(norms > 0, rows / norms, 0)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean norms ``[N, 1]``; by the largest entry first, so that no square over- or underflows."""
    if rows.shape[1] == 0:
        return rows.new_zeros(len(rows), 1)
    largest = rows.abs().amax(1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1)
    return largest * torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
