"""The classification benchmark in miniature: every row, resume, tables; and policies on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ala_metric import data
from ala_metric.cli.main import main as cli
from benchmarks.classification.cells import Cell, train_cell
from benchmarks.classification.command import main
from benchmarks.classification.plots import matrix_of
from benchmarks.classification.rows import BY_NAME, TABLES
from benchmarks.classification.tables import table_text
from benchmarks.classification.tasks import Batches, Task, problem, tasks_of
from benchmarks.classification.trial import Size

from .make_datasets import make_cifar10

TINY = Size(steps=6, every=2, batch=20)
needs_sklearn = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("sklearn") is None, reason="digits come with scikit-learn"
)


@needs_sklearn
@pytest.mark.parametrize("number", sorted(TABLES))
def test_every_row_of_a_table_trains(number: int, tmp_path: Path) -> None:
    table, task = TABLES[number], tasks_of("digits")[1]
    found = {}
    for row in table.rows:
        cell = Cell(number, task, "perceptron", row, 0, TINY, tasks_of("digits")[0], tmp_path)
        found[cell.key] = train_cell(cell)
        json.dumps(found[cell.key])
        assert found[cell.key]["compute"] >= 1.0
        assert 0.0 <= found[cell.key]["metrics"]["error"] <= 100.0
    text = table_text(table, found, [cell.column])
    for row in table.rows:
        assert f"| {BY_NAME[row].title} |" in text
    assert all(column in text for column in table.columns)


def test_cifar_format_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the tables on files in CIFAR's format; a second call trains only what is missing."""
    root, out = make_cifar10(tmp_path / "data"), tmp_path / "out"
    call = [
        *("--data", "cifar10", "--root", str(root), "--table", "1", "--networks", "convnet", "--seeds", "1"),
        *("--steps", "4", "--every", "2", "--batch", "16", "--workers", "0", "--out", str(out)),
    ]
    assert main([*call, "--rows", "ce", "fixed", "--no-plots"]) == 0
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 2
    (out / "cells.jsonl").write_text("\n".join(lines) + '\n{"task": "cut by a cra')
    assert main([*call, "--rows", "ce", "fixed", "ala"]) == 0
    kept = (out / "cells.jsonl").read_text().splitlines()
    assert kept[:2] == lines
    assert len(kept) == 4
    text = (out / "classification.md").read_text()
    assert "cifar10-clean/convnet" in text
    assert "ALA, one child" in text
    assert (out / "classification.csv").read_text().count("\n") > 3
    assert list(out.glob("table1-*-curves.png"))

    all_rows = tmp_path / "all"
    call[call.index("--networks") + 1], call[-1] = "perceptron", str(all_rows)
    call[call.index("1") : call.index("1") + 1] = ["1", "2", "4", "5"]
    assert main([*call, "--no-plots"]) == 0
    text = (all_rows / "classification.md").read_text()
    for table in TABLES.values():
        part = text.split(f"## Table {table.number}: ")[1].split("## Table")[0]
        assert all(f"| {BY_NAME[row].title} |" in part for row in table.rows)

    with pytest.raises(SystemExit, match="choose another --out"):
        main([*call, "--steps", "5", "--rows", "ce"])
    for option, has, wants in (
        ("--lr", "lr = 0.1", "lr = 0.2"),
        ("--batch", "batch = 16", "batch = 20"),
        ("--image-size", "image_size = None", "image_size = 16"),
        ("--root", "root = ", "other"),
    ):
        value = wants.split(" = ")[-1]
        if option == "--root":
            value = str(make_cifar10(tmp_path / value))
        with pytest.raises(SystemExit, match=f"{has}.*asked for: .*{wants}; choose another --out"):
            main([*call, option, value, "--rows", "ce"])
    with pytest.raises(SystemExit, match="--root"):
        main(["--data", "cifar10"])


@needs_sklearn
def test_a_policy_is_paid_for_and_only_used_where_it_was_trained_alike(tmp_path: Path) -> None:
    def train(row: str, size: Size = TINY) -> float:
        source = tasks_of("digits")[0]
        return float(train_cell(Cell(4, source, "perceptron", row, 0, size, source, tmp_path))["compute"])

    alone = train("rmsprop-ala")
    assert train("rmsprop-policy") == pytest.approx(2 * alone)  # the same data: as much again
    assert train("rmsprop-policy") == pytest.approx(2 * alone)  # and the policy of a file costs what it cost
    with pytest.raises(SystemExit, match=r"'lr': 0.05.* asked for: .*'lr': 0.1"):
        train("rmsprop-tuned", replace(TINY, lr=0.1))
    (tmp_path / "digits-clean-seed0.json").unlink()
    with pytest.raises(SystemExit, match="says how it was trained; remove it"):
        train("rmsprop-tuned")


@needs_sklearn
def test_second_runs_are_said_not_to_be_paired(tmp_path: Path) -> None:
    task, found = tasks_of("digits")[0], {}
    for row in ("fixed", "ala-2nd"):
        cell = Cell(5, task, "perceptron", row, 0, TINY, None, tmp_path)
        found[cell.key] = train_cell(cell)
    said = "Second runs have other weights and batches: with them only the split is paired."
    assert said in table_text(TABLES[5], found, [cell.column])
    del found[cell.key]
    assert said not in table_text(TABLES[5], found, [cell.column])


@needs_sklearn
def test_tasks() -> None:
    clean, rare, noisy = (problem(task, 1) for task in tasks_of("digits"))
    for images in (rare.train, rare.validation):
        count = images.labels.bincount()
        assert count[5:].max() * 8 < count[:5].min()
    assert len(rare.test) == len(clean.test)
    wrong = (noisy.train.labels != clean.train.labels).double().mean()
    assert abs(float(wrong) - 0.4) < 0.06  # 1,077 draws: standard error .015, four of them
    assert torch.equal(noisy.test.labels, clean.test.labels)
    labels = Batches(clean.train, 40, seed=0).labels
    assert labels.bincount().max() - labels.bincount().min() <= 1


def test_matrix_of_diagonal_and_triangle() -> None:
    assert matrix_of([1.0, 0.5], 2).tolist() == [[1.0, 0.0], [0.0, 0.5]]
    full = [1.0, -0.5, 0.25, 1.0, 0.0, 1.0, *[0.0] * 49]
    assert matrix_of(full, 10).shape == (10, 10)
    assert matrix_of(full, 10)[1, 0] == matrix_of(full, 10)[0, 1] == -0.5
    assert np.array_equal(matrix_of(full[:10], 10), np.diag(full[:10]))  # 10 is a triangular number too


def test_class_splits() -> None:
    pixels = (torch.arange(40, dtype=torch.uint8)[:, None, None, None]).expand(40, 1, 2, 2).contiguous()
    images = data.ImageSet(pixels, torch.arange(40) % 5, "toy")
    whole = data.Splits("toy", images, images, images, tuple("abcde"), class_disjoint=False)
    few = data.class_splits(whole, 3, seed=2)
    seen = torch.cat([part.images[:, 0, 0, 0] for part in (few.train, few.validation, few.test)])
    assert len(seen.unique()) == len(seen) == 24
    assert [len(part) for part in (few.train, few.validation, few.test)] == [12, 6, 6]
    for part in (few.train, few.test):
        for value, label in zip(part.images[:, 0, 0, 0].tolist(), part.labels.tolist()):
            assert "abcde"[value % 5] == few.class_names[label]
    with pytest.raises(ValueError, match="classes must lie in"):
        data.class_splits(whole, 6)
    with pytest.raises(ValueError, match="3 images"):
        data.class_splits(
            data.Splits(
                "toy", *[data.ImageSet(pixels[:4], torch.arange(4) % 2, "two")] * 3, ("a", "b"), False
            ),
            2,
        )


@needs_sklearn
def test_policy_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learned with SGD, shown, run frozen under RMSProp, fine-tuned and kept."""
    policy, tuned = tmp_path / "a.policy", tmp_path / "b.policy"
    small = ["--network", "perceptron", "--steps", "40", "--every", "2", "--data", "digits"]
    assert cli(["policy", "train", str(policy), *small]) == 0
    assert cli(["policy", "show", str(policy)]) == 0
    assert "none: fits any number" in capsys.readouterr().out
    assert cli(["policy", "apply", str(policy), *small, "--optimizer", "rmsprop"]) == 0
    assert "policy as it was" in capsys.readouterr().out
    apply = ["policy", "apply", str(policy), *small, "--optimizer", "powersign"]
    assert cli([*apply, "--fine-tune", "--save", str(tuned)]) == 0
    assert "policy fine-tuned" in capsys.readouterr().out
    assert tuned.read_bytes() != policy.read_bytes()
    assert cli([*apply, "--save", str(tuned)]) == 2
    assert cli(["policy", "show"]) == 2
    assert cli(["policy", "show", str(tmp_path / "none")]) == 1


def test_task_is_hashable_with_a_root(tmp_path: Path) -> None:
    assert len({Task("a", "cifar10", root=tmp_path), Task("a", "cifar10", root=tmp_path)}) == 1
