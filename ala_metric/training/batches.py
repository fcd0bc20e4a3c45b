"""Batches as a function of the step, so that every child sees the same ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data import ClassBalancedSampler
from .interrupt import leave_signals_to_the_parent

Batch = tuple[torch.Tensor, torch.Tensor]
CACHE_BYTES = 1 << 28


def endless_batches(
    dataset: Any, sampler: ClassBalancedSampler, workers: int
) -> Generator[Batch, None, None]:
    """Batches without end. The loader has a generator of its own: it would draw from torch's global one."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        generator=torch.Generator(),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_parent,
    )
    while True:
        yield from loader


class SharedBatches:
    """The batches of any stretch of a run, decoded once for all children that train on it.

    Batches of the latest stretch are kept up to a number of bytes; those beyond are made again.

    Parameters
    ----------
    dataset, sampler, workers
        As for ``fit``.
    cache_bytes
        Memory for kept batches.

    Examples
    --------
    >>> from ala_metric.data import ImageSet
    >>> images = ImageSet(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1, 2, 2]), "toy")
    >>> batches = SharedBatches(images, ClassBalancedSampler(images.labels, classes=2, per_class=2))
    >>> [labels.numel() for _, labels in batches.between(1, 3)]
    [4, 4]
    """

    def __init__(
        self, dataset: Any, sampler: ClassBalancedSampler, workers: int = 0, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.dataset, self.sampler, self.workers = dataset, sampler, workers
        self.cache_bytes = cache_bytes
        self._kept: dict[int, Batch] = {}
        self._bytes = 0

    def keep_from(self, step: int) -> None:
        """Forget batches that no child can ask for any more."""
        self._kept = {number: batch for number, batch in self._kept.items() if number >= step}
        self._bytes = sum(_size(batch) for batch in self._kept.values())

    def between(self, start: int, end: int) -> Iterator[Batch]:
        """Batches of the steps ``start + 1`` to ``end``.

        Parameters
        ----------
        start, end
            Steps done before the first and after the last batch.

        Yields
        ------
        tuple of torch.Tensor
            Inputs and labels; not to be changed in place.
        """
        made: Generator[Batch, None, None] | None = None
        try:
            for step in range(start, end):
                if step not in self._kept:
                    if made is None:
                        self.sampler.position = step
                        made = endless_batches(self.dataset, self.sampler, self.workers)
                    batch = next(made)
                    if self._bytes + _size(batch) <= self.cache_bytes:
                        self._kept[step] = batch
                        self._bytes += _size(batch)
                    yield batch
                    continue
                if made is not None:
                    made.close()
                    made = None
                yield self._kept[step]
        finally:
            if made is not None:
                made.close()


def _size(batch: Batch) -> int:
    return sum(part.numel() * part.element_size() for part in batch if isinstance(part, torch.Tensor))
