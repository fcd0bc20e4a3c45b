"""One unrolled training step, differentiated with respect to the loss parameters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._phi import read_phi
from .._streams import preserved_random_streams
from ..controller.unit_cube import from_unit, to_unit
from ..data import ClassBalancedSampler
from .batches import Batch, SharedBatches
from .embed import evaluating
from .meter import Meter
from .parts import Parts

Surrogate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HypergradientSettings:
    """How hypergradients move the loss parameters of a child.

    Parameters
    ----------
    surrogate
        ``surrogate(outputs, targets) -> scalar``, differentiable, lower is better: stands for the metric on
        validation batches. See :func:`ala_metric.training.nca` and
        :func:`ala_metric.training.balanced_cross_entropy`.
    dataset
        Validation set with ``labels``, as the data set of ``fit``.
    batch_classes, per_class
        Of the validation batches.
    every
        Training steps between two hypergradients.
    rate
        Length of a step in the unit cube of the parameters: the root mean square over them.
    decay
        Of the moving average of the hypergradients, whose direction is followed.
    width
        Half width of the finite differences in Phi, in the unit cube.
    nudge
        Length of the finite difference in the weights, relative to their norm.
    seed
        Of the validation batches.

    Examples
    --------
    >>> from ala_metric import data
    >>> HypergradientSettings(surrogate=torch.nn.functional.cross_entropy, dataset=None).every
    5
    """

    surrogate: Surrogate
    dataset: Any
    batch_classes: int = 32
    per_class: int = 4
    every: int = 5
    rate: float = 0.02
    decay: float = 0.9
    width: float = 0.02
    nudge: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "rate", "width", "nudge"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")


class Hypergradient:
    r"""Moves Phi down the gradient of a validation surrogate through one step of the optimizer.

    With :math:`w' = w - \eta P \nabla_w L(w, \phi)` (P is Adam's diagonal, or 1),

    .. math::
        \frac{d S(w')}{d \phi} = -\eta \, \frac{\partial}{\partial \phi} \, (P v)^T \nabla_w L(w, \phi),
        \quad v = \nabla_w S(w).

    The mixed derivative is taken by central differences: along ``P v`` in the weights, and along each
    coordinate of the unit cube in Phi. The model runs twice per hypergradient, the loss alone ``4 n``
    times, in float64; so every loss with ``set_phi`` has hypergradients, also those whose gradient with
    respect to their parameters is not implemented. S is differentiated at ``w`` instead of ``w'``, which
    differs by the size of one step.

    Parameters
    ----------
    settings
        See :class:`HypergradientSettings`.

    Notes
    -----
    Cost, in samples of a training step: one for each validation sample of the batch, and two thirds (two
    forward passes) for each training sample.
    """

    def __init__(self, settings: HypergradientSettings) -> None:
        self.settings = settings
        sampler = ClassBalancedSampler(
            settings.dataset.labels,
            classes=settings.batch_classes,
            per_class=settings.per_class,
            seed=settings.seed,
        )
        self.batches = SharedBatches(settings.dataset, sampler)

    def due(self, step: int) -> bool:
        """Whether one is taken before the step after ``step``."""
        return step % self.settings.every == 0

    def step(
        self,
        parts: Parts,
        loss: Any,
        step: int,
        batch: Batch,
        memory: dict[str, Any],
        meter: Meter,
    ) -> tuple[float, ...]:
        """New parameters for the loss; model, optimizer and random streams stay as they were.

        Parameters
        ----------
        parts
            The training as it stands.
        loss
            The adaptive loss.
        step
            Steps done; chooses the validation batch.
        batch
            The next training batch.
        memory
            Of the moving average, written in place.
        meter
            Counts the cost.

        Returns
        -------
        tuple of float
            Inside their ranges.
        """
        begin = time.perf_counter()
        settings = self.settings
        number = step // settings.every
        (inputs, targets) = next(iter(self.batches.between(number, number + 1)))
        phi = read_phi(loss)
        with preserved_random_streams():
            slope = self.gradient(parts, loss, batch, (inputs, targets))
        meter.hypergradient_steps += 1
        meter.hypergradient_items += len(targets) + 2.0 / 3.0 * len(batch[1])
        average = memory.get("average")
        average = slope if average is None else settings.decay * average + (1.0 - settings.decay) * slope
        memory["average"] = average
        length = float(average.square().mean().sqrt())
        meter.hypergradient_seconds += time.perf_counter() - begin
        if not (0.0 < length < float("inf")):
            return tuple(phi)
        units = to_unit(loss.phi_spec, phi) - settings.rate * average / length
        return from_unit(loss.phi_spec, units.clamp(0.0, 1.0))

    def gradient(self, parts: Parts, loss: Any, batch: Batch, validation: Batch) -> torch.Tensor:
        """``[n_params]`` float64 derivative of the surrogate, up to the positive factor eta.

        Parameters
        ----------
        parts
            The training as it stands.
        loss
            The adaptive loss.
        batch, validation
            A training and a validation batch.

        Returns
        -------
        torch.Tensor
            With respect to the coordinates of Phi in the unit cube.
        """
        model, device = parts.model, parts.device
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        with torch.enable_grad(), evaluating(model):
            outputs = model(validation[0].to(device))
            if not outputs.isfinite().all():  # the arm diverges; its next training step says so
                return torch.zeros(len(loss.phi_spec), dtype=torch.float64)
            surrogate = self.settings.surrogate(outputs, validation[1].to(device))
            slopes = torch.autograd.grad(surrogate, weights, allow_unused=True)
        with torch.no_grad():
            direction = [
                torch.zeros_like(weight)
                if slope is None
                else slope * _preconditioner(parts.optimizer, weight)
                for weight, slope in zip(weights, slopes)
            ]
            norm = float(torch.stack([part.double().square().sum() for part in direction]).sum().sqrt())
            size = float(torch.stack([weight.double().square().sum() for weight in weights]).sum().sqrt())
            if not (0.0 < norm < float("inf")):
                return torch.zeros(len(loss.phi_spec), dtype=torch.float64)
            nudge = self.settings.nudge * max(size, 1e-12) / norm
            ahead, behind, targets = self._outputs(parts, weights, direction, nudge, batch)
            if not (ahead.isfinite().all() and behind.isfinite().all()):
                return torch.zeros(len(loss.phi_spec), dtype=torch.float64)
            miner = copy.deepcopy(parts.miner)  # miners and losses may remember what they have seen
            mined = () if miner is None else (miner((ahead + behind) / 2, targets),)
            # Phi is compared on the same outputs, so only rounding in float64 is lost in these differences.
            slope = self._slope(loss, ahead, targets, mined) - self._slope(loss, behind, targets, mined)
        return -slope / (2.0 * nudge)

    def _outputs(
        self,
        parts: Parts,
        weights: Sequence[torch.Tensor],
        direction: Sequence[torch.Tensor],
        nudge: float,
        batch: Batch,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Training outputs a nudge ahead and behind along the direction, in float64, and the labels."""
        model, device = parts.model, parts.device
        before = [weight.clone() for weight in weights]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        found = []
        try:
            for sign in (1.0, -1.0):
                for weight, old, way in zip(weights, before, direction):
                    weight.copy_(old + sign * nudge * way)
                with preserved_random_streams():  # the same dropout on both sides
                    found.append(model(batch[0].to(device)).double())
        finally:
            for weight, old in zip(weights, before):
                weight.copy_(old)
            for buffer, old in buffers:  # BatchNorm in train mode has moved its means
                buffer.copy_(old)
        return found[0], found[1], batch[1].to(device)

    def _slope(
        self, loss: Any, outputs: torch.Tensor, targets: torch.Tensor, mined: tuple[Any, ...]
    ) -> torch.Tensor:
        """``[n_params]`` derivative of the loss with respect to Phi, by central differences in the cube."""
        units = to_unit(loss.phi_spec, read_phi(loss))
        trial = _copy(loss)
        remembers = not isinstance(loss, nn.Module) or len(list(loss.buffers())) > 1  # more than phi
        slopes = []
        for index in range(len(units)):
            values, places = [], []
            for way in (self.settings.width, -self.settings.width):
                moved = units.clone()
                moved[index] = (units[index] + way).clamp(0.0, 1.0)
                trial = _copy(loss) if remembers else trial
                trial.set_phi(_like(loss, from_unit(loss.phi_spec, moved)))
                places.append(to_unit(loss.phi_spec, read_phi(trial))[index])
                values.append(float(trial(outputs, targets, *mined)))
            slopes.append((values[0] - values[1]) / float(places[0] - places[1]))
        return torch.tensor(slopes, dtype=torch.float64)


def _copy(loss: Any) -> Any:
    """The loss again, with the same ranges."""
    return copy.deepcopy(loss, {id(loss.phi_spec): loss.phi_spec})


def _like(loss: Any, phi: Sequence[float]) -> torch.Tensor:
    return torch.tensor(phi, dtype=loss.phi.dtype, device=loss.phi.device)


def _preconditioner(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> torch.Tensor | float:
    """What the optimizer divides a gradient by, inverted: Adam's second moments, 1 for others."""
    state = optimizer.state.get(weight, {})
    second = state.get("exp_avg_sq")
    if second is None:
        return 1.0
    group = next(g for g in optimizer.param_groups if any(weight is other for other in g["params"]))
    corrected = second / (1.0 - group["betas"][1] ** float(state["step"]))
    return 1.0 / (corrected.sqrt() + group["eps"])
