"""The paper's children: own weights, parameters and history; one policy and one baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ala_loss import ALALoss
from ..controller.selection import ranking
from .arm import Arm, Branch, Phi


class PaperChildren:
    """Children that share one controller (Sec. 5): each trains K steps in turn, all learn from each.

    They begin with the same weights and see the same batches; what differs is what the policy draws. The best
    of them on the validation set wins at the end.

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

    def state_dict(self) -> dict[str, Any]:
        """The shared learner."""
        return {"learner": self.loss_fn.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.loss_fn.learner.load_state_dict(state["learner"])


class OwnState:
    """What of a loss in paper mode belongs to one child, as the loss's part of a snapshot."""

    def __init__(self, loss_fn: ALALoss) -> None:
        self.loss_fn = loss_fn

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Value of the loss."""
        return self.loss_fn(*args, **keywords)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped loss's tensors, and this child's history."""
        own = self.loss_fn.loss.state_dict() if hasattr(self.loss_fn.loss, "state_dict") else {}
        return {"loss": own, "child": self.loss_fn.child_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring back a child."""
        if hasattr(self.loss_fn.loss, "load_state_dict"):
            self.loss_fn.loss.load_state_dict(state["loss"])
        self.loss_fn.load_child_state(state["child"])
