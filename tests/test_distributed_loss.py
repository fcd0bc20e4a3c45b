"""DistributedLoss on 2 and 3 gloo processes: loss and gradient of one process on the joined batch."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers, regularizers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import Tensor, nn

from ala_metric import ALALoss, _gather, losses, metrics
from ala_metric.losses._base import positive_pairs

PHI = (0.9, 0.3, 0.7, 0.2, 0.8, 0.8, 0.4, 0.6, 0.5, 0.1)
RAGGED = (7, 4, 1)
EVEN = (5, 5, 5)
EMPTY = (6, 0, 4)


def mixture(**kwargs: Any) -> Any:
    return losses.DistanceMixtureLoss(PHI, **kwargs)


def focal(**kwargs: Any) -> Any:
    return losses.FocalWeightingLoss(**kwargs)


def strips(**kwargs: Any) -> Any:
    return losses.FocalWeightingLoss(impl="strips", **kwargs)


def contrastive() -> Any:
    return pml.ContrastiveLoss(neg_margin=2.5)


Case = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any], tuple[int, ...], int]


def _wrap(**kwargs: Any) -> Callable[[Any], Any]:
    return lambda loss: losses.DistributedLoss(loss, **kwargs)


def _mined(loss: Any) -> Any:
    return lambda x, labels: loss(x, labels, miners.MultiSimilarityMiner(0.4)(x, labels))


def _same(loss: Any) -> Any:
    return loss


def _memory(loss: Any) -> Any:
    return losses.CrossBatchMemory(loss, 4, 19)


def _views(wrap: Callable[[Any], Any], **kwargs: Any) -> Callable[[Any], Any]:
    """Two views of the batch instead of labels."""

    def make(loss: Any) -> Any:
        views = losses.SelfSupervisedLoss(wrap(loss), **kwargs)
        return lambda x, labels: views(x, x.flip(1) + 0.1)

    return make


def alike(loss: Any) -> Any:
    """An ALALoss around it that does nothing before the hundredth step."""
    x, labels = batch((9,), 5)[0]
    return ALALoss(loss, metrics.RecallAtK((1,)), validate=lambda: (x, labels), total_steps=100, every=100)


WEIGHTED = {"reducer": reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 0.5]))}
THRESHOLD = {"reducer": reducers.ThresholdReducer(low=1.0)}
REGULARIZED = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.4}
# name: loss, wrapper on every rank, wrapper in one process, rows of each rank, steps
CASES: dict[str, Case] = {
    f"{loss.__name__} {'ring' if ring else 'gather'} {sizes}": (loss, _wrap(ring=ring), _same, sizes, 1)
    for loss in (mixture, focal, strips)
    for ring in (False, True)
    for sizes in (EVEN, RAGGED, EMPTY)
}
for _ring in (False, True):
    CASES |= {
        f"weighted {_ring}": (lambda: focal(**WEIGHTED), _wrap(ring=_ring), _same, RAGGED, 1),
        f"threshold {_ring}": (lambda: mixture(**THRESHOLD), _wrap(ring=_ring), _same, RAGGED, 1),
        f"regularized {_ring}": (lambda: mixture(**REGULARIZED), _wrap(ring=_ring), _same, RAGGED, 1),
    }
CASES |= {
    "PML contrastive": (contrastive, _wrap(), _same, RAGGED, 1),
    "PML multi-similarity": (pml.MultiSimilarityLoss, _wrap(), _same, RAGGED, 1),
    "adapted": (lambda: losses.AdaptPML(contrastive(), {"neg_margin": (1, 3)}), _wrap(), _same, RAGGED, 1),
    "miner": (mixture, _wrap(miner=miners.MultiSimilarityMiner(0.4)), _mined, RAGGED, 1),
    "memory mixture": (mixture, _memory, _memory, RAGGED, 4),
    "memory focal": (focal, _memory, _memory, EMPTY, 4),
    "memory PML": (contrastive, _memory, _memory, EVEN, 4),
    "two views": (focal, _views(_wrap()), _views(_same), RAGGED, 1),
    "two views ring": (mixture, _views(_wrap(ring=True)), _views(_same), EMPTY, 1),
    "two views PML": (contrastive, _views(_wrap()), _views(_same), RAGGED, 1),
    "two views adapted": (focal, _views(lambda loss: alike(_wrap()(loss))), _views(_same), RAGGED, 1),
    "two views one way": (
        focal,
        _views(_wrap(), symmetric=False),
        _views(_same, symmetric=False),
        RAGGED,
        1,
    ),
}


def batch(sizes: tuple[int, ...], step: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of all ranks; every rank makes them all."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (sum(sizes),), generator=generator)
    return list(zip(x.split(sizes), labels.split(sizes)))


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 4).double()


def compare(case: Case, ranks: int, rank: int) -> tuple[float, float]:
    """Largest relative error of the loss and of the averaged gradient, over the steps."""
    make, wrap, single, sizes, steps = case
    together, alone = wrap(make()), single(make())
    worst = [0.0, 0.0]
    for step in range(steps):
        parts = batch(sizes[:ranks], step)
        model, twin = model_of(step), model_of(step)
        value = together(model(parts[rank][0]), parts[rank][1])
        value.backward()
        x, labels = (torch.cat(v) for v in zip(*parts))
        with in_one_process():
            expected = alone(twin(x), labels)
        expected.backward()
        worst[0] = max(worst[0], abs(value.item() - expected.item()) / max(1e-30, abs(expected.item())))
        for mine, theirs in zip(model.parameters(), twin.parameters()):
            dist.all_reduce(mine.grad)
            error = (mine.grad / ranks - theirs.grad).norm() / theirs.grad.norm()
            worst[1] = max(worst[1], float(error))
    return worst[0], worst[1]


@contextmanager
def in_one_process() -> Iterator[None]:
    """As if torch.distributed were not in use."""
    known, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        yield
    finally:
        dist.is_initialized = known


def their_wrappers(ranks: int, rank: int) -> dict[str, float]:
    """pytorch-metric-learning's own wrappers around our losses; they report the loss times the ranks."""
    errors = {}
    for make in (mixture, focal, contrastive):
        for mine in (False, True):
            parts = batch(EVEN[:ranks], 0)
            order = [rank] + [r for r in range(ranks) if r != rank]  # theirs puts the own rank first
            x, labels = (torch.cat(v) for v in zip(*(parts[r] for r in order)))
            model, twin = model_of(0), model_of(0)
            own = model(parts[rank][0])
            miner = miners.TripletMarginMiner(0.5, "all")
            mined = DistributedMinerWrapper(miner)(own, parts[rank][1]) if mine else None
            value = DistributedLossWrapper(make())(own, parts[rank][1], mined)
            value.backward()
            joined = twin(x)
            expected = make()(joined, labels, miner(joined, labels) if mine else None)
            expected.backward()
            dist.all_reduce(model.weight.grad)
            error = (model.weight.grad / ranks - twin.weight.grad).norm() / twin.weight.grad.norm()
            errors[f"{make.__name__} {mine}"] = max(
                float(error), abs(value.item() / ranks / expected.item() - 1)
            )
    return errors


def joined_twice(ranks: int, rank: int) -> list[str]:
    """What pytorch-metric-learning's wrapper gets from the losses that join the ranks themselves."""
    x, labels = batch(EVEN[:ranks], 0)[rank]
    x = model_of(0)(x)
    found = []
    for loss in (
        losses.CrossBatchMemory(mixture(), 4, 60),
        losses.CrossBatchMemory(contrastive(), 4, 60),
        losses.AdaptPML(losses.DistributedLoss(contrastive()), {"loss.neg_margin": (0.1, 3)}),
        alike(losses.DistributedLoss(focal())),
    ):
        try:
            found.append(f"the loss was {DistributedLossWrapper(loss)(x, labels)}")
        except TypeError as error:
            found.append(str(error))
    return found


def unsynchronized(ranks: int, rank: int) -> float:
    """The same wrapper around a memory that leaves the joining to it; error of the averaged gradient."""
    together = DistributedLossWrapper(losses.CrossBatchMemory(mixture(), 4, 60, synchronize=False))
    alone = losses.CrossBatchMemory(mixture(), 4, 60)
    worst = 0.0
    for step in range(3):
        parts = batch(EVEN[:ranks], step)
        model, twin = model_of(step), model_of(step)
        together(model(parts[rank][0]), parts[rank][1]).backward()
        x, labels = (torch.cat(v) for v in zip(*parts))
        with in_one_process():
            alone(twin(x), labels).backward()
        dist.all_reduce(model.weight.grad)
        worst = max(worst, float((model.weight.grad / ranks - twin.weight.grad).norm()))
    return worst


def second_derivative(ranks: int, rank: int) -> tuple[float, str]:
    """Error of the gradient of the squared gradient of all rows, and what the ring says."""
    parts = batch(RAGGED[:ranks], 0)
    x, labels = (torch.cat(v) for v in zip(*parts))
    x = x.requires_grad_()
    own = parts[rank][0].clone().requires_grad_()

    def squared(loss: Any, rows: Tensor, names: Tensor, scale: int) -> Tensor:
        (slope,) = torch.autograd.grad(loss(rows, names), rows, create_graph=True)
        return (slope / scale).square().sum()

    loss = focal(impl="reference")
    squared(losses.DistributedLoss(loss), own, parts[rank][1], ranks).backward()
    squared(loss, x, labels, 1).backward()
    start = sum(RAGGED[:rank])
    expected = x.grad[start : start + len(own)]
    try:
        squared(losses.DistributedLoss(loss, ring=True), own, parts[rank][1], ranks)
        refusal = ""
    except NotImplementedError as error:
        refusal = str(error)
    return float((own.grad - expected).norm() / expected.norm()), refusal


def in_ddp(ranks: int, rank: int) -> float:
    """One step of DistributedDataParallel with an adaptive loss around the wrapper."""
    parts = batch(RAGGED[:ranks], 0)
    model = nn.parallel.DistributedDataParallel(model_of(0))
    validation = batch((9,), 5)[0]
    loss_fn = ALALoss(
        losses.DistributedLoss(mixture(), ring=True),
        metrics.RecallAtK((1,)),
        validate=lambda: (validation[0], validation[1]),
        total_steps=9,
        every=1,
        mode="random_walk",
        seed=rank,
    )
    twin = model_of(0)
    for _ in range(4):
        model.zero_grad()
        loss_fn(model(parts[rank][0]), parts[rank][1]).backward()
    fixed = losses.DistanceMixtureLoss(loss_fn.phi)
    fixed(twin(torch.cat([x for x, _ in parts])), torch.cat([names for _, names in parts])).backward()
    assert len(loss_fn.history) == 3
    return float((model.module.weight.grad - twin.weight.grad).norm() / twin.weight.grad.norm())


def most_rows_held(ranks: int, rank: int) -> int:
    """Rows of the largest block of references that the ring compares with."""
    loss = mixture()
    seen = []
    partial = loss.partial
    loss.partial = lambda x, labels, y, *rest: (seen.append(len(y)), partial(x, labels, y, *rest))[1]
    x, labels = batch(EVEN[:ranks], 0)[rank]
    losses.DistributedLoss(loss, ring=True)(x.requires_grad_(), labels).backward()
    assert len(seen) == 2 * ranks
    return max(seen)


def work(rank: int, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    found: dict[str, Any] = {}
    for ranks in (3, 2):
        if rank >= ranks:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store{ranks}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
        try:
            for name, case in CASES.items():
                found[f"{ranks} {name}"] = compare(case, ranks, rank)
            found[f"{ranks} theirs"] = their_wrappers(ranks, rank)
            found[f"{ranks} twice"] = joined_twice(ranks, rank)
            found[f"{ranks} unsynchronized"] = unsynchronized(ranks, rank)
            found[f"{ranks} second"] = second_derivative(ranks, rank)
            found[f"{ranks} ddp"] = in_ddp(ranks, rank)
            found[f"{ranks} held"] = most_rows_held(ranks, rank)
        except Exception:
            found["failed"] = traceback.format_exc()
            break
        dist.barrier()
        dist.destroy_process_group()
    results.put((rank, found))
    results.close()
    results.join_thread()
    os._exit(0)  # gloo aborts now and then while processes take their connections down


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    if not dist.is_available():
        pytest.skip("torch without torch.distributed")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    folder = str(tmp_path_factory.mktemp("ranks"))
    children = [context.Process(target=work, args=(rank, folder, results)) for rank in range(3)]
    for child in children:
        child.start()
    answers = dict(results.get(timeout=200) for _ in children)
    for child in children:
        child.join(timeout=30)
    for answer in answers.values():
        assert "failed" not in answer, answer["failed"]
    return answers


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_of_one_process(name: str, ranks: int, found: dict[int, Any]) -> None:
    for rank in range(ranks):
        assert max(found[rank][f"{ranks} {name}"]) < 1e-9  # float64 throughout


@pytest.mark.parametrize("ranks", [2, 3])
def test_their_wrappers_around_our_losses(ranks: int, found: dict[int, Any]) -> None:
    for rank in range(ranks):
        assert max(found[rank][f"{ranks} theirs"].values()) < 1e-9


@pytest.mark.parametrize("ranks", [2, 3])
def test_their_wrapper_is_refused_where_the_ranks_are_joined_twice(ranks: int, found: dict[int, Any]) -> None:
    for rank in range(ranks):
        for said in found[rank][f"{ranks} twice"]:
            assert said.startswith("DistributedLossWrapper has joined the rows of the ranks already: use ")
        assert found[rank][f"{ranks} unsynchronized"] < 1e-9


@pytest.mark.parametrize("ranks", [2, 3])
def test_second_derivatives(ranks: int, found: dict[int, Any]) -> None:
    for rank in range(ranks):
        error, refusal = found[rank][f"{ranks} second"]
        assert error < 1e-9
        assert refusal.startswith("DistributedLoss(ring=True) is differentiable once")


@pytest.mark.parametrize("ranks", [2, 3])
def test_distributed_data_parallel_with_ala_loss(ranks: int, found: dict[int, Any]) -> None:
    assert max(found[rank][f"{ranks} ddp"] for rank in range(ranks)) < 1e-9


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ring_holds_one_block_at_a_time(ranks: int, found: dict[int, Any]) -> None:
    assert [found[rank][f"{ranks} held"] for rank in range(ranks)] == [5] * ranks


def test_alone_it_is_the_loss_itself() -> None:
    x, labels = batch((9,), 0)[0]
    for ring in (False, True):
        assert torch.equal(losses.DistributedLoss(mixture(), ring=ring)(x, labels), mixture()(x, labels))
    miner = miners.MultiSimilarityMiner(0.4)
    y, ref_labels = batch((5,), 1)[0]
    found = losses.DistributedLoss(mixture(), miner=miner)(x, labels, ref_emb=y, ref_labels=ref_labels)
    assert torch.equal(found, mixture()(x, labels, miner(x, labels, y, ref_labels), y, ref_labels))
    assert _gather.row_counts(x) == [9]
    assert losses.DistributedLoss(mixture()).phi.shape == (10,)


def test_refusals() -> None:
    x = torch.randn(6, 4)
    for loss_fn in (
        losses.DistributedLoss(mixture()),
        losses.CrossBatchMemory(mixture(), 4, 12),
        losses.DistributedLoss(contrastive()),
    ):
        with pytest.raises(ValueError, match=r"labels must have shape \[6\] .* got \(5,\)"):
            loss_fn(x, torch.arange(5))
        with pytest.raises(TypeError, match="embeddings must be float16, .* got torch.int64"):
            loss_fn(x.long(), torch.arange(6))
    for wrap in (losses.DistributedLoss, lambda loss: losses.CrossBatchMemory(loss, 4)):
        with pytest.raises(TypeError, match="loss must be a loss .* got int"):
            wrap(3)
    with pytest.raises(TypeError, match="joins the ranks itself"):
        losses.DistributedLoss(losses.CrossBatchMemory(mixture(), 4))
    adapted = losses.AdaptPML(losses.CrossBatchMemory(contrastive(), 4), {"loss.neg_margin": (0.1, 3)})
    for loss in (pml.CrossBatchMemory(contrastive(), 4), adapted):
        with pytest.raises(TypeError, match="holds a CrossBatchMemory: ours joins the ranks itself"):
            losses.DistributedLoss(loss)
    for loss in (losses.DistributedLoss(mixture()), DistributedLossWrapper(mixture())):
        for held in (loss, pml.MultipleLosses([contrastive(), loss])):
            with pytest.raises(TypeError, match="holds a Distributed.*the ranks are joined in there"):
                losses.DistributedLoss(held)
            with pytest.raises(TypeError, match="holds a Distributed.*give it the loss inside"):
                losses.CrossBatchMemory(held, 4)
    with pytest.raises(TypeError, match="joins the ranks itself"):
        losses.CrossBatchMemory(alike(losses.DistributedLoss(mixture())), 4)
    with pytest.raises(TypeError, match=r"write SelfSupervisedLoss\(DistributedLoss\(loss\)\)"):
        losses.DistributedLoss(losses.SelfSupervisedLoss(mixture()))
    for held in (losses.CrossBatchMemory(mixture(), 4), pml.CrossBatchMemory(contrastive(), 4), adapted):
        with pytest.raises(TypeError, match="with labels that no other item has"):
            losses.SelfSupervisedLoss(held)
    for loss, miner in ((contrastive(), None), (mixture(), miners.MultiSimilarityMiner())):
        with pytest.raises(ValueError, match="ring=True needs an adaptive pair loss"):
            losses.DistributedLoss(loss, ring=True, miner=miner)
    x, labels = batch((9,), 0)[0]
    with pytest.raises(ValueError, match="neither indices_tuple nor references"):
        losses.DistributedLoss(mixture(), ring=True)(x, labels, (labels, labels, labels))


def test_labels_with_gaps_do_not_warn() -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            anchors, others, counts = positive_pairs(torch.arange(8)[::2], torch.tensor([4, 0, 4]))
    finally:
        torch.set_warn_always(always)
    assert (anchors.tolist(), others.tolist(), counts.tolist()) == ([0, 2, 2], [1, 0, 2], [1, 0, 2, 0])
