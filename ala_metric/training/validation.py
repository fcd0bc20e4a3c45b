"""A validation set that can be halved, and the half that siblings are compared on."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..metrics import RecallAtK
from ..types import Metric
from .embed import embed
from .interrupt import leave_signals_to_the_parent
from .measure import ERRORS_OF_CLASSES, MeanLogProbability, Validate

LEAST_SAMPLES = 500
LEAST_CLASSES = 20


@runtime_checkable
class Divisible(Protocol):
    """A ``validate`` that knows its labels and can be asked for some of its samples only."""

    labels: torch.Tensor

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and targets."""
        ...

    def subset(self, rows: torch.Tensor) -> Validate:
        """The same for the samples with these indices."""
        ...


class Validation:
    """Embeds a validation set: a ``validate`` of which races and forks can take a half.

    Parameters
    ----------
    model
        Run in eval mode, as by :func:`ala_metric.training.embed`.
    dataset
        Items ``(inputs, label)`` and ``labels`` int64 ``[N]``, as the data set of ``fit``.
    batch_size
        Samples per batch.
    workers
        Processes that make the items, for data sets that decode files.

    Raises
    ------
    TypeError
        If the data set has no ``labels``.
    ValueError
        If the batch size is not positive.

    Examples
    --------
    >>> from ala_metric.data import ImageSet
    >>> images = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), "toy")
    >>> validate = Validation(nn.Flatten(), images)
    >>> outputs, targets = validate.subset(torch.tensor([1, 2]))()
    >>> tuple(outputs.shape), targets.tolist()
    ((2, 4), [0, 1])
    """

    def __init__(self, model: nn.Module, dataset: Any, batch_size: int = 512, workers: int = 0) -> None:
        if not hasattr(dataset, "labels"):
            raise TypeError(f"dataset must have labels, {type(dataset).__name__} has none")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.dataset = model, dataset
        self.batch_size, self.workers = batch_size, workers
        self.labels = torch.as_tensor(dataset.labels)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs ``[N, D]`` and targets ``[N]`` of the whole set."""
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            worker_init_fn=leave_signals_to_the_parent,
        )
        return embed(self.model, loader)

    def subset(self, rows: torch.Tensor) -> Validation:
        """The same for the samples with these indices.

        Parameters
        ----------
        rows
            int64, in the order in which they shall come.

        Returns
        -------
        Validation
            Embeds these alone.
        """
        some = Subset(self.dataset, rows.tolist())
        some.labels = self.labels[rows]  # type: ignore[attr-defined]
        return Validation(self.model, some, self.batch_size, self.workers)


def half(validate: Validate, metric: Metric, seed: int) -> tuple[Validate, str]:
    """Half of a validation set, and which half it is; all of it where a half would not do.

    For :class:`ala_metric.metrics.RecallAtK` half of the classes with all their samples, for the metrics of
    classifiers half of the samples of each class. All for other metrics (pairs of a verification protocol
    name their rows), for a function that cannot be divided, and where fewer than 500 samples, or for
    retrieval 20 classes, would be left.

    Parameters
    ----------
    validate
        Divided if it has ``labels`` and ``subset(rows)``, such as :class:`Validation`.
    metric
        What siblings are compared by.
    seed
        The half is a function of it and of the labels.

    Returns
    -------
    tuple
        What to call, and for the records ``"87 of 173 classes"``, ``"520 of 1040 samples"`` or ``"all"``.
    """
    by_class = isinstance(metric, RecallAtK)
    stratified = isinstance(metric, MeanLogProbability) or getattr(metric, "name", None) in ERRORS_OF_CLASSES
    if not isinstance(validate, Divisible) or not (by_class or stratified):
        return validate, "all"
    labels = validate.labels.cpu()
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if by_class:
        classes = labels.unique()
        kept = classes[torch.randperm(len(classes), generator=generator)[: (len(classes) + 1) // 2]]
        rows = torch.isin(labels, kept).nonzero()[:, 0]
        usable, name = len(kept) >= LEAST_CLASSES, f"{len(kept)} of {len(classes)} classes"
    else:
        order = torch.randperm(len(labels), generator=generator)
        order = order[labels[order].argsort(stable=True)]  # class by class, shuffled within
        _, counts = labels.unique(return_counts=True)
        rows = torch.cat([own[: (len(own) + 1) // 2] for own in order.split(counts.tolist())]).sort().values
        usable, name = True, f"{len(rows)} of {len(labels)} samples"
    if not usable or len(rows) < LEAST_SAMPLES:
        return validate, "all"
    return validate.subset(rows), name
