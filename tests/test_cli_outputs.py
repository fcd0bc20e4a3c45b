"""Results reach their files whatever happens to the output, and a file that cannot be costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import training
from ala_metric._files import atomic_write_bytes
from ala_metric.cli import experiment, runs
from ala_metric.cli.main import main

from .make_datasets import make_cifar10

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def arrays(tmp_path: Path) -> list[str]:
    """``eval`` of 8 rows of two classes, with pairs in two folds beside them."""
    emb = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    pairs = np.array([[0, 1], [0, 4], [2, 3], [2, 6], [4, 5], [1, 5], [6, 7], [3, 7]])
    for name, array in {"e": emb, "l": np.arange(8) // 4, "p": pairs, "f": np.arange(8) // 4}.items():
        np.save(tmp_path / f"{name}.npy", array)
    return ["eval", "--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "l.npy")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", "--data", "digits", "--steps", "2", "--dim", "4", "--out", str(folder)]) == 0
    return folder


# --- a target that cannot be


def no_work(*args: Any, **keywords: Any) -> Any:
    raise AssertionError("work was done before the target was looked at")


@pytest.mark.parametrize(
    "argv",
    [
        ["policy", "train", "OUT"],
        ["policy", "apply", "p", "--fine-tune", "--save", "OUT"],
        ["tune", "--out", "OUT"],
        ["eval", "RUN", "--out", "OUT"],
        ["eval", "--embeddings", "e.npy", "--labels", "l.npy", "--out", "OUT"],
        ["eval", "RUN", "--picture", "OUT.png"],
        ["demo", "--out", "OUT.html"],
    ],
)
def test_a_target_is_looked_at_before_any_work(
    argv: list[str],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ala_metric.controller import Policy, save_policy

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "load_data", no_work)
    save_policy("p", Policy())
    suffix = argv[-1].removeprefix("OUT")

    def said(out: str) -> str:
        given = [str(run_folder) if part == "RUN" else part for part in argv[:-1]]
        assert main([*given, out + suffix]) == 2
        return capsys.readouterr().err

    (tmp_path / f"folder{suffix}").mkdir()
    assert f"folder{suffix} is a folder, give a file" in said("folder")
    assert f"the folder of no/such{suffix} does not exist" in said("no/such")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"the folder of new{suffix} is not writable" in said("new")


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        atomic_write_bytes(tmp_path / "no" / "file", b"")
    assert error.value.filename == str(tmp_path / "no" / "file")
    assert ".tmp" not in str(error.value)


# --- the output goes nowhere


def shell(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with a reader that has gone: the read end is closed before it starts."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-m", "ala_metric.cli", *command],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_loses_no_result(arrays: list[str], tmp_path: Path, unbuffered: str) -> None:
    done = shell([*arrays, "--out", str(tmp_path / "r.json")], PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "rror" not in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["queries"] == 8


def test_an_ascii_terminal_loses_no_result(arrays: list[str], tmp_path: Path) -> None:
    pairs = ["--pairs", str(tmp_path / "p.npy"), "--folds", str(tmp_path / "f.npy")]
    command = [sys.executable, "-m", "ala_metric.cli", *arrays, *pairs, "--out", str(tmp_path / "r.json")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "accuracy ? standard error" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["distance"] == "cosine"


def test_json_has_no_infinity(tmp_path: Path) -> None:
    value = {"thresholds": (1.0, -float("inf")), "deep": [{"x": float("nan"), "y": np.float64("inf")}]}
    runs.write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"thresholds": [1.0, "-inf"], "deep": [{"x": "nan", "y": "inf"}]}


# --- what eval says and writes


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_eval_says_which_distance(
    distance: str, arrays: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arrays, "--distance", distance, "--out", str(tmp_path / "r.json")]) == 0
    assert f"e.npy, {distance} distance\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["distance"] == distance


def test_eval_keeps_the_metrics_of_train(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_folder / "metrics.json").read_bytes()
    for options in (["--k", "1"], ["--distance", "euclidean"]):
        assert main(["eval", str(run_folder / "checkpoint.pt"), *options]) == 0
        assert "not written: metrics.json holds what train measures" in capsys.readouterr().out
        assert (run_folder / "metrics.json").read_bytes() == before
    (run_folder / "metrics.json").unlink()
    assert main(["eval", str(run_folder / "checkpoint.pt")]) == 0
    assert (run_folder / "metrics.json").read_bytes() == before


def test_one_class_is_said(arrays: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arrays) == 0
    assert "no query has a negative" not in capsys.readouterr().out
    np.save(tmp_path / "l.npy", np.zeros(8, np.int64))
    assert main(arrays) == 0
    assert "one class: no query has a negative" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("e", np.zeros((1, 3), np.float32), "e.npy must hold 2 rows or more, [N, D], got [1, 3]"),
        ("e", np.zeros((0, 3), np.float32), "e.npy must hold 2 rows or more, [N, D], got [0, 3]"),
        ("e", np.zeros(8, np.float32), "[N, D], got [8]"),
        ("l", np.zeros((8, 1), np.int64), "l.npy must hold [8] classes, got [8, 1]"),
        ("e", np.array([list("aabbccdd")] * 8), "expected numbers, written by numpy.save; got <U1"),
        ("l", np.array(list("aabbccdd"), dtype=object), "an array of dtype str, not of objects"),
        ("l", np.arange(8).astype("datetime64[s]"), "or strings"),
        ("l", b"0\n0\n1\n1\n", "written by numpy.save"),
    ],
)
def test_eval_says_what_is_wrong_with_an_array(
    name: str,
    array: Any,
    said: str,
    arrays: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"{name}.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    assert main(arrays) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "allow_pickle" not in error


def test_eval_reads_foreign_byte_orders_and_npz(arrays: list[str], tmp_path: Path) -> None:
    def measured(*argv: str) -> bytes:
        assert main([*argv, "--out", str(tmp_path / "r.json")]) == 0
        return (tmp_path / "r.json").read_bytes()

    before = measured(*arrays)
    emb, labels = np.load(tmp_path / "e.npy"), np.load(tmp_path / "l.npy")
    np.save(tmp_path / "e.npy", emb.astype(">f4"))
    np.save(tmp_path / "l.npy", labels.astype(">i8"))
    assert measured(*arrays) == before
    np.savez(tmp_path / "e.npz", emb)
    np.savez(tmp_path / "l.npz", labels)
    assert measured(*(part.replace(".npy", ".npz") for part in arrays)) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--root", "x"], "--root and --device go with a run"),
        (["--device", "cpu"], "--root and --device go with a run"),
        (["--pairs", "p.npy", "--folds", "f.npy", "--k", "1"], "--k is for retrieval"),
    ],
)
def test_eval_refuses_options_that_would_change_nothing(
    more: list[str], said: str, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arrays, *more]) == 2
    assert said in capsys.readouterr().err


def test_a_classification_run_has_neither_neighbours_nor_distances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_cifar10(tmp_path), str(tmp_path / "run")
    argv = ["--data", "cifar10", "--root", str(root), "--steps", "2", "--mode", "fixed", "--out", out]
    assert main(["train", *argv]) == 0
    assert main(["eval", out, "--k", "1"]) == 2
    assert "--k is for retrieval; cifar10 is for classification" in capsys.readouterr().err
    assert main(["eval", out, "--distance", "euclidean"]) == 2
    assert "--distance compares embeddings" in capsys.readouterr().err


# --- ends that are expected


def test_a_loss_that_diverges_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverged(*args: Any, **keywords: Any) -> Any:
        raise FloatingPointError("the loss of step 3 is nan")

    monkeypatch.setattr(training, "fit", diverged)
    assert main(["tune", "--data", "digits", "--steps", "20"]) == 1
    assert capsys.readouterr().err == "ala-metric tune: error: the loss of step 3 is nan\n"


def test_plot_names_what_a_foreign_history_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history.json").write_text("{}")
    assert main(["plot", str(tmp_path)]) == 1
    assert "is not the history of a run: it has no 'records'" in capsys.readouterr().err


def test_ctrl_c_during_tune_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any, **keywords: Any) -> Any:
        raise training.Interrupted(signal.SIGINT, step=7, saved_to=None)

    monkeypatch.setattr(training, "fit", stopped)
    assert main(["tune", "--data", "digits", "--steps", "20"]) == 130
    assert capsys.readouterr().err.endswith("ala-metric tune: stopped after step 7, not saved\n")
