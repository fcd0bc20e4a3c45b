"""The rows of the study: what each trains, and which tasks it applies to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_metric_learning import losses as pml

from .effects import effects
from .races import guarded, paired, race
from .ranks import ranks
from .tasks import Problem, Task, joined
from .trial import Trial, history_of, phi_of, prior_draws

Given = Mapping[str, dict[str, Any]]
Run = Callable[[Task, Problem, int, Given], dict[str, Any]]
INTERVALS = (10, 40, 200)  # K of the diagnosis
STATIC = 4  # draws: as many trainings as a race costs
SURROGATE_SCALE = 10.0  # of the softmax over squared distances of unit vectors


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Parameters
    ----------
    name
        Used on the command line and in files.
    title
        For the tables.
    run
        Trains the cell of a task and seed.
    needs
        Rows of the same task and seed whose results it is given.
    kind
        Tasks it applies to: ``"any"``, ``"mixture"``, ``"embedding"``, ``"classification"``, ``"surrogate"``.
    shared
        The adaptive loss plays no part: tasks with the same data, network and batches share the cell.
    """

    name: str
    title: str
    run: Run
    needs: tuple[str, ...] = ()
    kind: str = "any"
    shared: bool = False

    def applies(self, task: Task) -> bool:
        """Whether the task has this row."""
        embeds = task.loss != "correlation"
        return {
            "any": True,
            "mixture": task.loss == "mixture",
            "embedding": embeds,
            "classification": not embeds,
            "surrogate": task.variant != "many",
        }[self.kind]

    def owner(self, task: Task) -> str:
        """Name of the task that trains the cell."""
        return task.base if self.shared and task.base else task.name


def fixed(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
    """The loss as it comes."""
    trial = Trial(task, problem, seed)
    loss_fn = trial.adaptive()
    trial.fit(loss_fn.loss)
    return trial.outcome(1.0, phi=phi_of(loss_fn))


def fixed_on_both(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
    """The loss as it comes, trained on training and validation images."""
    trial = Trial(task, problem, seed)
    trial.fit(trial.adaptive().loss, images=joined(problem.train, problem.validation))
    return trial.outcome(1.0)


def scheme(mode: str) -> Run:
    """A control that looks at no data: its validation passes only draw the curve and are not charged."""

    def run(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        trial = Trial(task, problem, seed)
        loss_fn = trial.adaptive(mode)
        trial.fit(loss_fn)
        return trial.outcome(1.0, phi=phi_of(loss_fn), history=history_of(loss_fn))

    return run


def static(number: int) -> Run:
    """One random draw that stays."""

    def run(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        phi = prior_draws(task, problem, seed, number + 1)[number]
        return at_phi(task, problem, seed, phi)

    return run


def at_phi(task: Task, problem: Problem, seed: int, phi: Any) -> dict[str, Any]:
    """The loss with given parameters that stay."""
    trial = Trial(task, problem, seed)
    trial.fit(trial.adaptive(phi=phi).loss)
    return trial.outcome(1.0, phi=list(phi))


def retrained(source: str, which: str) -> Run:
    """Another row's final or time-averaged parameters, static from the start; finding them is paid for."""

    def run(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        found = at_phi(task, problem, seed, given[source][which])
        return found | {"compute": found["compute"] + given[source]["compute"]}

    return run


def published(children: int = 1, every: int | None = None) -> Run:
    """The paper's controller; of several children that share it the best on validation is tested."""

    def run(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        trial = Trial(task, problem, seed)
        loss_fn = trial.adaptive("paper", **({} if every is None else {"every": every}))
        result = trial.fit(loss_fn, mode="paper", children=children)
        return trial.outcome(
            result.compute.in_units_of(task.steps), phi=list(result.phi), history=history_of(loss_fn)
        )

    return run


def with_loss(make: Callable[[], Any], miner: str | None = "none") -> Run:
    """A loss of pytorch-metric-learning with its defaults; ``miner=None`` is the task's."""

    def run(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        trial = Trial(task, problem, seed, miner=miner)
        loss_fn = make()
        if parameters := list(loss_fn.parameters()):  # such as the learnt boundary of the margin loss
            trial.optimizer.add_param_group({"params": parameters})
        trial.fit(loss_fn)
        return trial.outcome(1.0)

    return run


def longer(times: int, run: Run) -> Run:
    """The same training for ``times`` T steps: the control of the rows with children at equal compute."""

    def run_longer(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
        found = run(replace(task, steps=times * task.steps), problem, seed, given)
        return found | {name: times * found[name] for name in ("compute", "pass_cost")}

    return run_longer


def inverse_frequency(task: Task, problem: Problem, seed: int, given: Given) -> dict[str, Any]:
    """Cross-entropy with classes weighted by the inverse of their frequency."""
    count = torch.bincount(problem.train.labels, minlength=problem.classes or 0).float()
    trial = Trial(task, problem, seed)
    trial.fit(torch.nn.CrossEntropyLoss(weight=count.mean() / count))
    return trial.outcome(1.0)


STATIC_NAMES = tuple(f"static-{number + 1}" for number in range(STATIC))
PML = (
    ("triplet", "PML Triplet", pml.TripletMarginLoss),
    ("margin", "PML Margin", pml.MarginLoss),
    ("multisimilarity", "PML MultiSimilarity", pml.MultiSimilarityLoss),
    ("contrastive", "PML Contrastive", pml.ContrastiveLoss),
    ("nca", "PML NCA", pml.NCALoss),
)
FRAMEWORKS = tuple(
    Row(f"{name}-{miner}", f"{title}, {words} mining", with_loss(loss, miner), kind="embedding", shared=True)
    for name, title, loss in (
        ("triplet", "PML Triplet", pml.TripletMarginLoss),
        ("margin", "PML Margin", pml.MarginLoss),
    )
    for miner, words in (("semihard", "semi-hard"), ("distance", "distance-weighted"))
)
ROWS: tuple[Row, ...] = (
    Row("fixed", "fixed Φ", fixed),
    Row("fixed-2", "fixed Φ, 2 T steps", longer(2, fixed)),
    Row("fixed-4", "fixed Φ, 4 T steps", longer(4, fixed)),
    Row("fixed-both", "fixed Φ on train + validation", fixed_on_both),
    Row("uniform", "uniform Φ", scheme("uniform"), kind="mixture"),
    Row("random-walk", "random walk Φ", scheme("random_walk")),
    Row("random-cube", "random static Φ, whole cube", scheme("random_static"), kind="mixture"),
    *(
        Row(name, f"random static Φ, draw {number + 1}", static(number))
        for number, name in enumerate(STATIC_NAMES)
    ),
    Row(
        "surrogate",
        f"the surrogate itself (NCA, scale {SURROGATE_SCALE:g})",
        with_loss(lambda: pml.NCALoss(softmax_scale=SURROGATE_SCALE)),
        kind="embedding",
        shared=True,
    ),
    Row("cross-entropy", "cross-entropy", with_loss(torch.nn.CrossEntropyLoss), kind="classification"),
    Row(
        "surrogate-ce",
        "the surrogate itself (inverse-frequency cross-entropy)",
        inverse_frequency,
        kind="classification",
    ),
    *(Row(name, title, with_loss(loss), kind="embedding", shared=True) for name, title, loss in PML),
    Row(
        "multisimilarity-4",
        "PML MultiSimilarity, 4 T steps",
        longer(4, with_loss(pml.MultiSimilarityLoss)),
        kind="embedding",
        shared=True,
    ),
    *FRAMEWORKS,
    Row("paper", "ALA as published, 1 child", published(1)),
    Row("paper-10", "ALA as published, 10 children", published(10)),
    Row("paired", "paired forks (draws, policy and random)", paired),
    Row("guarded", "paired forks (hypergradient), a tenth of the run each", guarded, kind="surrogate"),
    Row("halving", "static successive halving", race(copies=False, critic=False)),
    Row("race-plain", "race, random copies", race(critic=False)),
    Row("race-no-twins", "race + critic", race()),
    Row("race-no-critic", "race + twins", race(critic=False, twins=True), kind="surrogate"),
    Row("race", "race + critic + twins", race(twins=True)),
    Row("race-2", "race + critic + twins, half the budget", race(twins=True, budget=2.0)),
    Row("race-final", "the race's final Φ, static (with the race)", retrained("race", "phi"), ("race",)),
    Row(
        "race-mean",
        "the race's time-averaged Φ, static (with the race)",
        retrained("race", "phi_mean"),
        ("race",),
    ),
)
EXTRA: tuple[Row, ...] = (
    Row("ranks", "30 static draws, scored on the way", ranks),
    *(
        Row(f"paper-every-{every}", f"ALA as published, K = {every}", published(every=every))
        for every in INTERVALS
    ),
    *(Row(f"effects-{every}", f"effects of actions, K = {every}", effects(every)) for every in INTERVALS),
)
BY_NAME = {row.name: row for row in (*ROWS, *EXTRA)}
