"""CrossBatchMemory: values and gradients of pytorch-metric-learning's, without its lists and its traps."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers, regularizers
from torch import Tensor

from ala_metric import ALALoss, losses, metrics, ops
from ala_metric.types import AdaptiveLoss

PHI = (0.9, 0.3, 0.7, 0.2, 0.8, 0.8, 0.4, 0.6, 0.5, 0.1)
LINEAR = (0.0, 1, 0, 0, 0, 0, 1, 0, 0, 0)  # d and 2 - d: PML's ContrastiveLoss with margins 0 and 2


class Theirs(pml.CrossBatchMemory):
    """pytorch-metric-learning's memory, admitting every class."""

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        pass


def make(name: str, **kwargs: Any) -> Any:
    return (
        losses.DistanceMixtureLoss(PHI, **kwargs)
        if name == "mixture"
        else losses.FocalWeightingLoss(**kwargs)
    )


def batches(count: int, rows: int = 8, dim: int = 5, classes: int = 3, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(11)
    for _ in range(count):
        x = torch.randn(rows, dim, generator=generator, dtype=dtype, requires_grad=True)
        yield x, torch.randint(0, classes, (rows,), generator=generator)


def per_anchor(name: str, x: Tensor, labels: Tensor, queue: Tensor, owner: Tensor, own: Tensor) -> Tensor:
    """Brute force on the whole matrix with the anchors' own slots struck out."""
    x, queue = (v / v.norm(dim=1, keepdim=True) for v in (x, queue))
    distance = (x[:, None] - queue).norm(dim=2)
    same = labels[:, None] == owner
    positive = same.clone()
    positive[torch.arange(len(x)), own] = False
    if name == "mixture":
        return ops.mixture_of_matrix(distance, positive, ~same, torch.tensor(PHI).double())
    return ops.focal_of_matrix(distance, positive, ~same, torch.tensor([2.0, 8.0]).double(), 1.0)


def test_what_does_not_fit_is_named() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    x, labels = next(batches(1))
    for bad in (labels / 2, labels > 1):
        with pytest.raises(TypeError, match="labels must have an integer dtype"):
            memory(x, bad)
    with pytest.raises(ValueError, match="labels"):
        memory(x, None)
    with pytest.raises(ValueError, match=r"5 columns \(embedding_size\), got 4"):
        memory(x[:, :4], labels)
    assert memory.queue_idx == 0  # nothing has entered


def test_two_graphs_wait_for_their_backward_passes() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 40)
    (a, labels), (b, more), (c, most) = batches(3)
    expected = []
    for x, y in ((a, labels), (b, more), (c, most)):
        expected += torch.autograd.grad(memory(x, y), x)
    memory = losses.CrossBatchMemory(make("mixture"), 5, 40)
    first, second = memory(a, labels), memory(b, more)
    first.backward()
    third = memory(c, most)
    second.backward()
    third.backward()
    assert all(map(torch.equal, (a.grad, b.grad, c.grad), expected))


@pytest.mark.parametrize("name", ["mixture", "focal"])
def test_brute_force_with_wrap_around(impl: str, name: str) -> None:
    memory = losses.CrossBatchMemory(make(name, impl=impl), 5, 20)
    queue, owner, place = torch.zeros(20, 5, dtype=torch.float64), torch.full((20,), -1), 0
    for x, labels in batches(5):
        own = (place + torch.arange(8)) % 20
        queue[own], owner[own] = x.detach(), labels
        place = (place + 8) % 20
        filled = owner >= 0
        value = memory(x, labels)
        (found,) = torch.autograd.grad(value, x)
        expected = per_anchor(name, x, labels, queue[filled], owner[filled], own).mean()
        assert torch.allclose(value, expected, rtol=1e-7)  # phi is a float32 buffer
        assert torch.allclose(found, torch.autograd.grad(expected, x)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 4, 12])
def test_focal_equals_the_same_loss_in_their_memory(impl: str, rows: int) -> None:
    ours = losses.CrossBatchMemory(make("focal", impl=impl), 5, 12)
    theirs = Theirs(make("focal", impl=impl), 5, 12)
    for turn, (x, labels) in enumerate(batches(7, rows=rows)):
        if rows == 1 and turn > 0:  # theirs takes a single row for a pair with itself
            break
        found = [torch.autograd.grad(memory(x, labels), x, allow_unused=True)[0] for memory in (ours, theirs)]
        assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_equals_theirs_with_an_equivalent_loss_of_theirs(impl: str) -> None:
    """With as many pairs for each anchor, the mean over pairs is the mean over anchors."""
    ours = losses.CrossBatchMemory(losses.DistanceMixtureLoss(LINEAR, impl=impl), 5, 24)
    theirs = pml.CrossBatchMemory(
        pml.ContrastiveLoss(pos_margin=0, neg_margin=2, reducer=reducers.MeanReducer()), 5, 24
    )
    for x, _ in batches(6):
        labels = torch.arange(8) % 4
        values = [memory(x, labels) for memory in (ours, theirs)]
        assert torch.allclose(*values, rtol=1e-12)
        found = [torch.autograd.grad(value, x)[0] for value in values]
        assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [pml.ContrastiveLoss(), pml.TripletMarginLoss(), pml.NTXentLoss()])
def test_other_losses_get_lists(loss: Any) -> None:
    ours, theirs = losses.CrossBatchMemory(loss, 5, 20), pml.CrossBatchMemory(loss, 5, 20)
    for x, labels in batches(4):
        assert torch.allclose(ours(x, labels), theirs(x, labels), rtol=1e-12)


def test_miner(impl: str) -> None:
    miner = miners.MultiSimilarityMiner(0.3)
    for name in ("mixture", "focal"):
        ours = losses.CrossBatchMemory(make(name, impl=impl), 5, 20, miner)
        theirs = Theirs(make(name, impl=impl), 5, 20, miner)
        for x, labels in batches(4):
            assert torch.allclose(ours(x, labels), theirs(x, labels), rtol=1e-9)


def test_given_indices_are_rows_of_the_batch() -> None:
    """Theirs takes them for slots of the queue, which holds other rows there after the first batch."""
    loss = pml.ContrastiveLoss(neg_margin=2, reducer=reducers.SumReducer())
    memory = losses.CrossBatchMemory(loss, 5, 24)
    plain = losses.CrossBatchMemory(loss, 5, 24)
    for x, labels in batches(5):
        for given in (
            miners.TripletMarginMiner(9, "all")(x, labels),
            miners.PairMarginMiner(0, 2)(x, labels),
        ):
            again = copy.deepcopy(memory)
            expected = copy.deepcopy(plain)(x, labels) + loss(x, labels, given)
            assert torch.allclose(again(x, labels, given), expected, rtol=1e-9)
        memory(x, labels)
        plain(x, labels)


@pytest.mark.parametrize("name", ["mixture", "focal"])
def test_enqueue_mask(impl: str, name: str) -> None:
    memory = losses.CrossBatchMemory(make(name, impl=impl), 5, 7)
    mask = torch.tensor([True, False] * 4)
    queue, owner = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for x, labels in batches(4):
        queue, owner = torch.cat([queue, x.detach()[mask]])[-8:], torch.cat([owner, labels[mask]])[-8:]
        expected = make(name, impl="reference")(x[~mask], labels[~mask], None, queue[-7:], owner[-7:])
        assert torch.allclose(memory(x, labels, enqueue_mask=mask), expected, rtol=1e-6)


def test_reducers_and_regularizers() -> None:
    for kwargs in (
        {"reducer": reducers.SumReducer()},
        {"reducer": reducers.ThresholdReducer(low=0.7)},
        {"reducer": reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 3.0]))},
        {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    ):
        ours, theirs = (
            losses.CrossBatchMemory(make("focal", **kwargs), 5, 20),
            Theirs(make("focal", **kwargs), 5, 20),
        )
        for x, labels in batches(3):
            assert torch.allclose(ours(x, labels), theirs(x, labels), rtol=1e-6)


def test_the_position_is_saved() -> None:
    stream = list(batches(6))
    whole, half = (losses.CrossBatchMemory(make("mixture"), 5, 20) for _ in range(2))
    values = [whole(x, labels) for x, labels in stream]
    for x, labels in stream[:3]:
        half(x, labels)
    buffer = io.BytesIO()
    torch.save(half.state_dict(), buffer)
    buffer.seek(0)
    rest = losses.CrossBatchMemory(make("mixture"), 5, 20).double()
    rest.load_state_dict(torch.load(buffer, weights_only=True))
    assert [rest(x, labels) for x, labels in stream[3:]] == values[3:]


def test_a_graph_may_wait_for_its_backward_pass() -> None:
    """Gradient accumulation: the queue of an earlier forward is not written over."""
    stream = list(batches(3))
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    total = sum(memory(x, labels) for x, labels in stream)
    together = torch.autograd.grad(total, [x for x, _ in stream])
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    for (x, labels), expected in zip(stream, together):
        assert torch.equal(torch.autograd.grad(memory(x, labels), x)[0], expected)


def test_half_precision_and_float_after_half() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    exact = losses.CrossBatchMemory(make("mixture"), 5, 20)
    for x, labels in batches(4):
        h = x.detach().half().requires_grad_()
        value = memory(h, labels)
        value.backward()
        assert h.grad.dtype == torch.float16
        # 11 bits: the reducer adds its terms in the dtype of the embeddings
        assert torch.allclose(value.double(), exact(h.double(), labels), rtol=1e-3)
    assert memory(x.float(), labels).isfinite()


def test_labels_of_any_dtype_and_large() -> None:
    for x, labels in batches(1):
        expected = losses.CrossBatchMemory(make("mixture"), 5, 20)(x, labels)
        for other in (labels.int(), labels.to(torch.uint8), labels + 2**40, labels - 7):
            assert torch.equal(losses.CrossBatchMemory(make("mixture"), 5, 20)(x, other), expected)


@pytest.mark.parametrize("loss", [make("mixture"), pml.ContrastiveLoss()], ids=["fused", "lists"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_goes_on_after_inference_mode(loss: Any, dtype: torch.dtype) -> None:
    stream = list(batches(6, dtype=dtype))
    memory, plain = (losses.CrossBatchMemory(copy.deepcopy(loss), 5, 20) for _ in range(2))
    for turn, (x, labels) in enumerate(stream):
        expected = plain(x, labels)
        if turn % 2:
            (slope,) = torch.autograd.grad(expected, x)
            value = memory(x, labels)
            assert torch.equal(torch.autograd.grad(value, x)[0], slope)
        else:
            with torch.inference_mode():
                value = memory(x, labels)
        assert torch.equal(value, expected)
    with torch.inference_mode():
        memory.reset_queue()
    memory(*stream[0]).backward()


@pytest.mark.parametrize("loss", [make("mixture"), pml.ContrastiveLoss()], ids=["fused", "lists"])
def test_the_queue_is_not_copied_where_no_graph_waits(loss: Any) -> None:
    memory = losses.CrossBatchMemory(loss, 5, 20)
    places = set()
    for x, labels in batches(5):
        memory(x, labels).backward()
        places.add(memory.embedding_memory.data_ptr())
    assert len(places) == 1


def test_a_state_with_another_queue_is_refused() -> None:
    state = losses.CrossBatchMemory(make("mixture"), 5, 8).state_dict()
    for size in ((5, 16), (4, 8)):
        memory = losses.CrossBatchMemory(make("mixture"), *size)
        mine = f"memory has memory_size={size[1]} and embedding_size={size[0]}"
        with pytest.raises(ValueError, match=f"state has memory_size=8 and embedding_size=5, this {mine}"):
            memory.load_state_dict(state)


def test_degenerate_batches(impl: str) -> None:
    for name in ("mixture", "focal"):
        memory = losses.CrossBatchMemory(make(name, impl=impl), 5, 20)
        x = torch.randn(1, 5, requires_grad=True)
        value = memory(x, torch.tensor([0]))  # alone in the queue
        assert value == 0
        value.backward()
        assert x.grad.abs().sum() == 0
        assert memory(torch.randn(0, 5, requires_grad=True), torch.tensor([], dtype=torch.int64)) == 0
        same = memory(torch.ones(8, 5, requires_grad=True), torch.zeros(8, dtype=torch.int64))
        assert same.isfinite()
        nothing_enters = losses.CrossBatchMemory(make(name, impl=impl), 5, 20)
        assert nothing_enters(x, torch.tensor([0]), enqueue_mask=torch.tensor([False])) == 0


def test_nan_does_not_enter_the_queue() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    x, labels = next(batches(1))
    broken = x.detach().clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="embeddings must be finite, got NaN or Inf in 1 of 8 rows"):
        memory(broken, labels)
    assert memory.queue_idx == 0
    assert memory(x, labels).isfinite()


def test_refusals() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 4)
    x, labels = next(batches(1))
    with pytest.raises(ValueError, match="memory_size=4 is too small for 8 new rows"):
        memory(x, labels)
    with pytest.raises(ValueError, match="mutually exclusive"):
        memory(x, labels, (labels,) * 3, labels)
    with pytest.raises(ValueError, match=r"enqueue_mask must have shape \[8\], got \(3,\)"):
        memory(x, labels, enqueue_mask=torch.tensor([True] * 3))
    with pytest.raises(ValueError, match=r"labels must have shape \[8\] .* got \(3,\)"):
        memory(x, labels[:3])
    with pytest.raises(ValueError, match="memory_size must be at least 1, got 0"):
        losses.CrossBatchMemory(make("mixture"), 5, 0)
    state = memory.state_dict()
    state["_extra_state"]["queue_idx"] = 4
    with pytest.raises(ValueError, match=r"queue_idx must lie in \[0, 3\], got 4"):
        memory.load_state_dict(state)


def test_inside_ala_loss() -> None:
    memory = losses.CrossBatchMemory(make("mixture"), 5, 20)
    assert isinstance(memory, AdaptiveLoss)
    validation = torch.randn(12, 5), torch.arange(12) % 3
    loss_fn = ALALoss(
        memory,
        metrics.RecallAtK((1,)),
        validate=lambda: validation,
        total_steps=9,
        every=2,
        mode="random_walk",
    )
    for x, labels in batches(8):
        loss_fn(x, labels).backward()
    assert not torch.equal(memory.loss.phi, torch.tensor(PHI))
    assert memory.phi is memory.loss.phi
    assert "loss._extra_state" in loss_fn.state_dict()
