"""The rows of the tables: one way to train each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ala_metric import classification, controller, metrics, training

from .tasks import Batches, Problem, Task, joined, problem
from .trial import Size, Trial

NARROW, WIDE = 0.5, 0.05  # least value of a diagonal: safe where labels are wrong, and the default
FEATURES = 64  # outputs of a network whose classifier is in the loss
POLICY_SOURCE = {"glyphs": "digits", "digits": "digits", "imagenet": "cifar10", "cifar10": "digits"}


@dataclass(frozen=True)
class Setting:
    """Everything that a cell is trained with."""

    problem: Problem
    network: str
    size: Size
    seed: int
    metric: Any
    source: Task | None = None
    policies: Path | None = None

    def trial(self, **options: Any) -> Trial:
        """New weights and optimizer."""
        return Trial(self.problem, self.network, self.size, self.seed, **options)


Run = Callable[[Setting], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    title: str
    run: Run


def plain(make: Callable[[Setting], Any], **options: Any) -> Run:
    """A loss that needs nothing but the batch."""

    def run(setting: Setting) -> dict[str, Any]:
        trial = setting.trial(**options)
        trial.fit(make(setting))
        return trial.outcome()

    return run


def on_both(setting: Setting) -> dict[str, Any]:
    """Cross-entropy on training and validation images."""
    if not hasattr(setting.problem.train, "images"):
        raise ValueError("train + validation needs images in memory")
    trial = setting.trial()
    trial.fit(torch.nn.CrossEntropyLoss(), joined(setting.problem.train, setting.problem.validation))
    return trial.outcome()


def fixed(setting: Setting) -> dict[str, Any]:
    """The adaptive loss where nothing adapts."""
    trial = setting.trial()
    trial.fit(adaptive_loss(setting))
    return trial.outcome()


def adaptive_loss(setting: Setting, **options: Any) -> classification.AdaptiveClassificationLoss:
    """The default form of the loss; class weights within 2:1 unless said."""
    return classification.AdaptiveClassificationLoss(
        setting.problem.classes, **{"diagonal_low": NARROW} | options
    )


def learning_to_teach(setting: Setting) -> dict[str, Any]:
    """Samples chosen by a rewarded teacher."""
    trial, size = setting.trial(), setting.size
    trial.fit(
        classification.LearningToTeach(
            setting.metric, trial.validation, size.steps, size.every, seed=setting.seed
        )
    )
    return trial.outcome()


def loss_teaching(setting: Setting) -> dict[str, Any]:
    """Phi by gradients of a differentiable error."""
    trial, size, images = setting.trial(), setting.size, setting.problem.validation
    generator = torch.Generator().manual_seed(setting.seed)
    device = next(trial.model.parameters()).device

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(images), (size.batch,), generator=generator).tolist()
        pixels, labels = zip(*(images[row] for row in rows))
        return torch.stack(pixels).to(device), torch.tensor(labels, device=device)

    loss = adaptive_loss(setting, off_diagonal=True, diagonal_low=WIDE)
    fitted = trial.fit(classification.LossTeaching(loss, trial.model, batch, size.every))
    # A batch of validation forward and backward, and two backward passes on the training batch.
    trial.extra = (1.0 + 4 / 3) / size.every
    return trial.outcome(fitted=fitted)


def scheduled(rule: Any) -> Run:
    """Phi set by a rule."""

    def run(setting: Setting) -> dict[str, Any]:
        trial = setting.trial()
        trial.fit(
            classification.ScheduledCorrelations(
                adaptive_loss(setting, off_diagonal=True, diagonal_low=WIDE),
                rule,
                setting.size.every,
                trial.validation,
                setting.seed,
            )
        )
        return trial.outcome()

    return run


def control(mode: str) -> Run:
    """A scheme that looks at no data; its validation passes only draw the curve."""

    def run(setting: Setting) -> dict[str, Any]:
        trial = setting.trial()
        fitted = trial.fit(trial.adaptive(adaptive_loss(setting), mode))
        return trial.outcome(1.0, fitted)

    return run


def single(setting: Setting, **options: Any) -> dict[str, Any]:
    """ALA with default settings and one child."""
    return _adapted(setting, **options)[1]


def wide(setting: Setting) -> dict[str, Any]:
    """ALA whose class weights may differ by 20 to 1."""
    return _adapted(setting, diagonal_low=WIDE)[1]


def _adapted(setting: Setting, **options: Any) -> tuple[Any, dict[str, Any]]:
    optimizer = options.pop("optimizer_name", "sgd")
    trial = setting.trial(optimizer_name=optimizer)
    loss = adaptive_loss(setting, diagonal_low=options.pop("diagonal_low", NARROW))
    loss_fn = trial.adaptive(loss, metric=setting.metric, **options)
    fitted = trial.fit(loss_fn)
    return loss_fn, trial.outcome(fitted=fitted)


def children(preset: str, count: int, every: int | None = None) -> Run:
    """ALA with children that share the controller; the best on validation is tested."""

    def run(setting: Setting) -> dict[str, Any]:
        chosen, trial = classification.preset(preset), setting.trial()
        loss_fn = trial.adaptive(
            chosen.loss(setting.problem.classes),
            metric=setting.metric,
            beta=chosen.beta,
            every=min(every or setting.size.every, setting.size.steps),
        )
        fitted = trial.fit(loss_fn, mode="paper", children=count)
        return trial.outcome(fitted.compute.in_units_of(setting.size.steps), fitted)

    return run


def chosen(mode: str, diagonal_low: float = NARROW, **options: Any) -> Run:
    """Paired forks, or a race."""

    def run(setting: Setting) -> dict[str, Any]:
        trial = setting.trial()
        loss = adaptive_loss(setting, diagonal_low=diagonal_low)
        loss_fn = trial.adaptive(loss, "fixed", metric=setting.metric)
        fitted = trial.fit(loss_fn, mode=mode, **options)
        return trial.outcome(fitted.compute.in_units_of(setting.size.steps), fitted)

    return run


def hypergradient(setting: Setting, **options: Any) -> dict[str, Any]:
    """Paired forks whose branches follow the gradient of balanced cross-entropy on validation batches."""
    held, size = setting.problem.validation, setting.size
    settings = training.HypergradientSettings(
        training.balanced_cross_entropy,
        Batches(held, size.batch, setting.seed),
        batch_classes=size.batch,
        per_class=1,
        seed=setting.seed,
    )
    proposals = training.PairedSettings(proposals=("hypergradient",), hypergradient=settings)
    return chosen("paired", paired=proposals, **options)(setting)


def longer(factor: float, title: str, stop_early: bool = False) -> Row:
    """The fixed loss with as much compute as a row with children: a longer run."""

    def run(setting: Setting) -> dict[str, Any]:
        size = replace(setting.size, steps=round(factor * setting.size.steps))
        trial = replace(setting, size=size).trial()
        trial.fit(adaptive_loss(setting), stop_early=stop_early)
        return trial.outcome(factor * trial.compute)

    return Row(f"fixed-{factor:g}" + ("-stopped" if stop_early else ""), title, run)


def coarse(setting: Setting) -> dict[str, Any]:
    """Paired forks judged by the task's own metric, where the default is the mean log p of the classes."""
    return chosen("paired", paired=training.PairedSettings(metric=setting.metric))(setting)


# ------------------------------------------------------------------------------ Table 5: a second run
def second(freeze: bool) -> Run:
    """A run that starts with the policy of a first one; both are paid for.

    The first run has the seed of the other rows. The second has weights and batches of its own, so that
    against the other rows only the split and the rare and wrong labels are paired: the table says so.
    """

    def run(setting: Setting) -> dict[str, Any]:
        loss_fn, first = _adapted(setting)
        again = replace(setting, seed=setting.seed + 10_000)
        found = _adapted(again, policy=loss_fn.policy, freeze=freeze)[1]
        return found | {"compute": found["compute"] + first["compute"]}

    return run


# ------------------------------------------------------------------------------ Table 4: transfer
def transferred(freeze: bool) -> Run:
    """RMSProp with a policy that was learned on another data set under momentum SGD."""

    def run(setting: Setting) -> dict[str, Any]:
        policy, spent = source_policy(setting)
        found = single(setting, policy=policy, freeze=freeze, optimizer_name="rmsprop")
        return found | {"compute": found["compute"] + spent}

    return run


def source_policy(setting: Setting) -> tuple[Any, float]:
    """The policy of the source data set, and what it cost: from its file, or trained and kept there.

    The cost counts trainings of T steps *on the source*. A JSON file beside the policy says it, and how the
    policy was trained; a policy of other settings is refused.
    """
    assert setting.source is not None
    assert setting.policies is not None
    path = setting.policies / f"{setting.source.name}-seed{setting.seed}.policy"
    notes = path.with_suffix(".json")
    network = setting.network if setting.network != "nasnet" else "densenet"
    asked = {"network": network, **asdict(setting.size), "root": folder(setting.source.root)}
    if path.is_file():
        if not notes.is_file():
            raise SystemExit(f"{path} has no {notes.name} that says how it was trained; remove it")
        kept = json.loads(notes.read_text(encoding="utf-8"))
        if kept["settings"] != asked:
            raise SystemExit(f"{path} was trained with {kept['settings']}, asked for: {asked}; remove it")
        return controller.load_policy(path), kept["compute"]
    source = problem(setting.source, setting.seed)
    there = replace(setting, problem=source, metric=source.metric, network=network)
    loss_fn, found = _adapted(there)
    path.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text(json.dumps({"settings": asked, "compute": found["compute"]}), encoding="utf-8")
    controller.save_policy(path, loss_fn.policy)
    return loss_fn.policy, found["compute"]


def folder(root: Path | None) -> str | None:
    """A folder as cells and policies record it."""
    return None if root is None else str(root.resolve())


def adapting(optimizer: str) -> Run:
    """ALA from a new policy under another optimizer."""
    return lambda setting: single(setting, optimizer_name=optimizer)


def _cross_entropy(setting: Setting) -> Any:
    return torch.nn.CrossEntropyLoss()


ROWS: tuple[Row, ...] = (
    Row("ce", "cross-entropy", plain(_cross_entropy)),
    Row("ce-both", "cross-entropy on train + validation", on_both),
    Row(
        "self-paced",
        "self-paced (Kumar et al.)",
        plain(lambda s: classification.SelfPacedLoss(s.size.steps)),
    ),
    Row(
        "l-softmax",
        "L-Softmax (Liu et al.)",
        plain(lambda s: classification.LargeMarginSoftmax(FEATURES, s.problem.classes), outputs=FEATURES),
    ),
    Row("focal", "focal loss (Lin et al.)", plain(lambda s: classification.FocalLoss())),
    Row("l2t", "L2T (Fan et al.), within one run", learning_to_teach),
    Row("l2t-dlf", "L2T-DLF (Wu et al.), one step unrolled", loss_teaching),
    Row("fixed", "fixed Φ = I, softplus form", fixed),
    Row("random-walk", "random walk Φ in [0.5, 1]", control("random_walk")),
    Row("random-static", "random static Φ in [0.5, 1]", control("random_static")),
    Row("random-matrix", "ALA (random matrix Φ)", scheduled("random")),
    Row("confusion-matrix", "ALA (confusion matrix Φ)", scheduled("confusion")),
    Row("ala", "ALA, one child, Φ in [0.5, 1]", single),
    Row(
        "ala-200",
        "ALA, one child, defaults (K = 200, Φ in [0.05, 1])",
        lambda s: single(s, diagonal_low=WIDE, every=min(200, s.size.steps)),
    ),
    Row("ala-wide", "ALA, one child, Φ in [0.05, 1]", wide),
    Row("ala-10", "ALA, 10 children, Φ in [0.05, 1]", children("default", 10)),
    Row("paper", 'ALA, preset="paper", K = 200, 10 children', children("paper", 10, every=200)),
    Row("paired", "paired forks", chosen("paired")),
    Row("paired-error", "paired forks, judged by the error itself", coarse),
    Row("paired-gradient", "paired forks, hypergradient branch", hypergradient),
    Row(
        "paired-gradient-wide",
        "paired forks, hypergradient branch, Φ in [0.05, 1]",
        lambda s: hypergradient(s, diagonal_low=WIDE),
    ),
    longer(1.0, "fixed Φ = I, early stopping", stop_early=True),
    longer(2.0, "fixed Φ = I, 2 T steps"),
    longer(2.0, "fixed Φ = I, 2 T steps, early stopping", stop_early=True),
    Row("race", "race, 4 T", chosen("race", budget=4.0)),
    longer(4.0, "fixed Φ = I, 4 T steps"),
    Row("auc-roc", "pairwise AUCROC loss (Rakotomamonjy)", plain(lambda s: classification.PairwiseAUCLoss())),
    Row(
        "aucpr",
        "AUCPR loss (Eban et al.)",
        plain(lambda s: classification.AUCPRLoss(s.problem.classes, priors=_shares(s))),
    ),
    Row("ala-2nd", "ALA, 2nd run (policy of the 1st)", second(freeze=True)),
    Row("ala-2nd-tuned", "ALA, 2nd run (policy fine-tuned)", second(freeze=False)),
    Row("rmsprop", "RMSProp", plain(_cross_entropy, optimizer_name="rmsprop")),
    Row("powersign", "PowerSign-cd (Bello et al.)", plain(_cross_entropy, optimizer_name="powersign")),
    Row("rmsprop-policy", "RMSProp + ALA (policy transfer)", transferred(freeze=True)),
    Row("rmsprop-tuned", "RMSProp + ALA (policy transfer, fine-tuned)", transferred(freeze=False)),
    Row("rmsprop-ala", "RMSProp + ALA", adapting("rmsprop")),
)
BY_NAME = {row.name: row for row in ROWS}


def _shares(setting: Setting) -> torch.Tensor:
    count = torch.bincount(setting.problem.train.labels, minlength=setting.problem.classes).float()
    return count / count.sum()


@dataclass(frozen=True)
class Table:
    """A table of the paper: its rows, what is compared with what, and its columns."""

    number: int
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    baseline: str
    networks: dict[str, tuple[str, ...]]
    metric: str = "task"


SMALL = {"digits": ("perceptron", "convnet"), "glyphs": ("perceptron",)}
CIFAR = ("resnet32", "wrn", "densenet")
TABLES = {
    1: Table(
        1,
        "Classification error",
        (
            *("ce", "ce-both", "self-paced", "l-softmax", "focal", "l2t", "l2t-dlf", "fixed"),
            *("random-walk", "random-static", "random-matrix", "confusion-matrix", "ala", "ala-200"),
            *("ala-wide", "ala-10", "paper", "fixed-1-stopped", "paired", "paired-error", "paired-gradient"),
            "paired-gradient-wide",
            *("fixed-2", "fixed-2-stopped", "race", "fixed-4"),
        ),
        ("error", "balanced error"),
        "fixed",
        SMALL | {"cifar10": CIFAR, "imagenet": ("resnet32",)},
    ),
    2: Table(
        2,
        "Area under the precision-recall curve",
        ("ce", "auc-roc", "aucpr", "fixed", "ala", "paired", "fixed-2"),
        ("AUCPR",),
        "fixed",
        {"digits": ("perceptron",), "glyphs": ("perceptron",), "cifar10": ("resnet32",)}
        | {"imagenet": ("resnet32",)},
        metric="aucpr",
    ),
    4: Table(
        4,
        "Policy transfer to another number of classes and another optimizer",
        ("rmsprop", "powersign", "rmsprop-policy", "rmsprop-tuned", "rmsprop-ala"),
        ("top-1", "top-5"),
        "rmsprop",
        {"digits": ("perceptron",), "glyphs": ("perceptron",), "cifar10": ("densenet",)}
        | {"imagenet": ("nasnet",)},
    ),
    5: Table(
        5,
        "Training and testing error, and what a second run adds",
        ("ce", "fixed", "ala", "ala-2nd", "ala-2nd-tuned"),
        ("train error", "error"),
        "fixed",
        {"digits": ("perceptron",), "glyphs": ("perceptron",), "cifar10": ("resnet32",)}
        | {"imagenet": ("resnet32",)},
    ),
}


def metric_of(table: Table, parts: Problem) -> Any:
    """What the controller improves."""
    return metrics.AUCPR() if table.metric == "aucpr" else parts.metric


__all__ = ["BY_NAME", "ROWS", "TABLES", "Setting", "Table", "metric_of", "training"]
