"""What every pytorch-metric-learning loss must do, ours and theirs: one check per promise.

A check takes ``make(**kwargs)``, which builds a new loss with these keyword arguments of theirs, and raises
if the loss breaks the promise. The checks know nothing of the loss: they compare it with itself (its
unreduced terms, another order, a part of the batch, numerical derivatives).
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners, reducers, regularizers
from torch import Tensor

Make = Callable[..., Any]
CHECKS: dict[str, Callable[[Make], None]] = {}
ROWS, DIM, CLASSES = 13, 5, 4


def check(function: Callable[[Make], None]) -> Callable[[Make], None]:
    CHECKS[function.__name__] = function
    return function


def batch(rows: int = ROWS, seed: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIM, generator=generator, dtype=dtype), torch.arange(rows) % CLASSES


def mined(x: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, ...]:
    """Triplets or pairs of all rows."""
    triplets = miners.TripletMarginMiner(margin=9, type_of_triplets="all")(x, labels)
    if kind == "triplets":
        return triplets
    return miners.PairMarginMiner(pos_margin=0, neg_margin=2)(x, labels)


def gradient(loss_fn: Any, x: Tensor, *args: Any, scale: float = 1.0, **kwargs: Any) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (scale * loss_fn(x, *args, **kwargs)).backward()
    assert x.grad is not None, "the graph is cut"
    return x.grad


def terms(make: Make, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
    """Unreduced terms that are there, by name."""
    found = make(reducer=reducers.DoNothingReducer())(*args, **kwargs)
    return {name: term for name, term in found.items() if isinstance(term["losses"], Tensor)}


def close(found: Any, expected: Any, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    """Default tolerance: parameters of a loss may be float32 buffers."""
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=rtol, atol=atol, check_dtype=False
    )


# ------------------------------------------------------------------------------------- terms and reducers
@check
def terms_are_unreduced_and_indexed(make: Make) -> None:
    x, labels = batch()
    for kind in (None, "triplets", "pairs"):
        indices = None if kind is None else mined(x, labels, kind)
        found = terms(make, x, labels, indices)
        assert found
        for term in found.values():
            assert term["reduction_type"] in ("element", "pos_pair", "neg_pair", "triplet")
            assert term["losses"].ndim == 1
            lists = [term["indices"]] if term["reduction_type"] == "element" else term["indices"]
            assert all(listed.shape == term["losses"].shape for listed in lists)
            assert all(int(listed.min()) >= 0 and int(listed.max()) < ROWS for listed in lists)


def _anchors(term: dict[str, Any]) -> Tensor:
    return term["indices"] if term["reduction_type"] == "element" else term["indices"][0]


@check
def terms_belong_to_their_anchors(make: Make) -> None:
    """With references, a term depends on one row of the batch: the anchor that its index names."""
    x, labels = batch()
    y, ref_labels = batch(7, seed=4)
    x.requires_grad_()
    for term in terms(make, x, labels, ref_emb=y, ref_labels=ref_labels).values():
        for value, anchor in list(zip(term["losses"], _anchors(term).tolist()))[::7]:
            (found,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            assert found[anchor].abs().sum() > 0
            found[anchor] = 0
            assert found.abs().sum() == 0


def _non_zero_mean(values: Tensor) -> Tensor:
    return values[values > 0].mean() if bool((values > 0).any()) else values.sum() * 0


@check
def reducers_reduce(make: Make) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    x, labels = batch()
    for kind in (None, "pairs"):
        indices = None if kind is None else mined(x, labels, kind)
        found = terms(make, x, labels, indices)
        middle = float(torch.cat([term["losses"] for term in found.values()]).median())
        cases: list[tuple[Any, Callable[[dict[str, Any]], Tensor]]] = [
            (reducers.MeanReducer(), lambda t: t["losses"].mean()),
            (reducers.SumReducer(), lambda t: t["losses"].sum()),
            (reducers.AvgNonZeroReducer(), lambda t: _non_zero_mean(t["losses"])),
            (
                reducers.ThresholdReducer(low=middle),
                lambda t, m=middle: _non_zero_mean(torch.where(t["losses"] > m, t["losses"], 0)),
            ),
            (
                reducers.ClassWeightedReducer(weights),
                lambda t: (t["losses"] * weights[labels[_anchors(t)]]).mean(),
            ),
        ]
        if all("divisor" in term for term in found.values()):
            cases.append((reducers.DivisorReducer(), lambda t: t["losses"].sum() / t["divisor"]))
        if all(term["reduction_type"] != "triplet" for term in found.values()):
            cases.append((reducers.PerAnchorReducer(), _mean_of_anchor_means))
        for reducer, expected in cases:
            close(make(reducer=reducer)(x, labels, indices), sum(expected(term) for term in found.values()))
        each = reducers.MultipleReducers({name: reducers.SumReducer() for name in found})
        close(make(reducer=each)(x, labels, indices), sum(term["losses"].sum() for term in found.values()))


def _mean_of_anchor_means(term: dict[str, Any]) -> Tensor:
    if term["reduction_type"] == "element":
        return term["losses"].mean()
    values = [term["losses"][_anchors(term) == i] for i in range(ROWS)]
    return torch.stack([v.mean() if len(v) else v.sum() for v in values]).mean()


@check
def regularizers_add(make: Make) -> None:
    x, labels = batch()
    regularized = make(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.5)
    close(regularized(x, labels), make()(x, labels) + 0.5 * x.norm(dim=1).mean())


@check
def the_value_is_a_scalar_of_the_embeddings_dtype(make: Make) -> None:
    for dtype in (torch.float32, torch.float64):
        value = make()(*batch(dtype=dtype))
        assert value.ndim == 0
        assert value.dtype == dtype


# -------------------------------------------------------------------------------------------- derivatives
@check
def gradients_are_right(make: Make) -> None:
    x, labels = batch(9)
    y, ref_labels = batch(6, seed=4)
    loss_fn = make()
    x.requires_grad_()
    y.requires_grad_()
    for kind in (None, "triplets", "pairs"):
        indices = None if kind is None else mined(x.detach(), labels, kind)
        torch.autograd.gradcheck(lambda v, i=indices: loss_fn(v, labels, i), x, fast_mode=True)
    torch.autograd.gradcheck(
        lambda v, w: loss_fn(v, labels, ref_emb=w, ref_labels=ref_labels), (x, y), fast_mode=True
    )


@check
def gradients_scale_with_grad_output(make: Make) -> None:
    x, labels = batch()
    close(gradient(make(), x, labels, scale=-2.5), -2.5 * gradient(make(), x, labels))
    x.requires_grad_()
    for term in terms(make, x, labels).values():  # each element with a weight of its own
        values = term["losses"].flatten()[:20]
        weights = torch.linspace(-1, 2, len(values), dtype=x.dtype)
        (found,) = torch.autograd.grad(values @ weights, x, retain_graph=True)
        parts = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
        close(found, sum(weight * part for weight, part in zip(weights, parts)))


@check
def arguments_are_left_alone(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(6, seed=4)
    before = [t.clone() for t in (x, labels, y, ref_labels)]
    loss_fn = make()
    first = loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels)
    gradient(loss_fn, x, labels)
    assert all(torch.equal(a, b) for a, b in zip((x, labels, y, ref_labels), before))
    assert torch.equal(loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels), first)  # it keeps no state


# ----------------------------------------------------------------------------------------- which pairs
@check
def miners_decide(make: Make) -> None:
    x, labels = batch()
    loss_fn = make()
    for kind in ("triplets", "pairs"):
        indices = mined(x[:8], labels[:8], kind)
        found = gradient(loss_fn, x, labels, indices)
        assert found[:8].abs().sum() > 0
        assert found[8:].abs().sum() == 0, "rows that the miner did not list got a gradient"
        order = torch.randperm(len(indices[0]))
        shuffled = (*(v[order] for v in indices[: 3 if kind == "triplets" else 2]), *indices[2:])[
            : len(indices)
        ]
        close(loss_fn(x, labels, shuffled), loss_fn(x, labels, indices))
        # few lists: of one anchor, then of another
        values = [loss_fn(x, labels, _only(indices, anchor)) for anchor in (0, 1)]
        assert values[0] != values[1]
        assert torch.equal(loss_fn(x, None, indices), loss_fn(x, labels, indices))  # labels are not needed


def _only(indices: tuple[Tensor, ...], anchor: int) -> tuple[Tensor, ...]:
    keep = indices[0] == anchor
    if len(indices) == 3:
        return tuple(v[keep] for v in indices)
    other = indices[2] == anchor
    return indices[0][keep], indices[1][keep], indices[2][other], indices[3][other]


@check
def all_miners_are_understood(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(17, seed=4)
    loss_fn = make()
    for miner in (
        miners.TripletMarginMiner(0.2, "semihard"),
        miners.MultiSimilarityMiner(0.5),
        miners.BatchHardMiner(),
        miners.BatchEasyHardMiner(),
        miners.DistanceWeightedMiner(),
        miners.PairMarginMiner(0.4, 1.3),
        miners.UniformHistogramMiner(),
        miners.HDCMiner(),
    ):
        assert gradient(loss_fn, x, labels, miner(x, labels)).isfinite().all()
        assert loss_fn(x, labels, miner(x, labels, y, ref_labels), y, ref_labels).isfinite()


@check
def references_are_the_others(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(7, seed=4)
    loss_fn = make()
    value = loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    close(loss_fn(x, labels, ref_emb=y[order], ref_labels=ref_labels[order]), value)
    names = torch.tensor([7, -3, 100, 5])  # other names for the classes, in both sets
    close(loss_fn(x, names[labels], ref_emb=y, ref_labels=names[ref_labels]), value)
    assert loss_fn(x, labels, ref_emb=y, ref_labels=(ref_labels + 1) % CLASSES) != value
    y.requires_grad_()
    loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels).backward()
    assert y.grad is not None
    assert bool((y.grad.abs().sum(1) > 0).all())  # each row is somebody's pair, those on the diagonal too


@check
def mined_references_are_rows_of_ref_emb(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(8, seed=4)
    y.requires_grad_()
    indices = miners.TripletMarginMiner(9, "all")(x, labels, y, ref_labels)
    keep = (indices[1] < 5) & (indices[2] < 5)
    x.requires_grad_()
    make()(x, labels, tuple(v[keep] for v in indices), y, ref_labels).backward()
    assert bool((y.grad[:5].abs().sum(1) > 0).all())
    assert y.grad[5:].abs().sum() == 0


@check
def a_row_is_no_pair_with_itself(make: Make) -> None:
    """A row alone in its class, in a batch of such rows, has no positives: nothing pulls."""
    x, _ = batch(6)
    loss_fn = make()
    labels = torch.arange(6)
    nowhere = torch.tensor([], dtype=torch.int64)
    a, n = torch.where(~torch.eye(6, dtype=torch.bool))
    close(loss_fn(x, labels), loss_fn(x, labels, (nowhere, nowhere, a, n)))


# ------------------------------------------------------------------------------------------ nothing to do
@check
def no_pairs_is_a_zero_with_a_graph(make: Make) -> None:
    loss_fn = make()
    none, floats = torch.tensor([], dtype=torch.int64), torch.tensor([])
    x, labels = batch()
    empty_lists = [tuple(v for _ in range(k)) for v in (none, floats) for k in (3, 4)]
    cases = [(x[:rows], labels[:rows], None) for rows in (0, 1)]
    cases += [(x, labels, indices) for indices in empty_lists]
    for rows, names, indices in cases:
        leaf = rows.detach().clone().requires_grad_()
        value = loss_fn(leaf, names, indices)
        assert value.ndim == 0
        assert value == 0
        value.backward()
        assert leaf.grad is not None, "the graph is cut"
        assert leaf.grad.abs().sum() == 0


@check
def half_the_lists_may_be_empty(make: Make) -> None:
    x, labels = batch()
    a, p, b, n = mined(x, labels, "pairs")
    for none in (a[:0], torch.tensor([])):
        for indices in ((a, p, none, none), (none, none, b, n)):
            assert gradient(make(), x, labels, indices).isfinite().all()


@check
def one_class_only_and_singletons_are_finite(make: Make) -> None:
    x, _ = batch()
    for labels in (torch.zeros(ROWS, dtype=torch.int64), torch.arange(ROWS)):
        assert gradient(make(), x, labels).isfinite().all()


# ------------------------------------------------------------------------------------------------- kinds
@check
def labels_of_any_integer_dtype(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(7, seed=4)
    loss_fn = make()
    value, referred = loss_fn(x, labels), loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(loss_fn(x, labels.to(dtype)), value)
        found = loss_fn(x, labels.to(dtype), ref_emb=y, ref_labels=ref_labels.to(dtype))
        assert torch.equal(found, referred)
    for names in (torch.tensor([-5, 2**40, 2**40 + 1, 0]), torch.tensor([2**24, 2**24 + 1, 7, 8])):
        close(loss_fn(x, names[labels]), value)


class Elsewhere(Tensor):
    """Labels that say they are on another device, and that nothing can be computed with before they moved."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("meta")
        name = getattr(function, "__name__", "")
        if name in ("to", "cpu", "__get__", "size", "dim", "__len__"):
            with torch._C.DisableTorchFunctionSubclass():
                result = function(*args, **(kwargs or {}))
                return result.clone().as_subclass(Tensor) if name in ("to", "cpu") else result
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


@check
def labels_of_another_device_are_moved(make: Make) -> None:
    x, labels = batch()
    y, ref_labels = batch(7, seed=4)
    loss_fn = make()
    assert torch.equal(loss_fn(x, labels.clone().as_subclass(Elsewhere)), loss_fn(x, labels))
    found = loss_fn(
        x,
        labels.clone().as_subclass(Elsewhere),
        ref_emb=y,
        ref_labels=ref_labels.clone().as_subclass(Elsewhere),
    )
    assert torch.equal(found, loss_fn(x, labels, ref_emb=y, ref_labels=ref_labels))
    if torch.cuda.is_available():
        moved = copy.deepcopy(loss_fn).to("cuda")
        close(moved(x.cuda(), labels).cpu(), loss_fn(x, labels))


@check
def half_precision(make: Make) -> None:
    x, labels = batch()
    # rtol: 11 and 8 bits for the distances where the loss computes in half, and a few operations on them
    for dtype, rtol in ((torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        for scale in (1.0, 200.0):  # the squares overflow half
            h = (x * scale).to(dtype)
            value = make()(h, labels)
            close(value.double(), make()(h.double(), labels), rtol=rtol)
            assert gradient(make(), h, labels).dtype == dtype
            exact = gradient(make(), h.double(), labels)
            error = (gradient(make(), h, labels).double() - exact).norm() / exact.norm()
            assert error < 2 * rtol


@check
def autocast(make: Make) -> None:
    x, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient(make(), x, labels)
        value = make()(x, labels)
    assert found.dtype == torch.float32
    close(value.float(), make()(x, labels), rtol=6e-2)
    exact = gradient(make(), x, labels)
    assert (found - exact).norm() / exact.norm() < 0.12


@check
def any_memory_layout(make: Make) -> None:
    x, labels = batch()
    value = make()(x, labels)
    transposed = x.t().contiguous().t()
    strided = torch.stack([x, x + 1], 2)[:, :, 0]
    offset = torch.cat([torch.zeros(3, DIM, dtype=x.dtype), x])[3:]
    for other in (transposed, strided, offset):
        assert torch.equal(make()(other, labels), value)
    every_other = torch.stack([labels, labels + 9], 1)[:, 0]
    assert torch.equal(make()(x, every_other), value)
    with torch.inference_mode():
        assert torch.equal(make()(x.clone(), labels), value)


@check
def wrong_arguments_are_refused(make: Make) -> None:
    x, labels = batch()
    for bad in ((x, None), (x, labels[:-1]), (x, labels[:, None])):
        try:
            make()(*bad)
        except ValueError:
            continue
        raise AssertionError(f"accepted {[None if v is None else tuple(v.shape) for v in bad]}")


# ---------------------------------------------------------------------------------- as a module, as a part
@check
def copies_are_equal_and_their_own(make: Make) -> None:
    x, labels = batch()
    loss_fn = make()
    value = loss_fn(x, labels)
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert torch.equal(twin(x, labels), value)
        mine = {id(t) for t in _tensors(loss_fn)}
        assert not mine & {id(t) for t in _tensors(twin)}
    fresh = make()
    fresh.load_state_dict(loss_fn.state_dict())
    assert torch.equal(fresh(x, labels), value)
    if hasattr(loss_fn, "set_phi"):  # what was moved comes back
        loss_fn.set_phi(torch.tensor([0.7 * s.low + 0.3 * s.high for s in loss_fn.phi_spec]))
        assert loss_fn(x, labels) != value
        fresh.load_state_dict(loss_fn.state_dict())
        assert torch.equal(fresh(x, labels), loss_fn(x, labels))


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [
        value
        for part in module.modules()
        for store in (vars(part), part._buffers, part._parameters)
        for value in store.values()
        if isinstance(value, Tensor)
    ]


@check
def moving_the_module_moves_all_of_it(make: Make) -> None:
    for tensor in _tensors(make().to("meta")):
        assert tensor.is_meta


@check
def eval_mode_is_the_same_loss(make: Make) -> None:
    x, labels = batch()
    assert torch.equal(make().eval()(x, labels), make()(x, labels))


@check
def stats_are_collected(make: Make) -> None:
    x, labels = batch()
    watched = make(collect_stats=True)
    assert torch.equal(watched(x, labels), make()(x, labels))
    for name in getattr(watched, "_record_these_stats", []) + getattr(watched, "_record_these", []):
        assert math.isfinite(getattr(watched, name))


@check
def a_part_of_multiple_losses(make: Make) -> None:
    x, labels = batch()
    other = pml.NTXentLoss()
    both = pml.MultipleLosses([make(), other], weights=[0.5, 2])
    close(both(x, labels), 0.5 * make()(x, labels) + 2 * other(x, labels))
    miner = miners.MultiSimilarityMiner(0.5)
    mining = pml.MultipleLosses([make(), other], miners=[miner, None])
    close(mining(x, labels), make()(x, labels, miner(x, labels)) + other(x, labels))


@check
def in_self_supervised_loss(make: Make) -> None:
    from ala_metric.losses import SelfSupervisedLoss

    x, _ = batch(6)
    y, _ = batch(6, seed=4)
    labels = torch.arange(6)
    close(SelfSupervisedLoss(make())(x, y), make()(torch.cat([x, y]), labels.repeat(2)))
    one_way = SelfSupervisedLoss(make(), symmetric=False)(x, y)
    close(one_way, make()(x, labels, ref_emb=y, ref_labels=labels.clone()))


@check
def in_pml_cross_batch_memory(make: Make) -> None:
    """Their memory lists all pairs; the same lists by hand give the same value."""

    class Admitting(pml.CrossBatchMemory):
        @classmethod
        def check_loss_support(cls, loss_name: str) -> None:
            pass

    memory = Admitting(make(), DIM, 20)
    rows: list[Tensor] = []
    for turn in range(3):  # the third batch wraps around
        x, labels = batch(8, seed=turn)
        names = torch.arange(8) % CLASSES
        rows = [*rows, x] if turn < 2 else rows
        queue = torch.zeros(20, DIM, dtype=x.dtype)
        if turn < 2:
            queue = torch.cat(rows)
            place = torch.arange(8 * turn, 8 * turn + 8)
        else:
            place = torch.arange(16, 24) % 20
            queue[:16] = torch.cat(rows)
            queue[place] = x
        owner = torch.arange(len(queue)) % 8 % CLASSES
        owner[place] = names
        same = names[:, None] == owner
        positive = same.clone()
        positive[torch.arange(8), place] = False
        lists = (*torch.where(positive), *torch.where(~same))
        close(memory(x, labels), make()(x, names, lists, queue, owner))


@check
def compiled(make: Make) -> None:
    x, labels = batch(dtype=torch.float32)
    torch._dynamo.reset()
    loss_fn = torch.compile(make(), backend="eager")
    close(loss_fn(x, labels), make()(x, labels))
    close(gradient(loss_fn, x, labels), gradient(make(), x, labels), atol=1e-6)
