"""The drop-in: a loss that adapts its own parameters while a model trains with it."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from . import baselines
from ._arguments import (
    check_parts,
    check_phi_in_range,
    check_settings,
    check_statistics,
    divergence_told,
    metric_value,
    outputs_and_targets,
    usable_offsets,
)
from ._phi import read_phi, read_vector, write_phi
from ._pml import BaseMetricLossFunction
from ._ranks import on_rank_zero, rank, ranks
from ._streams import preserved_random_streams
from .controller import (
    MANY,
    Controller,
    ControllerSettings,
    Learner,
    ManyController,
    Policy,
    check_policy,
    discounted_mean,
    sign_reward,
    summary_of,
)
from .types import AdaptiveLoss, Logger, Metric, Scheme, StepRecord

Mode = Literal["paper", "fixed", "uniform", "random_walk", "random_static"]
_STATE_KEYS = {"mode", "n_params", "beta", "statistics_width", "identities", "phi", "history", "scheme"} | {
    "iterations",
    "dropped",
    "previous_error",
    "errors",
    "seconds",
}


def _on(child: bool, work: Callable[[], Any]) -> Any:
    """Run here for a child, else on rank 0 for all ranks."""
    return work() if child else on_rank_zero(work)


class _Seen(NamedTuple):
    """What a controller step found: metric, error, reward (None: unknown), and whether it can be used."""

    value: float
    error: float
    reward: int | None
    usable: bool
    statistics: torch.Tensor | None = None
    episode: torch.Tensor | None = None


class ALALoss(BaseMetricLossFunction):
    r"""A loss whose parameters follow the validation metric (Adaptive Loss Alignment, Algorithm 1).

    Calls are passed on to the wrapped loss unchanged. Every ``every`` training iterations the metric is
    measured, the sign of its improvement rewards the previous action (Eq. 4 and 5), and the controller moves
    each parameter by -beta, 0 or +beta.

    Parameters
    ----------
    loss
        Any module that fulfils :class:`AdaptiveLoss`.
    metric
        ``metric(outputs, targets) -> float`` with the attribute ``higher_is_better``.
    validate
        ``validate() -> (outputs, targets)`` of the validation set, usually ``training.embed``. Called without
        grad; the global random streams are put back afterwards. Never use the test set.
    total_steps
        Training iterations of the whole run; the parameters stay as they are afterwards.
    every
        Iterations per controller step, the paper's K.
    policy
        Start from this policy (copied) instead of random weights.
    seed
        Of the controller's own random generator.
    mode
        ``"paper"``, or a control: ``"fixed"``, ``"uniform"``, ``"random_walk"``, ``"random_static"``.
    beta
        Step size.
    gamma
        Discount of Eq. 4.
    offsets
        When the metric is measured: iterations before the last of each K, or ``"all"``. Offsets that do
        not fit into ``every`` are left out.
    freeze
        Act by the policy without training it.
    step_on
        ``"forward"``: one call is one iteration. ``"optimizer"``: call :meth:`step` after each optimiser step
        (gradient accumulation, several calls per iteration).
    logger
        A :class:`Logger` or a callable; gets one dict per controller step.
    settings
        How the controller learns.

    Raises
    ------
    TypeError
        If loss, metric, validate, policy or logger lack what is needed; later, if the metric returns anything
        but one number, or the loss statistics that are no tensor of real numbers.
    ValueError
        If a number is out of range, the loss's ``phi`` outside of its ``phi_spec``, the mode unknown, or the
        policy made for another task.
    RuntimeError
        On the other ranks, if ``validate`` or ``statistics`` raised on rank 0.

    Notes
    -----
    *Counting.* A call counts if the module is in training mode, gradients are enabled and the wrapped loss
    returns; under ``eval()`` or ``no_grad()`` this is a plain loss. Call n comes before optimiser step n, so
    what is measured "after iteration n" is measured on entering call n + 1, and that call uses the new
    parameters. With ``step_on="optimizer"`` it happens in :meth:`step`. The first controller step is after
    the first K iterations and has no reward.

    *Failures.* A metric or statistics that are not finite drop the episode: it is counted in ``dropped``,
    gives no reward, and no action is taken until the next controller step. An error in ``validate`` or
    ``metric`` is raised with the state as it was before the call, as a FloatingPointError if it is about
    outputs that are not finite. If the wrapped loss or the logger raises, a controller step that was due has
    been taken and is not taken again: call the loss again, or, with ``step_on="optimizer"``, go on.

    *Processes.* Under torch.distributed rank 0 validates and decides, all ranks apply. Make this object on
    all ranks, pass an unwrapped model to ``validate``, which must not use collectives, and save the state on
    rank 0.

    *Optional attributes of the loss.* ``statistics_width`` (statistics per parameter, else seen at the
    first step), ``parameter_identity`` (True: the policy tells the parameters apart),
    ``standardized_statistics`` (True: they are scale-free already), ``phi_vector`` (the parameters in the
    order of ``phi_spec``, where ``phi`` has another size), ``pairs`` (where in ``phi`` they are, if
    statistics decide that; handed to the other processes).

    *Many parameters.* More than 4,096 are moved by :class:`~ala_metric.controller.ManyController`; ``phi``
    and ``action`` of the records are empty then, and ``summary`` has their mean, spread, moves and the
    values of those that are farthest from where they were when this object was made.

    Attributes
    ----------
    history : list of StepRecord
        One per controller step.
    dropped : int
        Controller steps without a usable metric.

    Examples
    --------
    >>> from ala_metric import losses, metrics
    >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> loss_fn = ALALoss(losses.DistanceMixtureLoss(), metrics.RecallAtK((1,)),
    ...                   validate=lambda: (embeddings, labels), total_steps=10, every=2)
    >>> for _ in range(5):
    ...     value = loss_fn(embeddings, labels)
    >>> [record.step for record in loss_fn.history]
    [2, 4]
    """

    def __init__(
        self,
        loss: AdaptiveLoss,
        metric: Metric,
        validate: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        total_steps: int,
        every: int = 200,
        policy: Policy | None = None,
        seed: int = 0,
        mode: Mode = "paper",
        beta: float = 0.1,
        gamma: float = 0.9,
        offsets: Sequence[int] | Literal["all"] = (0, 5),
        freeze: bool = False,
        step_on: Literal["forward", "optimizer"] = "forward",
        logger: Logger | Callable[[dict[str, Any]], None] | None = None,
        *,
        settings: ControllerSettings | None = None,
    ) -> None:
        check_parts(loss, metric, validate, logger)
        parts = loss.modules() if isinstance(loss, nn.Module) else ()
        if any(isinstance(part, ALALoss) for part in parts):
            raise TypeError("loss is or holds an ALALoss already: give the loss inside, both would move it")
        if len(loss.phi_spec) <= MANY:
            check_phi_in_range(read_phi(loss), loss.phi_spec)
        check_settings(mode, step_on, seed, beta, {"total_steps": total_steps, "every": every})
        if settings is not None and not isinstance(settings, ControllerSettings):
            raise TypeError(f"settings must be ControllerSettings, got {type(settings).__name__}")
        if policy is not None and mode != "paper":
            raise ValueError(f"a policy needs mode='paper', got mode={mode!r}")
        super().__init__(distance=loss.distance if isinstance(loss, BaseMetricLossFunction) else None)
        self.loss: Any = loss
        self.total_steps, self.every, self.seed = total_steps, every, seed
        self.mode, self.beta, self.gamma = mode, float(beta), gamma
        self.offsets = usable_offsets(offsets, every)
        discounted_mean([0.0] * len(self.offsets), self.offsets, gamma)
        self.freeze, self.step_on = freeze, step_on
        settings = settings or ControllerSettings()
        if settings.identity is None:
            settings = replace(settings, identity=bool(getattr(loss, "parameter_identity", False)))
        self.settings = settings
        # Not as attributes of the module: a metric that is a module is no part of this one's state.
        self.__dict__.update(metric=metric, validate=validate, logger=logger)
        self.history: list[StepRecord] = []
        self.dropped = 0
        self._iterations = 0
        self._previous_error: float | None = None
        self._errors: dict[int, float] = {}
        self._seconds = 0.0
        self._seen: _Seen | None = None  # by a child, at the end of its K iterations
        self._child_draws: torch.Generator | None = None
        width = self._known_width()
        if policy is not None:
            width = on_rank_zero(self._found_width) if width is None else width
            check_policy(policy, width, len(self.phi_spec), self.beta)
        self._given_policy = policy
        self.scheme = self._make_scheme(width or 1, policy)
        start = self.scheme.start(read_phi(self.loss))
        write_phi(self.loss, on_rank_zero(lambda: start) if mode == "random_static" else start)
        self._start = read_vector(self.loss).clone() if self._many else None

    @property
    def phi(self) -> torch.Tensor:
        """Parameters of the wrapped loss."""
        return self.loss.phi

    @property
    def phi_vector(self) -> torch.Tensor:
        """Parameters of the wrapped loss in the order of ``phi_spec``."""
        return getattr(self.loss, "phi_vector", self.loss.phi)

    @property
    def phi_spec(self) -> tuple[Any, ...]:
        """Ranges and step rules of the wrapped loss."""
        return self.loss.phi_spec

    @property
    def policy(self) -> Policy | None:
        """The controller's policy, None in a mode without one."""
        return self.scheme.policy if isinstance(self.scheme, Controller) else None

    def set_phi(self, phi: torch.Tensor) -> None:
        """Replace the parameters of the wrapped loss."""
        self.loss.set_phi(phi)

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Validation statistics of the wrapped loss, ``[n_params, s]``."""
        return self.loss.statistics(outputs, targets)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Value of the wrapped loss; adapts first where a controller step is due.

        Parameters
        ----------
        *args, **kwargs
            Those of the wrapped loss.

        Returns
        -------
        torch.Tensor
            What the wrapped loss returns.
        """
        counts = self.step_on == "forward" and self.training and torch.is_grad_enabled()
        if counts:
            self._log(self._adapt(self._iterations))
        value = self.loss(*args, **kwargs)
        self._iterations += counts
        return value

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Loss terms of the wrapped loss in pytorch-metric-learning's dictionary form."""
        return self.loss.compute_loss(*args, **kwargs)

    def step(self) -> None:
        """Tell that the optimiser has made a step (``step_on="optimizer"`` only).

        Raises
        ------
        RuntimeError
            If forward calls are counted instead.
        """
        if self.step_on != "optimizer":
            raise RuntimeError("step() needs step_on='optimizer'; now forward calls are counted")
        record = self._adapt(self._iterations + 1)
        self._iterations += 1
        self._log(record)

    def get_extra_state(self) -> dict[str, Any]:
        """Everything beyond the buffers, part of ``state_dict()``; loads with ``weights_only=True``."""
        policy = self.policy
        return {
            "mode": self.mode,
            "n_params": len(self.phi_spec),
            "beta": self.beta,
            "statistics_width": policy.statistics_width if policy else 0,
            "identities": policy.identities if policy else 0,
            "scheme": self.scheme.state_dict(),
        } | self._progress()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`get_extra_state`; ValueError if it is of another mode, size or step."""
        if not isinstance(state, dict) or not state.keys() >= _STATE_KEYS:
            raise ValueError("this is not the state of an ALALoss")
        for name, mine in (("mode", self.mode), ("n_params", len(self.phi_spec)), ("beta", self.beta)):
            if state[name] != mine:
                raise ValueError(f"the state has {name}={state[name]!r}, this loss has {mine!r}")
        policy = None
        if self.mode == "paper":
            policy = Policy(state["statistics_width"], state["identities"], self.beta)
            check_policy(policy, self._known_width(), len(self.phi_spec), self.beta)
        scheme = self._make_scheme(state["statistics_width"], policy)
        try:
            scheme.load_state_dict(state["scheme"])
            self._go_on(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the state of an ALALoss is damaged: {error!r}") from error
        self.scheme = scheme

    def child_state(self) -> dict[str, Any]:
        """What one of several children has of its own, where all share this loss's learner.

        Returns
        -------
        dict
            Plain data: parameters, history of states and records, the action in flight, and what
            :meth:`end_of_episode` found, the episode included.
        """
        seen: dict[str, Any] = {} if self._seen is None else self._seen._asdict() | {"statistics": None}
        return self._progress() | {"child": self._controller.child_state(), "seen": seen}

    def load_child_state(self, state: dict[str, Any]) -> None:
        """Go on as the child of a :meth:`child_state`; the learner stays as it is.

        Parameters
        ----------
        state
            What :meth:`child_state` returned.
        """
        self._go_on(state)
        self._controller.load_child_state(state["child"])
        self._seen = _Seen(**state["seen"]) if state["seen"] else None

    @contextmanager
    def as_child(self, draws: torch.Generator) -> Iterator[None]:
        """Inside, this is one of several children: it decides in its own process and does not learn.

        Parameters
        ----------
        draws
            Of this child's actions.
        """
        self._child_draws = draws
        try:
            yield
        finally:
            self._child_draws = None

    def end_of_episode(self) -> None:
        """Measure a child after its K iterations and keep what its action has earned, for the learner.

        The next call of the loss, on entering the next K iterations, draws an action and measures nothing.
        Between the two the learner may learn from the episodes of all children.
        """
        begin = time.perf_counter()
        seen = self._look()
        episode = None
        if seen.usable:
            episode = self._controller.observe(seen.statistics, seen.reward)
        self._seen = seen._replace(statistics=None, episode=None if episode is None else episode.row())
        self._seconds += time.perf_counter() - begin

    def settle_width(self) -> None:
        """Fix the width of the policy by a look at the validation set, where the loss does not declare it."""
        if self._known_width() is None and self.mode == "paper" and self._given_policy is None:
            with preserved_random_streams(), torch.no_grad():
                self._fit_width(self.loss.statistics(*self._validated()))

    @property
    def learner(self) -> Learner:
        """The controller's learner; TypeError in a mode without one."""
        return self._controller.learner

    @property
    def episode_size(self) -> tuple[int, int]:
        """Parameters that an episode remembers, and the width of their states."""
        return self._controller.episode_size()

    @property
    def _many(self) -> bool:
        """Whether there are too many parameters for lists and records."""
        return len(self.phi_spec) > MANY

    @property
    def _controller(self) -> Controller:
        if not isinstance(self.scheme, Controller):
            raise TypeError(f"only mode='paper' has a controller, this loss has mode={self.mode!r}")
        return self.scheme

    def _progress(self) -> dict[str, Any]:
        """Parameters, and what was counted and measured so far."""
        return {
            "iterations": self._iterations,
            "dropped": self.dropped,
            "previous_error": self._previous_error,
            "errors": dict(self._errors),
            "seconds": self._seconds,
            "phi": read_vector(self.loss) if self._many else read_phi(self.loss),
            "history": [dict(record) for record in self.history],
        }

    def _go_on(self, state: dict[str, Any]) -> None:
        """Take over the state of :meth:`_progress`, all of it or nothing."""
        iterations, dropped = operator.index(state["iterations"]), operator.index(state["dropped"])
        errors, seconds = dict(state["errors"]), float(state["seconds"])
        history = [StepRecord(**record) for record in state["history"]]
        previous_error = state["previous_error"]
        write_phi(self.loss, state["phi"])
        self._iterations, self.dropped, self.history = iterations, dropped, history
        self._previous_error, self._errors, self._seconds = previous_error, errors, seconds

    def _known_width(self) -> int | None:
        """Statistics per parameter that the loss declares."""
        declared: int | None = getattr(self.loss, "statistics_width", None)
        return declared

    def _found_width(self) -> int:
        """Statistics per parameter that the loss gives for the validation set."""
        with preserved_random_streams(), torch.no_grad():
            return int(self.loss.statistics(*self._validated()).shape[-1])

    def _make_scheme(self, statistics_width: int, policy: Policy | None) -> Scheme:
        """A new scheme of this mode."""
        spec = tuple(self.phi_spec)
        if self.mode == "fixed":
            return baselines.Fixed(spec)
        if self.mode == "uniform":
            return baselines.Uniform(spec)
        if self.mode == "random_walk":
            return baselines.RandomWalk(spec, self.beta, self.seed)
        if self.mode == "random_static":
            return baselines.RandomStatic(spec, self.seed)
        controller = ManyController if self._many else Controller
        return controller(
            spec,
            statistics_width,
            beta=self.beta,
            seed=self.seed,
            policy=policy,
            freeze=self.freeze,
            settings=self.settings,
            standardized=bool(getattr(self.loss, "standardized_statistics", False)),
        )

    def _adapt(self, done: int) -> StepRecord | None:
        """Measure the metric or take a controller step where that is due after ``done`` iterations, once."""
        left = -done % self.every
        if done == 0 or done + left > self.total_steps or (left > 0 and left not in self.offsets):
            return None
        if self.history and self.history[-1].step == done:  # then the loss or the logger raised
            return None
        child = self._child_draws is not None  # the other processes have children of their own
        if left > 0:
            _on(child, lambda: self._measure_between(left))
            return None
        record, self.dropped, placed = _on(child, lambda: self._step_and_place(done))
        if rank() != 0 and not child:
            self._follow(record, placed)
        self.history.append(record)
        return record

    def _log(self, record: StepRecord | None) -> None:
        """Tell the logger of a controller step."""
        if record is not None and self.logger is not None and rank() == 0:
            (self.logger.log if isinstance(self.logger, Logger) else self.logger)(dict(record))

    def _step_and_place(self, done: int) -> tuple[StepRecord, int, dict[str, torch.Tensor]]:
        """A controller step, and what the other ranks need beyond its record."""
        record, dropped = self._controller_step(done)
        placed = {}
        if ranks() > 1:
            if self._many:
                placed["phi"] = read_vector(self.loss)
            if (
                getattr(self.loss, "pairs", None) is not None
            ):  # where the actions are, which statistics decide
                placed["pairs"] = self.loss.pairs.cpu()
        return record, dropped, placed

    def _follow(self, record: StepRecord, placed: dict[str, torch.Tensor]) -> None:
        """Take over what rank 0 did."""
        if "pairs" in placed:
            self.loss.pairs = placed["pairs"].to(self.loss.phi.device)
        write_phi(self.loss, placed.get("phi", record.phi))

    def _measure_between(self, offset: int) -> None:
        """Keep the error of ``offset`` iterations before a controller step."""
        begin = time.perf_counter()
        self._errors[offset] = self._evaluate(with_statistics=False)[1]
        self._seconds += time.perf_counter() - begin

    def _controller_step(self, done: int) -> tuple[StepRecord, int]:
        """Measure, reward the previous action and act; the record and the number of dropped steps."""
        begin = time.perf_counter()
        child = self._seen is not None
        value, error, reward, usable, statistics, _ = self._seen or self._look()
        self._seen = None
        many = self._many
        phi: Any = read_vector(self.loss) if many else read_phi(self.loss)
        entropy = None
        action: Any = () if many else (0.0,) * len(phi)
        if usable:
            progress = done / self.total_steps
            if child:
                decision = self._controller.act(phi, progress, self._child_draws)
            else:
                self._fit_width(statistics)
                decision = self.scheme.step(phi, statistics, reward, progress)
            write_phi(self.loss, decision.phi)
            entropy, action = decision.entropy, decision.action
            phi = decision.phi if many else read_phi(self.loss)
        else:
            self.scheme.drop()
        seconds = self._seconds + time.perf_counter() - begin
        self._previous_error = error if usable else None
        self._errors, self._seconds = {}, 0.0
        summary = None
        if self._start is not None:
            summary = summary_of(torch.as_tensor(phi), action, self._start, self.phi_spec)
            phi, action = (), ()
        record = StepRecord(done, value, error, reward, action, tuple(phi), entropy, seconds, summary)
        return record, self.dropped + (not usable)

    def _look(self) -> _Seen:
        """Metric, error and statistics now, and the reward of the previous action."""
        value, last_error, statistics = self._evaluate(self.scheme.uses_statistics)
        errors = dict(self._errors)
        if 0 in self.offsets or not errors:
            errors[0] = last_error
        error = discounted_mean(list(errors.values()), list(errors), self.gamma)
        usable = math.isfinite(error) and math.isfinite(value)
        if statistics is not None:
            usable = usable and bool(statistics.isfinite().all())
        known = usable and self._previous_error is not None
        reward = sign_reward(self._previous_error or 0.0, error) if known else None
        return _Seen(value, error, reward, usable, statistics)

    def _validated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and targets of the validation set."""
        return outputs_and_targets(self.validate())

    def _evaluate(self, with_statistics: bool) -> tuple[float, float, torch.Tensor | None]:
        """Metric, error and (if asked for and the metric is finite) statistics of the validation set."""
        with preserved_random_streams(), torch.no_grad():
            outputs, targets = self._validated()
            with divergence_told(outputs, "the validation outputs"):
                value = metric_value(self.metric(outputs, targets))
                with_statistics = with_statistics and math.isfinite(value)
                statistics = self.loss.statistics(outputs, targets) if with_statistics else None
        if statistics is not None:
            check_statistics(statistics)
        return value, -value if self.metric.higher_is_better else value, statistics

    def _fit_width(self, statistics: torch.Tensor | None) -> None:
        """Make the policy anew if the first statistics are wider than assumed."""
        if statistics is None or not isinstance(self.scheme, Controller) or self._given_policy is not None:
            return
        first = self.scheme.history.count == 0
        if first and statistics.ndim == 2 and statistics.shape[1] != self.scheme.policy.statistics_width:
            self.scheme = self._make_scheme(statistics.shape[1], None)
