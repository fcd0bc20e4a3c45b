"""Two processes: rank 0 validates and decides, both apply."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ala_metric import ALALoss, classification, metrics
from ala_metric.controller import Policy

from .fakes import FakeLoss, FakeMetric, validation_set


def train(rank: int, script: list[Any]) -> dict[str, Any]:
    """What one rank sees of a short run."""
    validations: list[int] = []
    logged: list[Any] = []

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        validations.append(rank)
        return validation_set()

    loss_fn = ALALoss(
        FakeLoss(3),
        FakeMetric(script),
        validate,
        total_steps=100,
        every=2,
        offsets="all",
        seed=rank,  # different seeds: without rank 0's word the ranks would part
        logger=logged.append,
    )
    outcome = "done"
    try:
        for _ in range(17):
            loss_fn(torch.ones(2, 2))
    except RuntimeError as error:
        outcome = str(error)
    return {
        "outcome": outcome,
        "phi": loss_fn.phi.tolist(),
        "history": [(record.phi, record.reward) for record in loss_fn.history],
        "validations": len(validations),
        "logged": len(logged),
    }


KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "all pairs": {"off_diagonal": True},  # 5,050: the controller of many parameters
    "top confusions": {"off_diagonal": True, "top_confusions": 5},
}
CLASSES = 100


def classify(rank: int, kind: str) -> dict[str, Any]:
    """The classification loss on one rank; only rank 0 has validation outputs."""
    generator = torch.Generator().manual_seed(7)
    outputs = torch.randn(4 * CLASSES, CLASSES, generator=generator)
    targets = torch.arange(4 * CLASSES) % CLASSES

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        outputs.mul_(1.05)  # what is confused changes
        return (outputs, targets) if rank == 0 else (outputs * float("nan"), targets)

    loss_fn = ALALoss(
        classification.AdaptiveClassificationLoss(CLASSES, **KINDS[kind]),
        metrics.ClassificationError(),
        validate,
        total_steps=100,
        every=2,
        offsets=(0,),
        seed=rank,
    )
    logits = outputs[rank::2].clone().requires_grad_()
    for _ in range(8):
        loss_fn(logits, targets[rank::2]).backward()
    pairs = loss_fn.loss.pairs
    return {
        "phi": loss_fn.phi.tolist(),
        "pairs": None if pairs is None else pairs.tolist(),
        "records": [(record.phi, record.reward, record.summary) for record in loss_fn.history],
    }


class Wordless(FakeLoss):
    """Does not declare how many statistics it has."""

    statistics_width = None


def given_policy(rank: int, broken: bool) -> tuple[int, str]:
    """Validations in the constructor, and what it raised; only rank 0 has a validation set, or none has."""
    calls: list[int] = []

    def validate() -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(rank)
        if broken or rank > 0:
            raise ValueError("no data")
        return validation_set()

    try:
        loss_fn = ALALoss(
            Wordless(3, width=2), FakeMetric(), validate, total_steps=10, every=2, policy=Policy(2)
        )
        loss_fn.settle_width()
    except (ValueError, RuntimeError) as error:
        return len(calls), str(error)
    return len(calls), "done"


def drawn(rank: int) -> list[Any]:
    """Parameters at the start and after some steps of a run whose ranks have other seeds."""
    loss_fn = ALALoss(
        FakeLoss(3, low=0.0, high=1.0),
        FakeMetric(),
        validation_set,
        total_steps=10,
        every=2,
        mode="random_static",
        seed=5 + rank,
    )
    start = loss_fn.phi.tolist()
    for _ in range(5):
        loss_fn(torch.ones(2, 2))
    return [start, loss_fn.phi.tolist()]


def work(rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    well = train(rank, [float(i % 3) for i in range(20)])
    failing = [train(rank, [0.0] * calls + [RuntimeError("no data")]) for calls in (0, 1)]
    classified = {kind: classify(rank, kind) for kind in KINDS}
    given = [given_policy(rank, broken) for broken in (False, True)]
    results.put((rank, well, failing, classified, given, drawn(rank)))
    results.close()
    results.join_thread()
    dist.barrier()
    os._exit(0)  # gloo aborts now and then while two processes take their connections down


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    if not dist.is_available():
        pytest.skip("torch without torch.distributed")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    children = [context.Process(target=work, args=(rank, store, results)) for rank in range(2)]
    for child in children:
        child.start()
    found = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join(timeout=30)
        assert child.exitcode == 0
    return sorted(found, key=lambda result: result[0])


def test_rank_zero_decides_and_all_ranks_apply(ranks: list[Any]) -> None:
    first, second = (found[1] for found in ranks)
    assert (first["outcome"], second["outcome"]) == ("done", "done")
    assert first["phi"] == second["phi"]
    assert first["history"] == second["history"]
    assert len(set(first["history"])) > 1
    assert (first["validations"], second["validations"]) == (16, 0)
    assert (first["logged"], second["logged"]) == (8, 0)


@pytest.mark.parametrize("where", [0, 1], ids=["between steps", "at a step"])
def test_a_failure_on_rank_zero_reaches_the_others(ranks: list[Any], where: int) -> None:
    first, second = (found[2][where]["outcome"] for found in ranks)
    assert first == "no data"
    assert second == "rank 0 failed: RuntimeError: no data"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_class_correlations_are_the_same_on_all_ranks(ranks: list[Any], kind: str) -> None:
    first, second = (found[3][kind] for found in ranks)
    assert first == second == classify(0, kind)  # as in one process
    assert first["phi"] != torch.eye(CLASSES).tolist()
    assert len(first["records"]) == 4 - 1  # the fourth is due on the call after the last
    assert (first["pairs"] is None) == (kind != "top confusions")


def test_rank_zero_alone_looks_for_the_width_of_a_given_policy(ranks: list[Any]) -> None:
    first, second = (found[4] for found in ranks)
    assert first == [(1, "done"), (1, "no data")]
    assert second == [(0, "done"), (0, "rank 0 failed: ValueError: no data")]


def test_a_random_start_is_that_of_rank_zero(ranks: list[Any]) -> None:
    first, second = (found[5] for found in ranks)
    assert first == second == drawn(0)
    assert first != drawn(1)
