"""The study: statistics, the plan of its cells, resume, tables, and one tiny run from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.study import command, diagnosis, statistics, tables
from benchmarks.study.cells import load_cells, plan
from benchmarks.study.rows import BY_NAME, ROWS
from benchmarks.study.tasks import BUILT_IN, Evenly, problem
from benchmarks.study.trial import mean_phi

from .make_datasets import make_cifar10, make_lfw, make_sop

TASKS = {task.name: task for task in BUILT_IN}
DIFFERENCES = [0.9, -0.2, 1.4, 0.3, 0.8, -0.1, 1.1, 0.6]


def test_sign_flips_are_scipys_exact_permutation_test() -> None:
    expected = stats.permutation_test(
        (np.array(DIFFERENCES),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert statistics.sign_flip_p(DIFFERENCES) == pytest.approx(expected, abs=1e-12)
    assert statistics.sign_flip_p([1.0] * 10) == pytest.approx(2 / 1024)
    assert statistics.sign_flip_p([0.0, 0.0]) == 1.0


def test_interval_is_bca_by_hand() -> None:
    values = np.array(DIFFERENCES)
    draws = np.random.default_rng(5).choice(values, (40_000, len(values))).mean(1)
    shift = stats.norm.ppf((draws < values.mean()).mean())
    jackknife = np.array([np.delete(values, i).mean() for i in range(len(values))])
    away = jackknife.mean() - jackknife
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    z = shift + stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(shift + z / (1 - acceleration * z))
    # Two independent sets of draws: quantiles of a mean with sd .19 from 10,000 draws vary by about .01.
    assert statistics.interval(DIFFERENCES) == pytest.approx(np.quantile(draws, levels), abs=0.03)
    assert statistics.interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_plan_trains_what_is_needed_first_and_shared_cells_once() -> None:
    tasks = [TASKS["glyphs-allpairs"], TASKS["glyphs-focal"]]
    cells = [(task.name, row.name, seed) for task, row, seed in plan(tasks, [BY_NAME["race-final"]], [3])]
    assert cells == [
        (name, row, 3)
        for name in TASKS
        if name in ("glyphs-allpairs", "glyphs-focal")
        for row in ("race", "race-final")
    ]
    cells = [(task.name, row.name) for task, row, _ in plan(tasks, [BY_NAME["nca"]], [0])]
    assert cells == [("glyphs-allpairs", "nca")]
    assert [task.name for task, _, _ in plan(tasks[1:], [BY_NAME["nca"]], [0])] == ["glyphs-focal"]
    assert not BY_NAME["nca"].applies(TASKS["digits-clean"])


def test_every_row_has_its_own_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_batches_follow_the_class_distribution() -> None:
    images = problem(TASKS["digits-imbalanced"], 0).train
    counts = images.labels.bincount()
    assert counts[:5].min() > 90
    assert counts[5:].max() < 15
    evenly = Evenly(images, 40, seed=0)
    sizes = evenly.labels.bincount()
    assert sizes.max() - sizes.min() <= 1
    validation = problem(TASKS["digits-imbalanced"], 0).validation.labels.bincount()
    assert torch.allclose(validation / validation.sum(), counts / counts.sum(), atol=0.01)


def test_time_average_of_phi() -> None:
    assert mean_phi(((0, (1.0, 0.0)), (30, (0.0, 1.0))), 120) == pytest.approx([0.25, 0.75])


def cell(row: str, seed: int, error: float, validation: float, task: str = "digits-clean") -> dict[str, Any]:
    return {
        "task": task,
        "row": row,
        "seed": seed,
        "metrics": {"balanced error": error, "accuracy": 100 - error},
        "validation": validation,
        "compute": 1.0,
        "pass_cost": 0.01,
        "seconds": 1.0,
        "cpu_seconds": 1.0,
    }


def test_best_of_n_is_chosen_on_validation_and_pays_for_it() -> None:
    task = TASKS["digits-clean"]
    rows = ("fixed", "static-1", "static-2", "static-3", "static-4")
    errors, scores = (10.0, 8.0, 6.0, 9.0, 4.0), (0.1, 0.2, 0.5, 0.3, 0.4)
    found = [cell(row, 0, error, score) for row, error, score in zip(rows, errors, scores)]
    cells = {(entry["task"], entry["row"], 0): entry for entry in found}
    lines = {name: own for name, _, own in tables.lines_of(cells, task, [0])}
    assert lines["best-of-random"][0]["metrics"]["balanced error"] == 6.0  # not the 4.0 that the test prefers
    assert lines["best-of-random"][0]["compute"] == pytest.approx(4.04)
    assert tables.gains(lines["best-of-random"], lines["fixed"]) == [4.0]  # a lower error is a gain
    assert "static-2" not in lines


def test_markdown_says_what_was_compared() -> None:
    task = TASKS["digits-clean"]
    cells = {
        (task.name, row, seed): cell(row, seed, error + seed, 0.0)
        for row, error in (("fixed", 10.0), ("paper", 11.0), ("race", 8.0))
        for seed in range(5)
    }
    text = tables.markdown([task], {task.name: tables.lines_of(cells, task, range(5))}, cells)
    assert "| paper − fixed | −1.0 [−1.0, −1.0] |" in text
    assert "| ALA as published, 1 child | 13.0 | 87.0 | 1.00 | −1.0 [−1.0, −1.0] | 0.062 | 5 |" in text
    assert "Primary" not in text  # no claim is about this task
    assert "| fixed Φ | 12.0 | 88.0 | 1.00 |  |  | 5 |" in text
    assert "balanced error: lower is better" in text
    text = tables.primary_table({"glyphs-focal": tables.lines_of(cells, task, range(5))})
    assert "| glyphs-focal | race | fixed | +2.0 [+2.0, +2.0] | 0.062 | 0.062 | 5 |" in text


def test_shares_of_variance() -> None:
    generator = np.random.default_rng(0)
    action = np.arange(6.0)[None, None, :] * np.ones((3, 4, 1))
    batches = np.arange(4.0)[None, :, None] * np.ones((3, 1, 6))
    assert diagnosis.pooled(action).action == pytest.approx(1.0)
    assert diagnosis.pooled(batches).action == pytest.approx(0.0)
    assert diagnosis.pooled(batches).batches == pytest.approx(1.0)
    assert diagnosis.paired(action + 5 * batches) == pytest.approx(1.0)  # the batches cancel
    noise = generator.normal(size=(200, 4, 6))
    # Unbiased: the spread of 200 checkpoints around 0 is about .02.
    assert diagnosis.pooled(noise).action == pytest.approx(0.0, abs=0.06)
    trend = action + np.array([0.0, 30.0, 60.0])[:, None, None]
    assert diagnosis.pooled(trend).action < 0.05  # what all siblings share drowns the action


def run(out: Path, rows: tuple[str, ...]) -> None:
    arguments = ["--data", "digits", "--tasks", "digits-imbalanced", "--seeds", "2", "--steps", "20"]
    arguments += ["--every", "5", "--workers", "1", "--out", str(out), "--no-plots", "--rows", *rows]
    assert command.main(arguments) == 0


def test_a_tiny_study_and_its_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("fixed", "static-1", "paper", "race-plain")
    run(tmp_path, rows)
    path = tmp_path / "cells.jsonl"
    whole = load_cells(path)
    assert {key[1:] for key in whole} == {(row, seed) for row in rows for seed in (0, 1)}
    assert "| race, random copies |" in (tmp_path / "study.md").read_text()
    values = (tmp_path / "study.csv").read_text().splitlines()
    assert len(values) == 1 + 8 * 4
    capsys.readouterr()

    lines = path.read_text().splitlines(keepends=True)
    lost = json.loads(lines[2])
    path.write_text("".join(lines[:2] + lines[3:])[:-20])  # a cell less, and a last line cut by a crash
    cut = json.loads(lines[-1])
    run(tmp_path, rows)
    again = load_cells(path)
    assert again.keys() == whole.keys()
    assert capsys.readouterr().err.count(" min left") == 2
    for gone in (lost, cut):
        key = gone["task"], gone["row"], gone["seed"]
        assert again[key]["metrics"] == whole[key]["metrics"]  # bit for bit


@pytest.mark.parametrize(
    ("name", "task", "column"),
    [
        ("sop", "sop-semihard", "Recall@1"),
        ("lfw", "lfw-focal", "accuracy"),
        ("cifar10", "cifar10-clean", "balanced error"),
    ],
)
def test_files_of_the_user(name: str, task: str, column: str, tmp_path: Path) -> None:
    """A few steps of three rows on tiny files in the true format, hypergradients included."""
    pytest.importorskip("PIL")
    root = tmp_path / "data"
    if name == "sop":
        make_sop(root, train_classes=40)
    else:
        (make_lfw if name == "lfw" else make_cifar10)(root)
    call = ["--data", name, "--root", str(root), "--tasks", task, "--seeds", "1", "--steps", "3"]
    call += ["--every", "2", "--workers", "0", "--out", str(tmp_path / "out"), "--no-plots"]
    assert command.main([*call, "--rows", "fixed", "race", "guarded"]) == 0
    cells = load_cells(tmp_path / "out" / "cells.jsonl")
    assert {key[:2] for key in cells} == {(task, row) for row in ("fixed", "race", "guarded")}
    for cell in cells.values():
        assert next(iter(cell["metrics"])) == column
        assert all(0.0 <= value <= 100.0 for value in cell["metrics"].values())
    assert cells[task, "race", 0]["compute"] > cells[task, "fixed", 0]["compute"] == 1.0


def test_unknown_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown tasks"):
        command.main(["--data", "digits", "--tasks", "digits-none", "--out", str(tmp_path)])
    assert replace(TASKS["digits-clean"], steps=3).steps == 3
