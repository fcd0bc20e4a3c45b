"""Class-balanced batches whose order depends on the seed alone and can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from .._arguments import integer, what_it_is
from .._pml import MPerClassSampler, numpy_random


class ClassBalancedSampler(Sampler[list[int]]):
    """Batches of ``classes`` classes with ``per_class`` samples each: PML's MPerClassSampler, made resumable.

    Classes are drawn without replacement within a batch, samples without replacement within a class (with
    replacement from a class that has fewer than ``per_class``). Epoch ``e`` is a function of ``(seed, e)``
    alone, and no global random stream is touched. A batch sampler: hand it to a ``DataLoader`` as
    ``batch_sampler``. Iterating continues at ``position`` and stops at the end of that epoch.

    Parameters
    ----------
    labels
        int ``[N]``, the class of each sample.
    classes
        Distinct classes per batch.
    per_class
        Samples per class and batch.
    seed
        Non-negative and below 2**32.

    Attributes
    ----------
    position
        Number of batches drawn so far, over all epochs.

    Raises
    ------
    ValueError
        If the labels are not ``[N]``, a count is not positive, the seed out of range, the labels have fewer
        than ``classes`` classes, or a batch would be larger than the data set.
    TypeError
        If the labels are no tensor, or a count or the seed is no integer.

    Examples
    --------
    >>> import torch
    >>> labels = torch.arange(5).repeat_interleave(4)
    >>> sampler = ClassBalancedSampler(labels, classes=3, per_class=2)
    >>> batch = next(iter(sampler))
    >>> len(sampler), sorted(labels[batch].bincount(minlength=5).tolist())
    (3, [0, 0, 2, 2, 2])
    """

    def __init__(self, labels: torch.Tensor, *, classes: int = 32, per_class: int = 4, seed: int = 0) -> None:
        if not isinstance(labels, torch.Tensor):
            raise TypeError(f"labels must be a tensor, got {what_it_is(labels)}")
        classes, per_class = integer("classes", classes), integer("per_class", per_class)
        seed = integer("seed", seed)
        if labels.ndim != 1:
            raise ValueError(f"labels must be [N], got shape {list(labels.shape)}")
        for name, count in (("classes", classes), ("per_class", per_class)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if seed < 0:
            raise ValueError(f"seed must be non-negative, got {seed}")
        if seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {seed}")
        found = len(labels.unique())
        if found < classes:
            raise ValueError(f"classes is {classes}, but the labels have only {found} distinct values")
        self.batch_size = classes * per_class
        if self.batch_size > len(labels):
            raise ValueError(
                f"a batch of {classes} classes x {per_class} is larger than the {len(labels)} labels"
            )
        self.classes, self.per_class, self.seed = classes, per_class, seed
        self.position = 0
        self._drawer = MPerClassSampler(
            labels.cpu(), m=per_class, batch_size=self.batch_size, length_before_new_iter=len(labels)
        )
        self._class_order = sorted(self._drawer.labels)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._drawer) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = divmod(self.position, len(self))
        # PML shuffles its class list in place, so each epoch starts from the same order.
        self._drawer.labels = list(self._class_order)
        with numpy_random(np.random.RandomState([self.seed, epoch])):
            indices = [int(index) for index in self._drawer]
        for start in range(done * self.batch_size, len(indices), self.batch_size):
            self.position += 1
            yield indices[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it is a function of: plain integers."""
        return {
            "position": self.position,
            "seed": self.seed,
            "classes": self.classes,
            "per_class": self.per_class,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; ValueError if it belongs to another stream."""
        for name in ("seed", "classes", "per_class"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state was taken with {name}={state[name]}, the sampler has {getattr(self, name)}"
                )
        self.position = int(state["position"])
