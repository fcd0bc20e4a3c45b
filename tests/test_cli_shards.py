"""Ranks that share an evaluation find what one process finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ala_metric import metrics
from ala_metric.cli import shards
from ala_metric.cli.main import main

from .make_datasets import make_sop

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("world", [1, 2, 5, 31])
def test_sums_of_parts_are_the_sums_of_all(distance: str, world: int, impl: str) -> None:
    generator = torch.Generator().manual_seed(world)
    emb = torch.randn(31, 4, generator=generator)
    labels = torch.randint(0, 6, (31,), generator=generator)
    emb[7] = emb[3]  # duplicates, zero vectors and a class of one
    emb[8] = emb[3]
    emb[11:14] = 0
    labels[20] = 77
    parts = torch.arange(31).tensor_split(world)
    sums = sum(shards.query_sums(emb, labels, rows, (1, 3, 30), distance, impl) for rows in parts)
    found = asdict(shards.result_of_sums(sums, (1, 3, 30)))
    expected = asdict(metrics.retrieval(emb, labels, k=(1, 3, 30), distance=distance, impl=impl))
    assert found.pop("recall_at_k") == expected.pop("recall_at_k")
    assert found.pop("queries") == 30
    assert expected["tied_queries"] > 0
    # Sums of 31 numbers in another order.
    for name in ("r_precision", "map_at_r", "mrr", "excluded_queries", "tied_queries"):
        assert found[name] == pytest.approx(expected[name], rel=1e-13), name


@pytest.mark.parametrize("world", [1, 3])
def test_sums_of_parts_that_search_a_gallery(world: int) -> None:
    generator = torch.Generator().manual_seed(world)
    emb, ref = torch.randn(7, 4, generator=generator), torch.randn(29, 4, generator=generator)
    labels, ref_labels = torch.arange(7) % 5, torch.arange(29) % 4  # class 4 is not in the gallery
    ref[3] = emb[3]  # found: a gallery may hold copies
    sums = sum(
        shards.query_sums(emb, labels, rows, (1, 29), "euclidean", "reference", (ref, ref_labels))
        for rows in torch.arange(7).tensor_split(world)
    )
    found = asdict(shards.result_of_sums(sums, (1, 29)))
    expected = metrics.retrieval(emb, labels, ref_emb=ref, ref_labels=ref_labels, k=(1, 29), impl="reference")
    assert found["excluded_queries"] == 1
    for name, value in asdict(expected).items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-13)), name


def test_no_query_with_a_positive_is_an_error() -> None:
    sums = shards.query_sums(torch.eye(3), torch.arange(3), torch.arange(3), (1,), "euclidean", "reference")
    with pytest.raises(ValueError, match="none of the 3 queries"):
        shards.result_of_sums(sums, (1,))


def torchrun(ranks: int, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "-m", "ala_metric.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_torchrun_finds_what_one_process_finds(tmp_path: Path) -> None:
    root = make_sop(tmp_path / "sop", test_classes=5, per_class=3)
    options = ["--steps", "3", "--image-size", "16", "--loader-workers", "0", "--samples-per-class", "2"]
    run = tmp_path / "run"
    assert main(["train", "--data", "sop", "--root", str(root), *options, "--out", str(run)]) == 0
    done = torchrun(2, "eval", str(run), "--out", str(tmp_path / "m.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test split of") == 1
    found, expected = (json.loads(path.read_text()) for path in (tmp_path / "m.json", run / "metrics.json"))
    assert found.pop("distance") == expected.pop("distance") == "cosine"
    for key, value in expected.items():
        # Batches of another size may round an embedding differently, the sums their order.
        assert found[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.slow
def test_an_error_ends_all_ranks(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.full((6, 2), np.nan, np.float32))
    np.save(tmp_path / "l.npy", np.array([0, 0, 0, 1, 1, 1]))
    given = ["--embeddings", str(tmp_path / "e.npy"), "--labels", str(tmp_path / "l.npy")]
    done = torchrun(2, "eval", *given, "--out", str(tmp_path / "m.json"))
    assert done.returncode != 0
    assert "NaN" in done.stderr
    assert not (tmp_path / "m.json").exists()
