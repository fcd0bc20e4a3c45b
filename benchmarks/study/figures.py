"""``--figure 1|3|4|5``: small counterparts of the paper's figures, on the digits and glyph classes.

1: training loss against test metrics. 3: what rewards the controller. 4: curvature of the loss surface.
5: validation loss against the test metric, fixed and adaptive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ala_metric import metrics
from ala_metric.cli.figures import ADAPTIVE, FAINT, FIXED, INK, new_figure, save

from .tables import table
from .tasks import Task, problem, tasks_of
from .trial import Passes, Trial, embed

POINTS = 20  # of a curve
GRID, REACH = 9, 0.5  # of the loss surface: points per axis, and its half width in filter norms
COLORS = (FIXED, ADAPTIVE, INK, FAINT, "#1a7f37")
Curves = dict[str, list[float]]


class CrossEntropy:
    """The raw loss as a metric, for rewards."""

    name = "cross_entropy"
    higher_is_better = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Evaluate on logits ``[N, C]``."""
        return float(F.cross_entropy(outputs, targets))


def draw(number: int, out: Path, seeds: Sequence[int]) -> int:
    """Draw one figure and write its numbers beside it."""
    figure, head, rows = {1: _first, 3: _third, 4: _fourth, 5: _fifth}[number](seeds)
    save(figure, out / f"figure-{number}.png")
    text = table(head, rows) + "\n"
    (out / f"figure-{number}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def curves(task: Task, seed: int, reward: tuple[str, str] | None = None) -> Curves:
    """Loss and metrics over a run with fixed parameters, or with the controller under a reward.

    ``reward`` is ``("train" or "validation", "loss" or "metric")``.
    """
    trial = Trial(task, problem(task, seed), seed)
    parts = trial.problem
    if reward is None:
        loss_fn: Any = trial.adaptive().loss
    else:
        images = parts.train if reward[0] == "train" else parts.validation
        metric = CrossEntropy() if reward[1] == "loss" else parts.paper_metric
        loss_fn = trial.adaptive("paper", metric=metric, validate=Passes(trial.model, images))
    found: Curves = {name: [] for name in ("step", "train loss", "train error", "validation loss")}
    found |= {name: [] for name in ("test error", "test AUCPR")}
    every = max(1, task.steps // POINTS)

    def look(step: int, loss: float) -> None:
        if step % every:
            return
        found["step"].append(step)
        for part, images in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
            outputs, targets = embed(trial.model, images)
            if part != "test":
                found[f"{part} loss"].append(float(F.cross_entropy(outputs, targets)))
            if part != "validation":
                found[f"{part} error"].append(100 * metrics.BalancedError()(outputs, targets))
            if part == "test":
                found["test AUCPR"].append(100 * metrics.AUCPR()(outputs, targets))

    trial.fit(loss_fn, on_step=look)
    return found


def _mean_curves(panel: Any, runs: Sequence[Curves], name: str, label: str, color: str) -> None:
    """Mean and standard deviation over the seeds."""
    values = np.array([run[name] for run in runs])
    steps, mean, spread = runs[0]["step"], values.mean(0), values.std(0)
    panel.plot(steps, mean, color=color, linewidth=1.3, label=label)
    panel.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    panel.set_xlabel("training step", fontsize=8)
    panel.set_ylabel(name, fontsize=8)


def _named(name: str) -> Task:
    return next(task for data in ("digits", "glyphs") for task in tasks_of(data) if task.name == name)


def _first(seeds: Sequence[int]) -> Any:
    runs = [curves(_named("digits-imbalanced"), seed) for seed in seeds]
    figure: Any = new_figure(8, 2.8)
    for panel, name in zip(figure.subplots(1, 2), ("test error", "test AUCPR")):
        _mean_curves(panel, runs, "train loss", "train loss", FIXED)
        other = panel.twinx()
        _mean_curves(other, runs, name, name, ADAPTIVE)
    quarter = len(runs[0]["step"]) // 4
    rows = [
        (
            name,
            *(
                f"{fmean(run[name][place] for run in runs):.3f}"
                for place in (quarter - 1, 2 * quarter - 1, -1)
            ),
        )
        for name in ("train loss", "test error", "test AUCPR")
    ]
    return figure, ("digits 10:1, fixed loss", "a quarter of the run", "half", "end"), rows


REWARDS: Mapping[str, tuple[str, str] | None] = {
    "fixed": None,
    "reward: training loss": ("train", "loss"),
    "reward: training error": ("train", "metric"),
    "reward: validation loss": ("validation", "loss"),
    "reward: validation error": ("validation", "metric"),
}


def _third(seeds: Sequence[int]) -> Any:
    task = _named("digits-imbalanced")
    runs = {name: [curves(task, seed, reward) for seed in seeds] for name, reward in REWARDS.items()}
    figure: Any = new_figure(9.6, 2.8)
    for panel, quantity in zip(figure.subplots(1, 3), ("train loss", "train error", "test error")):
        for (name, own), color in zip(runs.items(), COLORS):
            _mean_curves(panel, own, quantity, name, color)
        if quantity == "train loss":
            panel.set_yscale("log")
            panel.legend(fontsize=6, frameon=False)
    columns = ("train loss", "train error", "validation loss", "test error")
    rows = [
        (name, *(f"{fmean(run[column][-1] for run in own):.3f}" for column in columns))
        for name, own in runs.items()
    ]
    return figure, ("digits 10:1, end of the run", *columns), rows


def _fourth(seeds: Sequence[int]) -> Any:
    task = _named("digits-imbalanced")
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    found: dict[str, list[list[float]]] = {"fixed": [], "ALA": []}
    for seed in seeds:
        for name, mode in (("fixed", "fixed"), ("ALA", "paper")):
            trial = Trial(task, problem(task, seed), seed)
            found[name].append(_curvatures(trial, trial.adaptive(mode), shares))
    figure: Any = new_figure(4.5, 2.8)
    panel = figure.subplots()
    for (name, values), color in zip(found.items(), COLORS):
        for run in values:
            panel.plot(shares, run, color=color, linewidth=0.6, alpha=0.4)
        panel.plot(shares, np.exp(np.log(values).mean(0)), color=color, linewidth=1.8, label=name)
    panel.set_yscale("log")
    panel.set_xlabel("share of the run", fontsize=8)
    panel.set_ylabel("mean |Gaussian curvature|", fontsize=8)
    panel.legend(fontsize=7, frameon=False)
    rows = [(name, *(f"{x:.3g}" for x in np.exp(np.log(values).mean(0)))) for name, values in found.items()]
    return figure, ("digits 10:1, geometric mean of seeds", *(f"{share:.0%}" for share in shares)), rows


def _curvatures(trial: Trial, loss_fn: Any, shares: Sequence[float]) -> list[float]:
    at = {max(1, round(share * trial.task.steps)) for share in shares}
    found: list[float] = []

    def look(step: int, loss: float) -> None:
        if step in at:
            found.append(curvature(trial.model, partial(_surface_loss, trial), trial.seed))

    trial.fit(loss_fn, on_step=look)
    return found


def _surface_loss(trial: Trial, model: nn.Module) -> float:
    return float(F.cross_entropy(*embed(model, trial.problem.train)))


def curvature(model: nn.Module, loss: Callable[[nn.Module], float], seed: int) -> float:
    """Mean absolute Gaussian curvature of the loss over two filter-normalised directions (Li et al., 2018).

    Each random direction has, filter by filter, the norm of the weights; biases and normalisation stay.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    weights = [weight for weight in moved.parameters() if weight.ndim > 1]
    start = [weight.detach().clone() for weight in weights]
    directions = []
    for _ in range(2):
        one = []
        for weight in start:
            drawn = torch.randn(weight.shape, generator=generator).flatten(1)
            norms = weight.flatten(1).norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
            one.append((drawn * norms).view_as(weight))
        directions.append(one)
    axis = np.linspace(-REACH, REACH, GRID)
    surface = np.empty((GRID, GRID))
    with torch.no_grad():
        for i, a in enumerate(axis):
            for j, b in enumerate(axis):
                for weight, origin, x, y in zip(weights, start, *directions):
                    weight.copy_(origin + a * x + b * y)
                surface[i, j] = loss(moved)
    return float(np.abs(gaussian_curvature(surface, axis[1] - axis[0])).mean())


def gaussian_curvature(surface: Any, spacing: float) -> Any:
    """``(f_xx f_yy - f_xy^2) / (1 + f_x^2 + f_y^2)^2`` by central differences, inner points only."""
    fx, fy = np.gradient(surface, spacing)
    fxx, fxy = np.gradient(fx, spacing)
    fyy = np.gradient(fy, spacing)[1]
    whole = (fxx * fyy - fxy**2) / (1 + fx**2 + fy**2) ** 2
    return whole[2:-2, 2:-2]


def _fifth(seeds: Sequence[int]) -> Any:
    figure: Any = new_figure(9.6, 5.2)
    rows = []
    for panels, (name, quantity) in zip(
        figure.subplots(2, 2), (("digits-imbalanced", "test error"), ("glyphs-aucpr", "test AUCPR"))
    ):
        task = _named(name)
        for label, reward, color in (("fixed", None, FIXED), ("ALA", ("validation", "metric"), ADAPTIVE)):
            runs = [curves(task, seed, reward) for seed in seeds]
            for panel, column in zip(panels, ("validation loss", quantity)):
                _mean_curves(panel, runs, column, f"{name}, {label}", color)
            ends = (
                f"{fmean(run[column][-1] for run in runs):.3f}" for column in ("validation loss", quantity)
            )
            rows.append((f"{name}, {label}", *ends, quantity))
        panels[0].legend(fontsize=7, frameon=False)
    return figure, ("end of the run", "validation loss", "test metric", "which"), rows
