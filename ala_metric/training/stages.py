"""One driver for every mode with children: arms train a stage, are measured, and a strategy goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .._phi import read_phi, write_phi
from ..controller.selection import ranking, relative_rewards
from .arm import Arm, ArmRecord, Branch, StageRecord, Strategy
from .batches import SharedBatches
from .hypergradient import Hypergradient
from .measure import Measure
from .meter import Meter
from .paper import PaperChildren
from .parts import Parts
from .processes import Processes
from .stacked import Stacked
from .store import Store


class Stopped(Exception):
    """A signal asked the run to stop between two steps or before a validation."""


@dataclass
class Stages:
    """Trains the arms of a strategy, stage by stage.

    Every arm of a stage starts from the snapshot of its parent and sees the same batches. One arm trains at a
    time, in the one model that the user has given; the others wait as snapshots. The state of the whole is
    the list of arms and where they stand, so a checkpoint can be taken after any step.

    Parameters
    ----------
    parts
        What a step trains.
    loss
        The adaptive loss whose parameters the arms differ in.
    strategy
        Which arms train, and which go on.
    batches
        Batches by step.
    measure, final_measure
        Validation at the end of a stage, and of the last.
    meter
        Counts the compute of this process.
    processes
        Among which the arms are divided.
    store
        Checkpoints.
    hypergradient
        Moves the parameters of arms that ask for it.
    paper
        The strategy itself, where its arms share a learner and the loss moves its own parameters.
    on_step
        Called as ``on_step(steps of all arms, loss)``.
    stopping
        Asked before each step and each validation whether the run shall stop.
    vectorised
        Train the arms of a stage at once.
    """

    parts: Parts
    loss: Any
    strategy: Strategy
    batches: SharedBatches
    measure: Measure
    final_measure: Measure
    meter: Meter
    processes: Processes
    store: Store
    hypergradient: Hypergradient | None = None
    paper: PaperChildren | None = None
    on_step: Callable[[int, float], None] | None = None
    stopping: Callable[[], bool] = lambda: False
    vectorised: bool = False

    def __post_init__(self) -> None:
        self.stage = 0
        self.numbers = 0
        self.arms: list[Arm] = []
        self.records: list[StageRecord] = []
        self.start: dict[str, Any] = {}
        self._live: Arm | None = None
        self._together: tuple[Stacked, list[Arm]] | None = None

    def begin(self) -> None:
        """Make the arms of the first stage."""
        self.start = self.parts.snapshot()
        branches = self.strategy.first(tuple(read_phi(self.loss)))
        self.arms = [self._arm(branch, None) for branch in branches]

    def run(self) -> Arm:
        """Train all stages that are left; the winner, whose weights are in the model."""
        if self.stage == 0:  # a process that had no checkpoint of its own may differ in its initial weights
            if self.parts.team is not None:
                self.start = self.parts.team.share(self.start, owner=0)
            self.start = self.processes.share(self.start, owner=0)
        while self.stage < len(self.strategy.ends):
            if self.vectorised:
                self._train_together()
            for index, arm in enumerate(self.arms):
                if self.processes.trains(index):
                    self._train(arm)
            self._close_stage()
        winner = self.arms[0]
        self._load(winner)
        self._live = None
        return winner

    def _arm(self, branch: Branch, parent: Arm | None) -> Arm:
        """A branch as an arm that has not trained yet."""
        arm = Arm(self.numbers, branch.phi, branch.source, moving=branch.moving)
        self.numbers += 1
        if parent is not None:
            arm.parent, arm.step, arm.snapshot = parent.number, parent.step, parent.snapshot
            arm.losses, arm.phi_history = list(parent.losses), list(parent.phi_history)
            arm.statistics = parent.statistics
        return arm

    def _load(self, arm: Arm) -> None:
        """Bring an arm's weights, parameters and random streams into the parts."""
        self.parts.restore(self._snapshot_of(arm))
        write_phi(self.loss, arm.phi)
        arm.follow(read_phi(self.loss))
        self._live = arm

    def _snapshot_of(self, arm: Arm) -> dict[str, Any]:
        """Where an arm stands."""
        if arm.snapshot is None and arm.step > 0:
            raise RuntimeError(
                f"the weights of arm {arm.number} were not kept: more arms live than keeps() says"
            )
        return arm.snapshot or self.start

    def _train_together(self) -> None:
        """Train the arms of this process, those at the same step at once, to the end of the stage."""
        end = self.strategy.ends[self.stage]
        mine = [arm for index, arm in enumerate(self.arms) if self.processes.trains(index) and not arm.failed]
        for step in sorted({arm.step for arm in mine if arm.step < end}):
            arms = [arm for arm in mine if arm.step == step]
            if len(arms) > 1:  # one alone trains as it is
                self._train_stack(arms, step, end)

    def _train_stack(self, arms: list[Arm], step: int, end: int) -> None:
        """Train arms at once; what a step of each changes is in their snapshots afterwards."""
        stack = Stacked(self.parts, [self._snapshot_of(arm) for arm in arms], [arm.phi for arm in arms])
        for arm, loss in zip(arms, stack.losses):
            arm.follow(read_phi(loss))
        self._together = stack, arms
        with stack:
            for inputs, labels in self.batches.between(step, end):
                self._before_a_step()
                for index, arm in enumerate(arms):
                    if arm.moving and self.hypergradient is not None and self.hypergradient.due(arm.step):
                        with stack.returned(index):
                            self._move(arm, inputs, labels)
                        write_phi(stack.losses[index], arm.phi)
                begin = time.perf_counter()
                values = stack.step(arms[0].step + 1, inputs, labels)
                self.meter.training_seconds += time.perf_counter() - begin
                for arm, value in zip(arms, values):
                    if isinstance(value, Exception):
                        arm.failed, arm.snapshot = str(value) or type(value).__name__, None
                    else:
                        self._stepped(arm, value, len(labels))
                arms[:] = [arm for arm in arms if not arm.failed]
                if not arms:
                    break
        for index, arm in enumerate(arms):
            arm.snapshot = stack.snapshot(index)
        self._together = None

    def _train(self, arm: Arm) -> None:
        """Train an arm to the end of the stage and measure it."""
        end = self.strategy.ends[self.stage]
        measured = self.strategy.measured(self.stage)
        if arm.failed or (arm.step == end and (arm.score is not None or not measured)):
            return
        self._load(arm)
        if self.paper is not None:
            self.paper.enter(arm)
        try:
            for inputs, labels in self.batches.between(arm.step, end):
                self._before_a_step()
                if arm.moving and self.hypergradient is not None and self.hypergradient.due(arm.step):
                    self._move(arm, inputs, labels)
                self._step(arm, inputs, labels)
            if measured:
                self._stop_if_asked()  # a validation may take long
                self._measure(arm)
            elif self.paper is not None:
                self.paper.leave()
        except (FloatingPointError, ValueError, RuntimeError) as error:
            # A diverged child is no reason to stop its siblings; anything else is.
            if not isinstance(error, FloatingPointError) and self._finite():
                raise
            arm.failed = str(error) or type(error).__name__
        arm.snapshot = None if arm.failed else self.parts.snapshot()
        self._live = None
        mine = [a for i, a in enumerate(self.arms) if self.processes.trains(i) and a.score is not None]
        for index in ranking([a.score for a in mine])[self.strategy.keeps(self.stage) :]:
            mine[index].snapshot = None

    def _step(self, arm: Arm, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """One training step of the arm in the parts."""
        begin = time.perf_counter()
        value = self.parts.step(arm.step + 1, inputs, labels)
        if self.paper is not None:  # before the losses: the loss moved on entering this step
            arm.follow(read_phi(self.loss))
        self.meter.training_seconds += time.perf_counter() - begin
        self._stepped(arm, value, len(labels))

    def _stepped(self, arm: Arm, value: float, items: int) -> None:
        """Note a step that an arm has done."""
        arm.losses.append(value)
        arm.step += 1
        self.meter.training_steps += 1
        self.meter.training_items += items
        if self.on_step is not None:
            self.on_step(self.meter.training_steps, value)

    def _move(self, arm: Arm, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Let a hypergradient move the arm's parameters."""
        assert self.hypergradient is not None
        phi = self.hypergradient.step(
            self.parts, self.loss, arm.step, (inputs, labels), arm.memory, self.meter
        )
        write_phi(self.loss, phi)
        arm.follow(read_phi(self.loss))

    def _measure(self, arm: Arm) -> None:
        """Validate the arm in the parts."""
        last = self.stage == len(self.strategy.ends) - 1
        metric, score, arm.statistics = self._measurer()(self.strategy.wants_statistics and not last)
        if not math.isfinite(score):
            raise FloatingPointError(f"the metric is {metric}")
        arm.metric, arm.score = metric, score

    def _measurer(self) -> Measure:
        """What validates the arms of this stage."""
        return self.final_measure if self.stage == len(self.strategy.ends) - 1 else self.measure

    def _finite(self) -> bool:
        """Whether all weights of the model are numbers."""
        return all(bool(value.isfinite().all()) for value in self.parts.model.parameters())

    def _close_stage(self) -> None:
        """Compare the arms of the stage and make those of the next."""
        if self.processes.size > 1:
            self.store.save(self.state_dict(), before_exchange=True)
            self._exchange_scores()
            self._exchange_statistics()
        scores = [None if arm.failed else arm.score for arm in self.arms]
        if all(arm.failed for arm in self.arms):
            raise FloatingPointError(
                f"every arm failed in stage {self.stage}; the first because {self.arms[0].failed}"
            )
        if self.paper is not None:
            self.paper.learn(self.arms, self.processes)
        branches = self.strategy.after(self.stage, self.arms)
        rewards = relative_rewards(scores)
        living = {branch.parent for branch in branches}
        end = self.strategy.ends[self.stage]
        rows = tuple(
            ArmRecord(
                arm.number, arm.parent, arm.source, arm.phi, arm.metric, reward, i in living, arm.failed
            )
            for i, (arm, reward) in enumerate(zip(self.arms, rewards))
        )
        dropped = sum(bool(arm.failed) for arm in self.arms)
        start = self.strategy.ends[self.stage - 1] if self.stage else 0
        validation = self._measurer().part if self.strategy.measured(self.stage) else ""
        self.records.append(
            StageRecord(self.stage, start, end, rows, dropped, self.meter.overhead, validation)
        )
        self._exchange_weights(branches)
        before = self.arms
        self.arms = [
            self._arm(branch, None if branch.parent is None else before[branch.parent]) for branch in branches
        ]
        self.stage += 1
        self.batches.keep_from(end)
        if self.processes.size > 1:
            # Nobody may run ahead by a whole stage of somebody who would wake up before this exchange.
            self.store.save(self.state_dict())
            self.processes.wait()

    def _exchange_scores(self) -> None:
        """Let every process know what the arms of the others have reached."""
        count = len(self.loss.phi_spec)
        table = torch.zeros(len(self.arms), 3 + count, dtype=torch.float64)
        for index, arm in enumerate(self.arms):
            if self.processes.trains(index):
                known = arm.score is not None
                table[index, 0] = -1.0 if arm.failed else float(known)
                table[index, 1] = arm.metric if arm.metric is not None else 0.0
                table[index, 2] = arm.score if arm.score is not None else 0.0
                table[index, 3:] = torch.tensor(arm.phi, dtype=torch.float64)
        for index, (arm, row) in enumerate(zip(self.arms, self.processes.rows(table).tolist())):
            if self.processes.trains(index):
                continue
            if row[0] < 0:
                arm.failed = "dropped by its process"
            elif row[0] > 0:
                arm.metric, arm.score = row[1], row[2]
            arm.phi = tuple(row[3:])
            arm.step = self.strategy.ends[self.stage]

    def _exchange_statistics(self) -> None:
        """Let every process see the statistics of the best arm, where the strategy decides by them."""
        measured = self.strategy.wants_statistics and self.strategy.measured(self.stage)
        best = ranking([None if arm.failed else arm.score for arm in self.arms])[:1]
        if not measured or not best or self.stage == len(self.strategy.ends) - 1:
            return
        arm, owner = self.arms[best[0]], self.processes.owner(best[0])
        arm.statistics = self.processes.share({"statistics": arm.statistics}, owner)["statistics"]

    def _exchange_weights(self, branches: list[Branch]) -> None:
        """Give every process the snapshots that another than their owner needs."""
        if self.processes.size == 1:
            return
        last = self.stage == len(self.strategy.ends) - 1
        for index, arm in enumerate(self.arms):
            owner = self.processes.owner(index)
            heirs = {self.processes.owner(i) for i, branch in enumerate(branches) if branch.parent == index}
            if not heirs or (heirs == {owner} and not last):
                if owner != self.processes.rank:
                    arm.snapshot = None
                continue
            state = self.processes.share(
                {"snapshot": arm.snapshot, "losses": torch.tensor(arm.losses, dtype=torch.float64)}
                | {"phi_history": [[step, list(phi)] for step, phi in arm.phi_history]},
                owner,
            )
            if owner != self.processes.rank:
                arm.snapshot, arm.losses = state["snapshot"], state["losses"].tolist()
                arm.phi_history = [(int(step), tuple(phi)) for step, phi in state["phi_history"]]

    def _before_a_step(self) -> None:
        """Save where it is due, and stop where that is asked for."""
        self._stop_if_asked()
        self.store.save_if_due(self.meter.training_steps, self.state_dict)

    def _stop_if_asked(self) -> None:
        if self.stopping():
            raise Stopped

    def state_dict(self) -> dict[str, Any]:
        """Where everything stands, as plain data."""
        if self._live is not None:
            self._live.snapshot = self.parts.snapshot()
        if self._together is not None:
            stack, arms = self._together
            for index, arm in enumerate(arms):
                arm.snapshot = stack.snapshot(index)
        return {
            "stage": self.stage,
            "numbers": self.numbers,
            "start": self.start if self.stage == 0 else {},
            "arms": [arm.state_dict() for arm in self.arms],
            "records": [_plain(record) for record in self.records],
            "strategy": self.strategy.state_dict(),
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.stage, self.numbers, self.start = state["stage"], state["numbers"], state["start"]
        self.arms = [Arm.from_state(arm) for arm in state["arms"]]
        self.records = [
            StageRecord(**{**record, "arms": tuple(ArmRecord(**row) for row in record["arms"])})
            for record in state["records"]
        ]
        self.strategy.load_state_dict(state["strategy"])
        self.meter.load_state_dict(state["meter"])


def _plain(record: StageRecord) -> dict[str, Any]:
    return {**vars(record), "arms": [dict(vars(row)) for row in record.arms]}
