"""``ala-metric eval``: queries of one file searched in the gallery of another, and classes with names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric.cli import curves
from ala_metric.cli.main import main


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments of ``eval`` for 5 queries and a gallery of 11, of other classes in part."""
    generator = np.random.default_rng(0)
    arrays = {
        "embeddings": generator.normal(size=(5, 3)).astype(np.float32),
        "labels": np.array([0, 1, 2, 0, 9]),
        "gallery": generator.normal(size=(11, 3)),  # float64: another model's writer
        "gallery-labels": np.arange(11) % 4,
    }
    argv = ["eval"]
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        argv += [f"--{name}", str(tmp_path / f"{name}.npy")]
    return argv


def measured(argv: list[str], out: Path) -> Any:
    assert main([*argv, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def brute_force(folder: Path) -> dict[int, float]:
    """Recall@k by the angle, a loop over the queries."""
    emb, labels, ref, ref_labels = (
        np.load(folder / f"{name}.npy") for name in ("embeddings", "labels", "gallery", "gallery-labels")
    )
    first = []
    for x, own in zip(emb.astype(float), labels):
        if own in ref_labels:
            cosine = ref @ x / np.linalg.norm(ref, axis=1) / np.linalg.norm(x)
            first.append(1 + int(np.argmax(ref_labels[np.argsort(-cosine)] == own)))
    return {k: float(np.mean([rank <= k for rank in first])) for k in (1, 2, 11)}


@pytest.mark.parametrize("impl", ["auto", "strips", "reference"])
def test_a_gallery_is_searched(
    files: list[str], tmp_path: Path, impl: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured([*files, "--impl", impl, "--k", "1", "2", "11"], tmp_path / "m.json")
    assert found["recall_at_k"] == {str(k): pytest.approx(v) for k, v in brute_force(tmp_path).items()}
    counts = {name: found[name] for name in ("queries", "excluded_queries", "references", "classes")}
    assert counts == {"queries": 4, "excluded_queries": 1, "references": 11, "classes": 5}
    said = capsys.readouterr().out
    assert "embeddings.npy in " in said
    assert "references" in said


def test_depths_fit_the_gallery(files: list[str], tmp_path: Path) -> None:
    assert list(measured(files, tmp_path / "m.json")["recall_at_k"]) == ["1", "10"]


def test_faiss_finds_the_same(files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("faiss", exc_type=Exception)
    one, other = (measured([*files, "--impl", i], tmp_path / f"{i}.json") for i in ("faiss", "reference"))
    assert one == other


def test_classes_with_names_are_numbered_alike_in_both_files(files: list[str], tmp_path: Path) -> None:
    expected = measured(files, tmp_path / "numbers.json")
    # 9 exists only in one file, so that numbers given file by file would not agree
    names = np.array([f"shoe {9 - n}" for n in range(10)])
    for name in ("labels", "gallery-labels"):
        np.save(tmp_path / f"{name}.npy", names[np.load(tmp_path / f"{name}.npy")])
    assert measured(files, tmp_path / "names.json") == expected
    assert measured(files[:5], tmp_path / "own.json")["queries"] == 2  # without a gallery too


def test_curves_of_a_gallery_by_brute_force(tmp_path: Path, files: list[str]) -> None:
    emb, ref = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    found = curves.retrieval_curves(
        emb, torch.tensor([0]), "euclidean", "reference", (ref, torch.tensor([1, 0, 1, 0]))
    )
    # The positives stand at ranks 2 and 4; one and then both of the two negatives come before them.
    assert found.precision[:51].tolist() == [0.5] * 51
    assert found.precision[51:].tolist() == [0.5] * 50
    assert found.true_rate[found.false_rate < 0.5].max() == 0
    assert found.true_rate[found.false_rate >= 0.5].min() == 0.5
    assert main([*files, "--picture", str(tmp_path / "c.svg")]) == 0
    assert (tmp_path / "c.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--embeddings", "e.npy", "--labels", "l.npy", "--gallery", "g.npy"], "needed together"),
        (["run", "--gallery", "g.npy", "--gallery-labels", "l.npy"], "--gallery goes with --embeddings"),
    ],
)
def test_half_a_gallery_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *argv]) == 2
    assert said in capsys.readouterr().err


def test_pairs_are_not_searched(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--pairs", "p.npy", "--folds", "f.npy"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("gallery", np.zeros((11, 4)), "gallery.npy must have 3 columns like"),
        ("gallery", np.zeros((0, 3)), "gallery.npy must hold 1 rows or more"),
        ("gallery-labels", np.arange(10), "gallery-labels.npy must hold [11] classes, got [10]"),
        ("gallery-labels", np.arange(11).astype(str), "numbers in all files or strings in all, got int64 in"),
        ("gallery-labels", np.arange(11) + 20, "none of the 5 queries has a reference of its own class"),
    ],
)
def test_what_is_wrong_with_a_gallery(
    name: str, array: Any, said: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / f"{name}.npy", array)
    assert main(files) == 1
    assert said in capsys.readouterr().err
