"""One meter for the compute of everything: branches, validation, hypergradients."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORWARD_SHARE = 1.0 / 3.0
"""A forward pass in units of a training step: the backward pass costs about two forward passes."""


@dataclass
class Meter:
    """Compute of a run, all children and branches included.

    Parameters
    ----------
    training_steps
        Optimizer steps.
    training_items
        Samples in their batches.
    validation_passes
        Calls of ``validate``.
    validation_items
        Samples that these embedded, forward only.
    hypergradient_steps
        Hypergradients that were taken.
    hypergradient_items
        What they cost, in samples of a training step.
    training_seconds, validation_seconds, hypergradient_seconds
        Wall-clock time; left out of comparisons.

    Examples
    --------
    A run of 10 steps of 8 samples that embedded 24 samples twice: 80 + 48 / 3 samples, in units of 80.

    >>> meter = Meter(training_steps=10, training_items=80, validation_passes=2, validation_items=48)
    >>> meter.in_units_of(total_steps=10)
    1.2
    """

    training_steps: int = 0
    training_items: int = 0
    validation_passes: int = 0
    validation_items: int = 0
    hypergradient_steps: int = 0
    hypergradient_items: float = 0.0
    training_seconds: float = field(default=0.0, compare=False)
    validation_seconds: float = field(default=0.0, compare=False)
    hypergradient_seconds: float = field(default=0.0, compare=False)

    def in_units_of(self, total_steps: int) -> float:
        """Compute in full trainings of ``total_steps`` steps with the mean batch of this run.

        ``(training_items + hypergradient_items + validation_items / 3) / (total_steps * items per step)``. A
        forward-only pass counts as a third of a training sample: the backward pass costs about two forward
        passes.

        Parameters
        ----------
        total_steps
            Steps of one training.

        Returns
        -------
        float
            1 for a plain training without validation; 0 before the first step.
        """
        if self.training_steps == 0 or total_steps == 0:
            return 0.0
        training = total_steps * self.training_items / self.training_steps
        spent = self.training_items + self.hypergradient_items + FORWARD_SHARE * self.validation_items
        return spent / training

    @property
    def overhead(self) -> float:
        """Share of the measured time that was not spent on training steps."""
        extra = self.validation_seconds + self.hypergradient_seconds
        total = self.training_seconds + extra
        return extra / total if total > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """All counts as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])
