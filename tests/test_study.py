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
from benchmarks.study.cells import load_cells, plan, refuse_other_settings
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


def test_rows_with_children_are_compared_with_a_fixed_loss_trained_for_as_long() -> None:
    task = TASKS["digits-clean"]
    cells = {
        (task.name, row, seed): cell(row, seed, error + seed, 0.0) | {"compute": compute}
        for row, error, compute in (("fixed", 10.0, 1.0), ("fixed-4", 7.0, 4.0), ("race", 8.0, 3.9))
        for seed in range(10)
    }
    lines = {task.name: tables.lines_of(cells, task, range(10))}
    text = tables.equal_compute_table(lines)
    assert (
        "| digits-clean | race | fixed-4 | 3.90 : 4.00 | −1.0 [−1.0, −1.0] | 0.0020 | 0.0020 | 10 |" in text
    )
    assert text in tables.markdown([task], lines, cells)


def test_p_values_are_never_printed_as_zero() -> None:
    assert tables.p_text(0.00001) == "< 0.0001"
    assert tables.p_text(0.0002) == "0.0002"
    assert tables.p_text(0.0312) == "0.031"


def test_longer_runs_train_n_times_as_many_steps() -> None:
    """The same bits as a task of four times the steps, counted as four trainings; the winner's run too."""
    task = replace(TASKS["digits-imbalanced"], steps=3)
    parts = problem(task, 0)
    longer = BY_NAME["fixed-4"].run(task, parts, 0, {})
    asked = BY_NAME["fixed"].run(replace(task, steps=12), parts, 0, {})
    assert longer["metrics"] == asked["metrics"]
    assert longer["validation"] == asked["validation"]
    assert (longer["compute"], asked["compute"]) == (4.0, 1.0)
    assert longer["pass_cost"] == pytest.approx(BY_NAME["fixed"].run(task, parts, 0, {})["pass_cost"])


def test_parameters_of_a_race_cost_the_race() -> None:
    task = replace(TASKS["digits-imbalanced"], steps=3)
    parts = problem(task, 0)
    phi = BY_NAME["fixed"].run(task, parts, 0, {})["phi"]
    found = BY_NAME["race-final"].run(task, parts, 0, {"race": {"phi": phi, "compute": 3.5}})
    assert found["compute"] == 4.5


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


def run(out: Path, rows: tuple[str, ...], *more: str) -> None:
    arguments = ["--data", "digits", "--tasks", "digits-imbalanced", "--seeds", "2", "--steps", "20"]
    arguments += ["--every", "5", "--workers", "1", "--out", str(out), "--no-plots", "--rows", *rows, *more]
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


def test_cells_of_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, ("fixed",))
    with pytest.raises(SystemExit, match=r"steps = 20, asked for: steps = 30; choose another --out"):
        run(tmp_path, ("fixed",), "--steps", "30")
    with pytest.raises(SystemExit, match=r"every = 5, asked for: every = 7"):
        run(tmp_path, ("static-1",), "--every", "7")
    with pytest.raises(SystemExit, match=r"steps = 20, asked for: steps = 30"):
        run(tmp_path, ("fixed",), "--steps", "30", "--tables-only")
    run(tmp_path, ("fixed",), "--root", str(tmp_path))  # digits are read from no folder
    path = tmp_path / "cells.jsonl"
    older = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in older:
        del entry["every"], entry["root"]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in older))
    run(tmp_path, ("fixed",), "--every", "7")  # files of before say the steps alone
    path.write_text(json.dumps({**older[0], "task": "sop-focal", "root": "/old"}) + "\n")
    with pytest.raises(SystemExit, match="root = /old, asked for: root = /new"):
        refuse_other_settings(
            load_cells(path),
            [replace(TASKS["glyphs-focal"], name="sop-focal", data="sop", steps=20)],
            Path("/new"),
            path,
        )


def test_a_csv_keeps_ties_and_can_be_read_again(tmp_path: Path) -> None:
    """Two pairs whose differences are 1/3 and -1/3: after rounding to four decimals they would not cancel."""
    task = TASKS["digits-clean"]
    cells = {
        (task.name, row, seed): cell(row, seed, error, 0.0)
        for row, errors in (("fixed", (2 / 3, 1.0, 5.0)), ("race", (1.0, 4 / 3 - 2 / 3, 4.0)))
        for seed, error in enumerate(errors)
    }
    lines = {task.name: tables.lines_of(cells, task, range(3))}
    tables.write_csv(tmp_path / "study.csv", lines)
    again = tables.read_csv(tmp_path / "study.csv", range(3))
    assert tables.between(again, task.name, "race", "fixed") == tables.between(
        lines, task.name, "race", "fixed"
    )
    assert [name for name, *_ in tables.with_rows(lines[task.name][1:], again[task.name])] == [
        "fixed",
        "race",
    ]
    assert tables.read_csv(tmp_path / "study.csv", [7]) == {}


def test_rows_of_another_csv_stand_beside_the_new_ones(tmp_path: Path) -> None:
    run(tmp_path / "b", ("fixed", "fixed-2"), "--others", str(write_others(tmp_path)))
    text = (tmp_path / "b" / "study.md").read_text()
    titles = [line.split(" | ")[0].strip("| ") for line in text.split("## digits, 10:1")[1].splitlines()[6:]]
    assert titles == ["fixed Φ", "fixed Φ, 2 T steps", "best of 4 random static Φ", "race + critic + twins"]


def write_others(folder: Path) -> Path:
    metrics = ("balanced error", "accuracy", "error", "AUCPR")
    rows = [
        f"digits-imbalanced,{row},{seed},{metric},9.5,4.0,1.0\n"
        for row in ("race", "best-of-random", "fixed")
        for seed in (0, 1)
        for metric in metrics
    ]
    path = folder / "others.csv"
    path.write_text("task,row,seed,metric,value,compute,cpu_seconds\n" + "".join(rows))
    return path


COMMITTED = Path(__file__).parents[1] / "benchmarks" / "results"


def test_committed_values_can_be_read() -> None:
    found = tables.read_csv(COMMITTED / "study" / "study.csv", range(10))
    assert set(found) == set(TASKS)
    for lines in found.values():
        rows = {name: cells for name, _, cells in lines}
        assert all(len(cells) == 10 for cells in rows.values())
        assert {"fixed", "fixed-2", "fixed-4", "race"} <= set(rows)
        if "race-final" in rows:
            for own, race in zip(rows["race-final"], rows["race"]):
                assert own["compute"] == pytest.approx(1 + race["compute"], abs=1.5e-3)


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
