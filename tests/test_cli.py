"""The commands do what they say: files, exit codes, one clear line on an error, the same numbers twice."""

from __future__ import annotations

import csv
import importlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import training
from ala_metric.cli import console, experiment
from ala_metric.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--data", "digits", "--steps", "12", "--every", "4", "--dim", "8", "--samples-per-class", "3"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", *SHORT, "--out", str(folder)]) == 0
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    """Controller steps of a run without their timings."""
    found: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())["records"]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = training.load_checkpoint(folder / "checkpoint.pt")["model"]
    return found


def test_train_writes_a_checkpoint_the_history_and_the_metrics(run_folder: Path) -> None:
    history = json.loads((run_folder / "history.json").read_text())
    assert history["options"]["data"] == "digits"
    assert history["options"]["steps"] == 12
    assert [record["step"] for record in history["records"]] == [4, 8]
    assert len(history["phi_names"]) == 10
    assert all(len(record["phi"]) == 10 for record in history["records"])
    with open(run_folder / "history.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == [4, 8]
    assert [float(row["phi_3"]) for row in table] == [record["phi"][2] for record in history["records"]]
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert set(metrics["recall_at_k"]) == {"1", "10", "100"}
    assert 0 < metrics["map_at_r"] <= metrics["r_precision"] <= 1


def test_eval_finds_what_train_found(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (run_folder, run_folder / "checkpoint.pt"):
        out = tmp_path / "metrics.json"
        assert main(["eval", str(given), "--out", str(out)]) == 0
        assert json.loads(out.read_text()) == json.loads((run_folder / "metrics.json").read_text())
        assert "Recall@100" in capsys.readouterr().out


def test_same_seed_same_run_other_seed_another(run_folder: Path, tmp_path: Path) -> None:
    assert main(["train", *SHORT, "--out", str(tmp_path / "same")]) == 0
    assert main(["train", *SHORT, "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert records(tmp_path / "same") == records(run_folder)
    for name, value in weights(run_folder).items():
        assert torch.equal(weights(tmp_path / "same")[name], value)
    assert records(tmp_path / "other") != records(run_folder)


@pytest.mark.parametrize("mode", ["fixed", "uniform", "random_walk", "random_static"])
@pytest.mark.parametrize("loss", ["mixture", "focal"])
def test_every_mode_and_loss(mode: str, loss: str, tmp_path: Path) -> None:
    short = [*SHORT, "--steps", "4", "--every", "2", "--loss", loss, "--mode", mode, "--miner", "none"]
    assert main(["train", *short, "--out", str(tmp_path / "run")]) == 0
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())["phi_names"]) == (
        10 if loss == "mixture" else 2
    )


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stopped"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    hook = (
        "import os, signal, sys\n"
        "from ala_metric.cli import main, train\n"
        "from ala_metric import training\n"
        "fit = training.fit\n"
        "def stopped(*args, on_step, **keywords):\n"
        "    def seen(step, loss):\n"
        "        on_step(step, loss)\n"
        "        if step == 7: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return fit(*args, on_step=seen, **keywords)\n"
        "training.fit = stopped\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", hook, "train", *SHORT, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 130, done.stderr
    assert "stopped after step 7" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(records(folder)) == 1
    assert not (folder / "metrics.json").exists()
    assert main(["train", "--out", str(folder), "--resume"]) == 0
    shown = capsys.readouterr().err
    assert "step 8/12" in shown
    assert "step 6/12" not in shown
    assert records(folder) == records(run_folder)
    for name, value in weights(run_folder).items():
        assert torch.equal(weights(folder)[name], value)


def test_a_run_is_neither_overwritten_nor_mixed(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_folder / "checkpoint.pt").read_bytes()
    assert main(["train", *SHORT, "--out", str(run_folder)]) == 2
    assert "holds a run already; go on with --resume" in capsys.readouterr().err
    assert main(["train", "--out", str(run_folder), "--resume", "--dim", "9"]) == 2
    assert "has dim = 8, got 9" in capsys.readouterr().err
    assert main(["train", *SHORT, "--out", str(tmp_path), "--resume"]) == 2
    assert "to go on from" in capsys.readouterr().err
    assert (run_folder / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_draws_a_run(run_folder: Path, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"picture{suffix}"
    assert main(["plot", str(run_folder), "--out", str(out)]) == 0
    start = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    assert out.read_bytes().startswith(start)
    assert out.stat().st_size > 5000


def test_eval_of_given_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    emb = np.array([[0.0], [1.0], [1.4], [4.0]], dtype=np.float32)
    labels = np.array([0, 0, 1, 0])
    np.save(tmp_path / "e.npy", emb)
    np.save(tmp_path / "l.npy", labels)
    save_file({"any": emb}, tmp_path / "e.safetensors")
    for name in ("e.npy", "e.safetensors"):
        argv = [
            "--embeddings",
            str(tmp_path / name),
            "--labels",
            str(tmp_path / "l.npy"),
            "--distance",
            "euclidean",
        ]
        assert main(["eval", *argv, "--k", "1", "2", "--out", str(tmp_path / "m.json")]) == 0
        found = json.loads((tmp_path / "m.json").read_text())
        # By hand: 0 -> 1 right; 1 -> 1.4 wrong, then right; 4 -> 1.4 wrong, then right; 1.4 has no partner.
        assert found["recall_at_k"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(1.0)}
        assert (found["queries"], found["excluded_queries"]) == (3, 1)
    assert "Recall@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["eval"], 2, "give either a run, or --embeddings with --labels"),
        (["eval", "--labels", "l.npy"], 2, "needed together"),
        (["eval", "nowhere"], 2, "does not exist"),
        (["eval", "--embeddings", "e.txt", "--labels", "e.txt"], 2, "must end in .npy, .npz or .safetensors"),
        (["eval", "--embeddings", "none.npy", "--labels", "none.npy"], 1, "cannot read none.npy"),
        (["plot"], 2, "give the folder of a run"),
        (["plot", "nowhere"], 2, "has no history.json"),
        (
            ["train", "--data", "digits", "--classes-per-batch", "11"],
            2,
            "classes_per_batch must be at most 10",
        ),
        (["demo", "--steps", "5", "--every", "5"], 2, "every must be below steps = 5"),
        (["demo", "--out", "report.txt"], 2, "must end in .html"),
        (["demo", "--out", "nowhere/report.html"], 2, "folder of nowhere/report.html does not exist"),
    ],
)
def test_an_error_is_one_clear_line(
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


def test_a_short_demo_acts_more_often_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ala_metric.cli import demo, side_by_side

    def here(jobs: Any, workers: int, bars: Any) -> list[dict[str, Any]]:
        channel = {"stop": threading.Event(), "messages": queue.SimpleQueue()}
        monkeypatch.setattr(side_by_side, "_channel", channel)
        return [side_by_side.run_one(name, *job) for name, job in jobs.items()]

    monkeypatch.setattr(demo.side_by_side, "run_all", here)
    out = tmp_path / "d.html"
    argv = ["demo", "--data", "digits", "--seeds", "1", "--queries", "2", "--out", str(out)]
    assert main([*argv, "--steps", "5"]) == 0
    assert "an action every 1 steps" in out.read_text()


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="cannot read"):
        main(["eval", "--embeddings", "none.npy", "--labels", "none.npy", "--debug"])


def test_a_damaged_checkpoint_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(content)
    assert main(["eval", str(folder)]) == 1
    assert "damaged" in capsys.readouterr().err


def test_pickled_arrays_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = str(tmp_path / "e.npy")
    assert main(["eval", "--embeddings", path, "--labels", path]) == 1
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("matplotlib", ["plot", "RUN"]),
        ("sklearn", ["train", "--data", "digits"]),
        ("yaml", ["train", "--config", "c.yaml"]),
    ],
)
def test_a_missing_part_names_its_command(
    module: str,
    argv: list[str],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "c.yaml").write_text("steps: 1\n")
    monkeypatch.chdir(tmp_path)

    def without(name: str) -> Any:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.import_module(name)

    monkeypatch.setattr(console, "import_module", without)
    assert main([str(run_folder) if part == "RUN" else part for part in argv]) == 1
    error = capsys.readouterr().err
    assert f"needs {module}: pip install 'ala-metric[cli]'" in error


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress({"a": 20}) as bar:
        for done in range(21):
            bar.update("a", done, "note")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("a: step 2/20")


def test_progress_with_rich_counts(capsys: pytest.CaptureFixture[str]) -> None:
    bars = console.RichProgress({"a": 20, "b": 5})
    bars.update("a", 7, "note")
    assert [task.completed for task in bars.bars.tasks] == [7, 0]


def test_doctor_says_what_runs_where_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ala_metric import ops
    from ala_metric.cli import doctor

    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert {op: choice["impl"] for op, choice in found["devices"]["cpu"]["ops"].items()} == {
        op: choice.impl for op, choice in ops.explain("cpu").items()
    }
    assert all(choice["reason"] for choice in found["devices"]["cpu"]["ops"].values())

    monkeypatch.setattr(doctor, "is_installed", lambda module: module != "faiss")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "faiss: comparing retrieval with faiss; pip install 'ala-metric[faiss]'" in said
    assert "because" in said


def test_nearest_leaves_the_query_out_and_uses_the_angle() -> None:
    from ala_metric.cli.side_by_side import nearest

    rows = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.1, 0.1], [0.0, 3.0], [-1.0, 0.0]])
    assert nearest(rows, [0, 3], count=3) == [[1, 2, 3], [2, 1, 0]]


@pytest.mark.slow
def test_demo_writes_the_report_and_is_deterministic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for name in ("a.html", "b.html"):
        argv = ["--out", str(tmp_path / name), "--picture", str(tmp_path / "demo.png")]
        assert main(["demo", "--quick", *argv]) == 0
        said.append(capsys.readouterr().out)
    table = [
        [line for line in text.splitlines() if line.startswith(("Recall@", "R-prec", "MAP@R"))]
        for text in said
    ]
    assert len(table[0]) == 5
    assert table[0] == table[1]
    assert "training steps over 2 runs" in said[0]
    assert "adaptive loss" in said[0]
    page = (tmp_path / "a.html").read_text()
    assert page.count("<svg role=") == 3
    assert page.count('class="query"') == 2 * 3
    assert (tmp_path / "demo.png").stat().st_size > 20_000


def test_the_demo_pairs_weights_and_batches() -> None:
    from ala_metric.cli.demo import train_options
    from ala_metric.cli.options import DemoOptions

    options = DemoOptions(data="digits", steps=3, every=10, dim=8)
    splits = experiment.load_data("digits")
    fixed, adaptive = (
        experiment.build(train_options(options, mode, 5), splits) for mode in ("fixed", "paper")
    )
    for a, b in zip(fixed.model.parameters(), adaptive.model.parameters()):
        assert torch.equal(a, b)
    # No action before step 10, so the same batches give the same losses to the bit.
    assert fixed.fit().losses == adaptive.fit().losses


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_demo_takes_its_workers_along(number: int, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ala_metric.cli", "demo", "--data", "digits", "--steps", "1000"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "r.html")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # a run in the background of a script ignores SIGINT, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            assert any("step 100/1000" in line for line in process.stderr)
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            children = [int(pid) for pid in listed.split()]
            assert len(children) >= 2
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status, error
    assert "Traceback" not in error
    until = time.monotonic() + 30
    while any(map(runs, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(runs, children))
    assert not (tmp_path / "r.html").exists()


def runs(pid: int) -> bool:
    """Whether the process is there and is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- children


@pytest.mark.parametrize("mode", ["race", "paired"])
def test_train_with_children(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", *SHORT, "--mode", mode, "--budget", "2", "--out", str(tmp_path / "run")]
    assert main(call) == 0
    assert "compute " in capsys.readouterr().out
    told = json.loads((tmp_path / "run" / "children.json").read_text())
    assert told["stages"][-1]["end"] == 12
    assert told["compute"]["trainings"] > 1
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history["metric"] == "recall@1,2,4,8 at the rungs"
    assert [record["step"] for record in history["records"]] == sorted(
        {stage["end"] for stage in told["stages"][:-1] if any(arm["metric"] for arm in stage["arms"])}
    )
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["plot", str(tmp_path / "run")]) == 0
    before = weights(tmp_path / "run")
    assert main([*call, "--resume"]) == 0
    after = weights(tmp_path / "run")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--mode", "race", "--budget", "1"], "budget must be above 1, one training; got 1.0"),
        (["--mode", "race", "--children", "2"], "children share the controller of mode paper, got mode race"),
    ],
)
def test_children_that_cannot_be_are_refused(
    extra: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SHORT, *extra, "--out", str(tmp_path / "run")]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
