"""The paper's children: own weights, parameters, history and draws; one policy and one baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..ala_loss import ALALoss
from ..controller import Episode
from ..controller.selection import ranking
from .arm import Arm, Branch, Phi
from .hidden import hidden_state, restore_hidden
from .processes import Processes


class PaperChildren:
    """Children that share one controller (Sec. 5): all act by one policy, which learns from all of them.

    They begin with the same weights and see the same batches; what differs is what the policy draws, by a
    stream of each child's own. Every child trains K steps and is measured; then the episodes of all, in the
    order of the children, are learned from, and only then does the first of them act again (Algorithm 1 with
    "the episodes from all the child models"). So it does not matter who trains where: each process of
    torch.distributed trains some children and learns from all episodes, and the controllers stay alike. A
    child that diverges takes its action in flight with it, and nothing else. The best child on the
    validation set wins at the end.

    Parameters
    ----------
    loss_fn
        The loss in paper mode; holds the shared learner.
    children
        How many.
    total_steps
        Of the run.
    """

    wants_statistics = False

    def __init__(self, loss_fn: ALALoss, children: int, total_steps: int) -> None:
        loss_fn.settle_width()
        self.loss_fn, self.children = loss_fn, children
        self.own = OwnState(loss_fn)
        self.seed = loss_fn.seed % 2**64
        self.ends = tuple(dict.fromkeys([*range(loss_fn.every, total_steps, loss_fn.every), total_steps]))

    def first(self, phi: Phi) -> list[Branch]:
        """All children."""
        return [Branch(phi, "paper") for _ in range(self.children)]

    def measured(self, stage: int) -> bool:
        """At the end only; on the way the loss measures itself."""
        return stage + 1 == len(self.ends)

    def keeps(self, stage: int) -> int:
        """All of them, and the winner at the end."""
        return 1 if self.measured(stage) else self.children

    def after(self, stage: int, arms: Sequence[Arm]) -> list[Branch]:
        """All that have not diverged; the best at the end."""
        living = [index for index, arm in enumerate(arms) if not arm.failed]
        if self.measured(stage):
            living = ranking([None if arm.failed else arm.score for arm in arms])[:1]
        return [Branch(arms[index].phi, "paper", index) for index in living]

    def enter(self, arm: Arm) -> None:
        """An arm begins or goes on with its stage: give it its stream of draws."""
        seeds = np.random.SeedSequence((self.seed, arm.number))
        self.own.draws.manual_seed(int(seeds.generate_state(1)[0]))

    def leave(self) -> None:
        """The arm in the parts has done the K steps of a stage that is not the last: measure it."""
        self.loss_fn.end_of_episode()

    def learn(self, arms: Sequence[Arm], processes: Processes) -> None:
        """Learn from what the arms of a stage have earned, in their order; alike in every process."""
        size = self.loss_fn.episode_size
        table = torch.zeros(len(arms), 1 + sum(Episode.row_parts(*size)), dtype=torch.float64)
        for index, arm in enumerate(arms):
            if processes.trains(index) and arm.snapshot is not None:
                episode = arm.snapshot["loss"]["child"]["seen"].get("episode")
                if episode is not None:
                    table[index, 0], table[index, 1:] = 1.0, episode
        for row in processes.rows(table):
            if row[0]:
                self.loss_fn.learner.learn(Episode.of_row(row[1:], *size))

    def state_dict(self) -> dict[str, Any]:
        """The shared learner, and the seed of the children's draws."""
        return {"learner": self.loss_fn.learner.state_dict(), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.loss_fn.learner.load_state_dict(state["learner"])
        self.seed = state["seed"]


class OwnState:
    """What of a loss in paper mode belongs to one child, as the loss's part of a snapshot."""

    def __init__(self, loss_fn: ALALoss) -> None:
        self.loss_fn = loss_fn
        self.draws = torch.Generator(device="cpu")

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Value of the loss."""
        with self.loss_fn.as_child(self.draws):
            return self.loss_fn(*args, **keywords)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped loss's tensors, and this child's history."""
        own = self.loss_fn.loss.state_dict() if hasattr(self.loss_fn.loss, "state_dict") else {}
        hidden = hidden_state(self.loss_fn.loss)
        return {"loss": own, "hidden": hidden, "child": self.loss_fn.child_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring back a child."""
        if hasattr(self.loss_fn.loss, "load_state_dict"):
            self.loss_fn.loss.load_state_dict(state["loss"])
        restore_hidden(self.loss_fn.loss, state.get("hidden", {}))
        self.loss_fn.load_child_state(state["child"])
