"""Learning to teach: a policy decides which samples of a batch the model learns from (L2T of Table 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._streams import preserved_random_streams
from ..types import Metric
from ._batch import StepCounter, check_count, checked, mean

HIDDEN = 12
FEATURES = 6
KEEP_AT_FIRST = 2.0  # bias of the last layer: a new teacher keeps sigmoid(2) = 88 % of the samples


class LearningToTeach(StepCounter):
    """Cross-entropy over the samples that a teacher keeps; the teacher is rewarded by a validation metric.

    ``loss = sum_i a_i l_i / sum_i a_i`` with ``a_i ~ Bernoulli(sigmoid(g(s_i)))`` (Fan et al. 2018, Sec.
    4.1). g has one hidden layer of 12 tanh units. The state s_i holds the progress of the run, the moving
    average of the training loss, the last validation error, and of the sample its loss (relative to that
    average), the probability of its target and its margin over the best other class.

    The publication trains the teacher over 50 complete runs and rewards it at the end of each. Here it is
    trained within one run, as the paper's controller is: every ``every`` steps the sign of the metric's
    improvement rewards the choices since the last time (REINFORCE with a moving baseline). Pass ``teacher``
    on to further runs to train it over several.

    Parameters
    ----------
    metric
        ``metric(logits, targets) -> float``.
    validate
        ``validate() -> (logits, targets)`` of the validation set.
    total_steps
        Training steps of the whole run.
    every
        Training steps between two rewards.
    teacher
        ``(state [N, 6]) -> [N, 1]`` to start from (copied); None makes a new one.
    freeze
        Choose without learning.
    learning_rate
        Of Adam on the teacher.
    seed
        Of the teacher's weights and choices; no global random stream is touched.

    Raises
    ------
    ValueError
        If a number is out of range; if a shape is wrong or a target out of range.

    Examples
    --------
    >>> logits, targets = torch.randn(8, 3), torch.arange(8) % 3
    >>> error = lambda logits, targets: float((logits.argmax(1) != targets).double().mean())
    >>> error.name, error.higher_is_better = "error", False
    >>> loss_fn = LearningToTeach(error, lambda: (logits, targets), total_steps=4, every=2)
    >>> values = [loss_fn(logits, targets).item() for _ in range(4)]
    >>> loss_fn.validations
    1
    """

    metric: Metric
    validate: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    teacher: nn.Module

    def __init__(
        self,
        metric: Metric,
        validate: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        total_steps: int,
        every: int = 200,
        teacher: nn.Module | None = None,
        freeze: bool = False,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.total_steps = check_count("total_steps", total_steps)
        self.every = check_count("every", every)
        self.freeze = freeze
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        teacher = _new_teacher(self.generator) if teacher is None else copy.deepcopy(teacher)
        # Not a submodule: the optimizer of the model has no business with the teacher's weights.
        self.__dict__.update(metric=metric, validate=validate, teacher=teacher)
        self.optimizer = torch.optim.Adam(teacher.parameters(), lr=learning_rate)
        self.validations = 0
        self._average_loss: float | None = None
        self._error: float | None = None
        self._baseline = 0.0
        self._choices: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of the kept samples, for logits ``[B, C]`` and targets ``[B]``."""
        logits, targets = checked(logits, targets)
        if logits.shape[1] < 2:
            raise ValueError(f"logits must be of at least 2 classes, got {logits.shape[1]}")
        losses = F.cross_entropy(logits, targets, reduction="none")
        if not self.is_training_call() or len(losses) == 0:
            return mean(losses)
        done = int(self.steps)
        if done and done % self.every == 0:
            self._reward()
        states = self._states(logits.detach(), targets, losses.detach(), done)
        with torch.no_grad():
            keep = torch.rand(len(states), generator=self.generator) < self.teacher(states).sigmoid()[:, 0]
        self._choices.append((states, keep))
        self.steps += 1
        chosen = keep.to(losses.device)
        return mean(losses[chosen]) if bool(keep.any()) else losses.sum() * 0.0

    def _states(
        self, logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, done: int
    ) -> torch.Tensor:
        """``[B, 6]`` on the CPU, each entry of size 1."""
        now = float(losses.mean())
        before = self._average_loss
        self._average_loss = now if before is None else 0.99 * before + 0.01 * now
        chance = math.log(logits.shape[1])
        probability = logits.softmax(1)
        own = probability.gather(1, targets[:, None])[:, 0]
        other = probability.scatter(1, targets[:, None], 0.0).amax(1)
        scale = max(self._average_loss, 1e-6)
        common = torch.tensor([done / self.total_steps, self._average_loss / chance, self._last_error()])
        sample = torch.stack(((losses / scale).clamp(max=10.0), own, own - other), 1).cpu().float()
        return torch.cat((common.expand(len(sample), 3), sample), 1)

    def _last_error(self) -> float:
        return 1.0 if self._error is None else min(max(self._error, -10.0), 10.0)

    def _reward(self) -> None:
        """Measure, reward the choices since the last time, and forget them."""
        with preserved_random_streams(), torch.no_grad():
            outputs, labels = self.validate()
            value = float(self.metric(outputs, labels))
        self.validations += 1
        error = -value if self.metric.higher_is_better else value
        before, self._error = self._error, error if math.isfinite(error) else None
        choices, self._choices = self._choices, []
        if before is None or self._error is None:
            return
        reward = float((before > error) - (before < error))
        advantage = reward - self._baseline
        self._baseline = 0.9 * self._baseline + 0.1 * reward
        if self.freeze or not choices:
            return
        states = torch.cat([part for part, _ in choices])
        keep = torch.cat([part for _, part in choices])
        with torch.enable_grad():
            score = self.teacher(states)[:, 0]
            log_probability = -F.binary_cross_entropy_with_logits(score, keep.float())
            self.optimizer.zero_grad()
            (-advantage * log_probability).backward()
        self.optimizer.step()

    def get_extra_state(self) -> dict[str, Any]:
        """Teacher, its optimizer, random stream and memory."""
        return {
            "teacher": {name: value.clone() for name, value in self.teacher.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "numbers": [self.validations, self._average_loss, self._error, self._baseline],
            "choices": [[states.clone(), keep.clone()] for states, keep in self._choices],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`get_extra_state`."""
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"].cpu())
        self.validations, self._average_loss, self._error, self._baseline = state["numbers"]
        self._choices = [(states.cpu(), keep.cpu()) for states, keep in state["choices"]]


def _new_teacher(generator: torch.Generator) -> nn.Sequential:
    """The publication's teacher, at first keeping most samples."""
    first, last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 1)
    with torch.no_grad():
        for layer in (first, last):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
        last.bias.fill_(KEEP_AT_FIRST)
    return nn.Sequential(first, nn.Tanh(), last)
