"""Training, checking and measuring on the real data sets' formats, by the code that real data takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import data, training
from ala_metric.cli import curves, tasks
from ala_metric.cli.main import main, make_parser

from .make_datasets import make_cifar10, make_cifar100, make_imagenet, make_lfw, make_people, make_sop

MAKE: dict[str, Callable[[Path], Path]] = {
    "sop": make_sop,
    "lfw": make_lfw,
    "webface": lambda root: make_people(root, 10),
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "imagenet": make_imagenet,
}
METRIC = {"sop": "Recall@1", "webface": "Recall@1", "lfw": "verification accuracy"}
SHORT = ["--steps", "8", "--every", "2", "--dim", "8", "--classes-per-batch", "3", "--samples-per-class", "2"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {name: make(folder / name) for name, make in MAKE.items()}


def train(name: str, root: Path, out: Path, *more: str) -> int:
    size = [] if name.startswith("cifar") else ["--image-size", "16", "--loader-workers", "0"]
    return main(["train", "--data", name, "--root", str(root), *SHORT, *size, "--out", str(out), *more])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", MAKE)
def test_train_then_eval(
    name: str, roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(name, roots[name], out) == 0
    said = capsys.readouterr()
    assert f"not the published {name}: " in said.err
    history = read(out / "history.json")
    assert history["metric"] == METRIC.get(name, "error")
    assert [record["step"] for record in history["records"]] == [2, 4, 6]
    parameters = {"cifar10": 10, "cifar100": 100, "imagenet": 3}.get(name, 10)
    assert len(history["phi_names"]) == len(history["phi_start"]) == parameters
    assert all(0 <= record["metric"] <= 1 for record in history["records"])
    found = read(out / "metrics.json")
    picture = tmp_path / "curves.png"
    assert main(["eval", str(out), "--out", str(tmp_path / "again.json"), "--picture", str(picture)]) == 0
    assert read(tmp_path / "again.json") == found
    assert picture.read_bytes().startswith(b"\x89PNG")
    if name == "lfw":
        assert len(found["fold_accuracies"]) == 10
        assert found["accuracy"] == pytest.approx(np.mean(found["fold_accuracies"]))
        assert "accuracy ± standard error" in said.out
    elif METRIC.get(name):
        splits = data.load(name, root=roots[name])
        assert found["queries"] == len(splits.test)
        assert "Recall@1" in said.out
    else:
        assert found["images"] == len(data.load(name, root=roots[name]).test)
        assert "AUCPR" in said.out


def test_a_network_learns_the_colours_of_cifar(roots: dict[str, Path], tmp_path: Path) -> None:
    """The classes of the sample differ in colour: a network that sees the right labels tells them apart."""
    argv = ["--data", "cifar10", "--root", str(roots["cifar10"]), "--mode", "fixed", "--lr", "0.003"]
    assert main(["train", *argv, "--steps", "60", "--out", str(tmp_path / "run")]) == 0
    assert read(tmp_path / "run" / "metrics.json")["classification_error"] < 0.3  # by chance 0.9


def test_a_network_learns_the_faces_of_the_sample(roots: dict[str, Path], tmp_path: Path) -> None:
    assert (
        train("lfw", roots["lfw"], tmp_path / "run", "--mode", "fixed", "--steps", "60", "--lr", "0.003") == 0
    )
    assert read(tmp_path / "run" / "metrics.json")["roc_auc"] > 0.9  # by chance 0.5


def test_faces_are_compared_by_the_angle(roots: dict[str, Path]) -> None:
    """The losses normalise; a network's own lengths must not enter its verification accuracy."""
    splits = data.load("lfw", root=roots["lfw"])
    metric = tasks.validation_metric(splits)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(len(splits.validation), 4, generator=generator)
    lengths = torch.rand(len(outputs), 1, generator=generator) * 100 + 1
    assert metric(outputs, splits.validation.labels) == metric(outputs * lengths, splits.validation.labels)


def test_workers_change_no_bit(roots: dict[str, Path], tmp_path: Path) -> None:
    for workers in ("0", "2"):
        assert train("sop", roots["sop"], tmp_path / workers, "--loader-workers", workers) == 0
    alone, shared = (read(tmp_path / workers / "metrics.json") for workers in ("0", "2"))
    assert alone == shared


@pytest.mark.parametrize("name", ["sop", "lfw", "cifar10"])
def test_a_stopped_run_goes_on_to_the_same_end(
    name: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [] if name == "cifar10" else ["--loader-workers", "1"]
    assert train(name, roots[name], tmp_path / "whole", *workers) == 0
    fit = training.fit

    def stopped(*args: Any, on_step: Callable[[int, float], None], **keywords: Any) -> training.FitResult:
        def seen(step: int, loss: float) -> None:
            on_step(step, loss)
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

        return fit(*args, on_step=seen, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", stopped)
        assert train(name, roots[name], tmp_path / "stopped", *workers) == 130
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert main(["train", "--out", str(tmp_path / "stopped"), "--resume"]) == 0
    assert read(tmp_path / "stopped" / "metrics.json") == read(tmp_path / "whole" / "metrics.json")
    before, after = (
        training.load_checkpoint(tmp_path / part / "checkpoint.pt")["model"] for part in ("whole", "stopped")
    )
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_eval_finds_data_that_has_moved(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(roots["sop"], tmp_path / "before"))
    assert train("sop", moved, tmp_path / "run") == 0
    moved = moved.rename(tmp_path / "after")
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert "root of sop is not a folder" in capsys.readouterr().err
    before = read(tmp_path / "run" / "metrics.json")
    assert main(["eval", str(tmp_path / "run"), "--root", str(moved)]) == 0
    assert read(tmp_path / "run" / "metrics.json") == before
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--root", str(moved)]) == 0


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["train", "--data", "sop"], 1, "sop needs the folder with its files"),
        (["train", "--data", "cifar10", "--loss", "mixture"], 2, "trained with loss correlation"),
        (["train", "--data", "cifar10", "--miner", "semihard"], 2, "without a miner"),
        (["train", "--data", "lfw", "--loss", "correlation"], 2, "trained with loss mixture or focal"),
        (["train", "--data", "digits", "--root", "x"], 1, "root must be None"),
        (["eval", "--embeddings", "e.npy", "--labels", "l.npy", "--pairs", "p.npy"], 2, "needed together"),
        (["eval", "run", "--pairs", "p.npy", "--folds", "f.npy"], 2, "--pairs go with --embeddings"),
        (["eval", "run", "--picture", "p.txt"], 2, "must end in .png or .svg"),
        (["data"], 2, "ala-metric data check NAME ROOT"),
        (["data", "check", "mnist", "."], 2, "name must be one of sop, lfw"),
        (["data", "look", "sop", "."], 2, "action must be one of check"),
        (["data", "check", "sop", "nowhere"], 1, "root of sop is not a folder: nowhere"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    argv: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image_stops_the_run_by_its_name(
    workers: str, roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(roots["sop"], tmp_path / "sop"))
    for path in root.glob("*/*.JPG"):
        path.write_bytes(path.read_bytes()[:300])
    whole = root / "bicycle_final" / "110001_0.JPG"  # the first one: it tells the number of channels
    whole.write_bytes((roots["sop"] / "bicycle_final" / "110001_0.JPG").read_bytes())
    assert train("sop", root, tmp_path / "run", "--loader-workers", workers) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert re.match(r"ala-metric train: error: cannot decode .*\.JPG: ", last)
    assert "Traceback" not in last


def test_the_docs_name_every_data_set_and_their_commands_parse() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "datasets.md").read_text()
    for name in data.DATASETS:
        assert name.startswith("glyphs-") or f"`{name}`" in text
    commands = re.findall(r"^\$ ala-metric ([^#\n]*)", text, re.M)
    assert len(commands) == 3
    for command in commands:
        make_parser().parse_args(command.split())


def test_a_validation_set_of_one_class_is_said(
    tmp_path: Path, roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_sop(tmp_path / "small", train_classes=4, test_classes=2)
    for root, said in ((small, True), (roots["sop"], False)):
        assert train("sop", root, tmp_path / f"run {said}", "--mode", "fixed") == 0
        found = "the validation set is one class: no query has a negative" in capsys.readouterr().err
        assert found == said


# --- data check


@pytest.mark.parametrize("name", MAKE)
def test_a_subset_is_told_from_the_published_set(
    name: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["data", "check", name, str(roots[name]), "--loader-workers", "0"]
    assert main(argv) == 1
    said = capsys.readouterr().out
    assert "DIFFERS" in said
    assert f"{name}: not usable as it is" in said
    assert main([*argv, "--subset"]) == 0
    assert f"{name}: ready" in capsys.readouterr().out


def test_a_complete_set_passes(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "train classes": 8,
        "validation classes": 2,
        "test images": 16,
        "train and validation images": 40,
    }
    monkeypatch.setitem(data.EXPECTED, "sop", found)
    assert main(["data", "check", "sop", str(roots["sop"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["sop", "found", "published"]
    assert any(line.split() == ["test", "images", "16", "16", "same"] for line in lines)
    monkeypatch.setitem(found, "test images", 17)
    assert main(["data", "check", "sop", str(roots["sop"])]) == 1
    assert "counts differ from the published ones: test images (" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_bad_image_is_named(
    workers: str, roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(roots["sop"], tmp_path / "sop"))
    for name in ("chair_final/110002_1.JPG", "bicycle_final/110013_3.JPG"):
        path = root / name
        path.write_bytes(path.read_bytes()[:300])
    argv = ["data", "check", "sop", str(root), "--subset", "--loader-workers", workers]
    assert main([*argv, "--all"]) == 1
    said = capsys.readouterr()
    assert "110002_1.JPG" in said.out
    assert "110013_3.JPG" in said.out
    assert "decoded 56 of 56 images, 2 failed" in said.out
    assert "decoding: step" in said.err
    assert main([*argv, "--sample", "3"]) in (0, 1)
    assert "decoded 9 of 56 images" in capsys.readouterr().out


# --- curves


def test_pairs_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emb = np.array([[0.0], [1.0], [3.0], [3.5]], dtype=np.float32)
    pairs = np.array([[0, 1], [0, 2], [2, 3], [1, 2]])
    for name, array in {"e": emb, "l": [0, 0, 1, 1], "p": pairs, "f": [0, 0, 1, 1]}.items():
        np.save(tmp_path / f"{name}.npy", np.asarray(array))
    e, lab, p, f = (str(tmp_path / f"{name}.npy") for name in "elpf")
    argv = ["eval", "--embeddings", e, "--labels", lab, "--pairs", p, "--folds", f, "--distance", "euclidean"]
    out, picture = tmp_path / "m.json", tmp_path / "c.svg"
    assert main([*argv, "--out", str(out), "--picture", str(picture)]) == 0
    # Distances 1 and 0.5 of one class, 3 and 2 of two. Thresholds 1.25 (from fold 1) and 2 (from fold 0).
    found = read(out)
    assert found["thresholds"] == [1.25, 2.0]
    assert found["roc_auc"] == 1.0
    assert picture.read_bytes().startswith(b"<?xml")


def test_curves_agree_with_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, 300) / 7.0  # with ties
    positive = rng.random(300) < 0.3
    found = curves.binary_curves(torch.from_numpy(scores), torch.from_numpy(positive), "")
    false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
    # Ratios of small integers: equal to the last rounding.
    np.testing.assert_allclose(found.false_rate, false_rate, rtol=1e-15)
    np.testing.assert_allclose(found.true_rate, true_rate, rtol=1e-15)
    precision, recall, _ = precision_recall_curve(positive, scores)
    np.testing.assert_allclose(found.precision.flip(0), precision[:-1], rtol=1e-15)
    np.testing.assert_allclose(found.recall.flip(0), recall[:-1], rtol=1e-15)


def test_retrieval_curves_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    emb = torch.randn(23, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (23,), generator=generator)
    labels[0] = 99  # a query without a positive
    found = curves.retrieval_curves(emb, labels, "euclidean", "reference")
    precisions: list[list[float]] = []
    hits: list[list[float]] = []
    for query in range(23):
        others = [i for i in range(23) if i != query]
        others.sort(key=lambda i, q=query: float((emb[i] - emb[q]).norm()))
        right = [bool(labels[i] == labels[query]) for i in others]
        if not any(right):
            continue
        at = [rank for rank, good in enumerate(right, start=1) if good]
        needed = [max(1, -(-percent * len(at) // 100)) for percent in range(101)]
        precisions.append([n / at[n - 1] for n in needed])
        wrong = [(rank - place) / right.count(False) for place, rank in enumerate(at, start=1)]
        hits.append([float(np.mean([w <= rate for w in wrong])) for rate in found.false_rate.numpy()])
    np.testing.assert_allclose(found.precision, np.mean(precisions, 0), rtol=1e-12)
    np.testing.assert_allclose(found.true_rate, np.mean(hits, 0), rtol=1e-12)
    assert found.true_rate[-1] == pytest.approx(1.0)
