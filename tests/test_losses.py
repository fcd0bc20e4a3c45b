"""The adaptive losses as pytorch-metric-learning losses: reducers, miners, references, distances."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from pytorch_metric_learning import distances, miners, reducers, regularizers
from pytorch_metric_learning.losses import CrossBatchMemory, MultipleLosses, MultiSimilarityLoss
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ala_metric import ops
from ala_metric.losses import DistanceMixtureLoss, FocalWeightingLoss
from ala_metric.types import AdaptiveLoss
from tests import oracle

PHI = (1.0, 0.3, 0.7, 0.2, 0.9, 0.8, 0.4, 0.6, 0.5, 0.1)


def make(name: str, **kwargs):
    return DistanceMixtureLoss(PHI, **kwargs) if name == "mixture" else FocalWeightingLoss(**kwargs)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def loops(name: str, x: Tensor, labels: Tensor, y: Tensor | None = None, ref_labels=None) -> Tensor:
    """Per-anchor losses of normalised embeddings by the double loops."""
    args = [None if v is None else unit(v).tolist() for v in (x, y)]
    refs = None if ref_labels is None else ref_labels.tolist()
    if name == "mixture":
        found = oracle.mixture(args[0], labels.tolist(), PHI, args[1], refs)
    else:
        found = oracle.focal(args[0], labels.tolist(), (2.0, 8.0), 1.0, args[1], refs)
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(params=["mixture", "focal"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def x() -> Tensor:
    return torch.randn(20, 6, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(20) % 4


def test_mean_of_loops(impl: str, name: str, x: Tensor, labels: Tensor) -> None:
    loss = make(name, impl=impl)(x, labels)
    # phi is a float32 buffer: 0.3 is rounded to 24 bits
    assert torch.allclose(loss, loops(name, x, labels).mean(), rtol=1e-6)
    assert loss.dtype == torch.float64


def test_references(impl: str, name: str, x: Tensor, labels: Tensor) -> None:
    y, ref_labels = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 5
    loss = make(name, impl=impl)(x, labels, ref_emb=y, ref_labels=ref_labels)
    assert torch.allclose(loss, loops(name, x, labels, y, ref_labels).mean(), rtol=1e-6)


def test_equal_references_are_not_the_batch(name: str, x: Tensor, labels: Tensor) -> None:
    """A copy of the batch is a reference set of its own: each row then meets its twin at distance 0."""
    loss = make(name)(x, labels, ref_emb=x.clone(), ref_labels=labels)
    assert torch.allclose(loss, loops(name, x, labels, x, labels).mean(), rtol=1e-6)
    assert not torch.allclose(loss, loops(name, x, labels).mean(), rtol=1e-3)


@pytest.mark.parametrize(
    "reducer",
    [
        reducers.MeanReducer(),
        reducers.SumReducer(),
        reducers.ThresholdReducer(low=0.5),
        reducers.AvgNonZeroReducer(),
        reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        reducers.DivisorReducer(),
        reducers.PerAnchorReducer(),
    ],
    ids=lambda r: type(r).__name__,
)
def test_reducers(name: str, reducer, x: Tensor, labels: Tensor) -> None:
    loss = make(name, reducer=reducer)(x, labels)
    each = loops(name, x, labels)
    expected = {
        "SumReducer": each.sum(),
        "ThresholdReducer": each[each > 0.5].mean(),
        "ClassWeightedReducer": (each * (1.0 + labels)).mean(),
    }.get(type(reducer).__name__, each.mean())
    assert torch.allclose(loss, expected, rtol=1e-6)


def test_only_a_plain_mean_is_left_to_the_op(name: str, x: Tensor, labels: Tensor, monkeypatch) -> None:
    op = "distance_mixture" if name == "mixture" else "focal_weighting"
    asked: list[str] = []
    original = getattr(ops, op)

    def spy(*args, **keywords):
        asked.append(keywords["reduction"])
        return original(*args, **keywords)

    monkeypatch.setattr(ops, op, spy)

    class Half(reducers.MeanReducer):
        def element_reduction(self, losses, *_):
            return 0.5 * losses.mean()

    counted = reducers.MeanReducer(collect_stats=True)
    plain = make(name)(x, labels)
    assert torch.equal(make(name, reducer=reducers.MeanReducer())(x, labels), plain)
    assert torch.equal(make(name, reducer=Half())(x, labels), 0.5 * plain)
    assert torch.equal(make(name, reducer=counted)(x, labels), plain)
    assert torch.equal(make(name, reducer=reducers.MultipleReducers({}, Half()))(x, labels), 0.5 * plain)
    assert asked == ["mean", "mean", "none", "none", "none"]


def test_do_nothing_reducer(name: str, x: Tensor, labels: Tensor) -> None:
    loss_dict = make(name, reducer=reducers.DoNothingReducer())(x, labels)
    assert loss_dict["loss"]["reduction_type"] == "element"
    assert loss_dict["loss"]["losses"].shape == (20,)
    assert torch.allclose(loss_dict["loss"]["losses"], loops(name, x, labels), rtol=1e-6)


def test_regularizer(name: str, x: Tensor, labels: Tensor) -> None:
    plain = make(name)(x, labels)
    loss_fn = make(name, embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.5)
    assert torch.allclose(loss_fn(x, labels), plain + 0.5 * x.norm(dim=1).mean(), rtol=1e-6)


# ---------------------------------------------------------------------------------------------- mined
def test_mined_triplets_mixture(impl: str, x: Tensor, labels: Tensor) -> None:
    a, p, n = miners.TripletMarginMiner(margin=0.2, type_of_triplets="all")(x, labels)
    loss = make("mixture", impl=impl)(x, labels, (a, p, n))
    rows = unit(x).tolist()
    expected = oracle.mean(
        [
            sum(w * f(oracle.dist(rows[i], rows[j])) for w, f in zip(PHI[:5], oracle.POSITIVE))
            + sum(w * f(oracle.dist(rows[i], rows[k])) for w, f in zip(PHI[5:], oracle.NEGATIVE))
            for i, j, k in zip(a.tolist(), p.tolist(), n.tolist())
        ]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_mined_pairs_mixture(impl: str, x: Tensor, labels: Tensor) -> None:
    pairs = miners.PairMarginMiner(0.4, 1.3)(x, labels)
    assert all(len(v) for v in pairs)
    loss = make("mixture", impl=impl)(x, labels, pairs)
    rows = unit(x).tolist()
    expected = 0.0
    for (a, b), weights, functions in (
        (pairs[:2], PHI[:5], oracle.POSITIVE),
        (pairs[2:], PHI[5:], oracle.NEGATIVE),
    ):
        expected += oracle.mean(
            [
                sum(w * f(oracle.dist(rows[i], rows[j])) for w, f in zip(weights, functions))
                for i, j in zip(a.tolist(), b.tolist())
            ]
        )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_all_pairs_listed_equal_all_pairs_focal(impl: str, x: Tensor, labels: Tensor) -> None:
    """Listing every pair (or every triplet: pairs then repeat, and count once) changes nothing."""
    from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

    loss_fn = make("focal", impl=impl, reducer=reducers.DoNothingReducer())
    expected = loss_fn(x, labels)["loss"]["losses"]
    for listed in (lmu.get_all_pairs_indices(labels), lmu.get_all_triplets_indices(labels)):
        found = loss_fn(x, labels, listed)["loss"]["losses"]
        assert torch.allclose(found, expected, rtol=1e-12)


def test_mined_gradients(impl: str, name: str, labels: Tensor) -> None:
    x = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    loss_fn = make(name, impl=impl)
    for miner in (miners.TripletMarginMiner(0.2, "semihard"), miners.MultiSimilarityMiner(0.5)):
        mined = miner(x.detach(), labels)
        assert torch.autograd.gradcheck(
            lambda v, mined=mined: loss_fn(v, labels, mined), x, atol=1e-6, nondet_tol=1e-12
        )


def test_mined_references(name: str, x: Tensor, labels: Tensor) -> None:
    y, ref_labels = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3
    mined = miners.BatchEasyHardMiner()(x, labels, y, ref_labels)
    found = make(name)(x, labels, mined, y, ref_labels)
    assert found == make(name)(x, None, mined, y)  # labels are not needed with indices
    matrix = make(name, distance=_SameDistance())(x, labels, mined, y, ref_labels)
    assert torch.allclose(found, matrix, rtol=1e-9)


class _SameDistance(distances.LpDistance):
    """The default distance, but of another type: takes the matrix path."""


def test_matrix_path_equals_rows(name: str, x: Tensor, labels: Tensor) -> None:
    mined = miners.TripletMarginMiner(0.2)(x, labels)
    for indices in (None, mined, (mined[0], mined[1], mined[0], mined[2])):
        found = make(name, distance=_SameDistance())(x, labels, indices)
        assert torch.allclose(found, make(name)(x, labels, indices), rtol=1e-7)


def test_other_distances(name: str, x: Tensor, labels: Tensor) -> None:
    raw = make(name, distance=distances.LpDistance(normalize_embeddings=False))(x, labels)
    assert not torch.allclose(raw, make(name)(x, labels))
    assert make(name, distance=distances.LpDistance(p=1))(x, labels).isfinite()
    assert make(name, distance=distances.SNRDistance())(x, labels).isfinite()
    cosine = make(name, distance=distances.CosineSimilarity())(x, labels)
    assert torch.allclose(cosine, make(name)(x, labels))
    with pytest.raises(ValueError, match="got DotProductSimilarity"):
        make(name, distance=distances.DotProductSimilarity())


# ------------------------------------------------------------------------------------- degenerate batches
@pytest.mark.parametrize(
    "indices", [None, 3, 4], ids=["all pairs", "empty triplets (float)", "empty pairs (float)"]
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_pairs_is_a_zero_with_a_graph(impl: str, name: str, rows: int, indices: int | None) -> None:
    x = torch.randn(rows, 3, requires_grad=True)
    listed = None if indices is None else tuple(torch.tensor([]) for _ in range(indices))
    labels = torch.zeros(rows, dtype=torch.int64)
    loss = make(name, impl=impl)(x, labels, listed)
    assert loss.ndim == 0
    assert loss.isfinite()
    assert loss.item() == 0 or (rows == 5 and listed is None)
    loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("distance", [distances.LpDistance(), distances.LpDistance(p=1)])
def test_indices_that_name_no_pairs(name: str, distance, x: Tensor, labels: Tensor) -> None:
    loss = make(name, distance=distance)

    def call(*lists: list) -> Tensor:
        return loss(x, labels, tuple(map(torch.tensor, lists)))

    for lists in (([0, 1], [1, 0], [2, 20]), ([1, 2], [-1, 3], [5, 6]), ([0, 1], [1, 40], [5, 6])):
        with pytest.raises(ValueError, match=r"must lie in \[0, 19\]"):
            call(*lists)
    with pytest.raises(TypeError, match="integer dtype"):
        call([0.9], [1.7], [5.0])
    with pytest.raises(ValueError, match="equal lengths"):
        call([0, 1, 2], [3], [5, 6, 7])
    with pytest.raises(TypeError, match="indices_tuple must hold tensors, got list"):
        loss(x, labels, ([0], [1], [2]))


def test_a_matrix_of_nothing_sensible_is_refused(name: str, x: Tensor, labels: Tensor) -> None:
    loss = make(name, distance=distances.LpDistance(p=1))
    with pytest.raises(TypeError, match="labels must have an integer dtype"):
        loss(x, labels / 2)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        loss(x * math.nan, labels)


def test_own_labels_for_the_same_rows(name: str, x: Tensor, labels: Tensor) -> None:
    """As in pytorch-metric-learning, rows with other labels are references of their own."""
    other = labels.flip(0)
    loss = make(name)
    assert torch.equal(loss(x, labels, None, x, other), loss(x, labels, None, x.clone(), other))
    assert torch.equal(loss(x, labels, None, x, labels), loss(x, labels))


def test_sums_of_half_precision_rows_are_in_float32() -> None:
    x, labels = torch.randn(300, 8).half(), torch.arange(300) // 2
    loss = DistanceMixtureLoss(PHI, reducer=reducers.SumReducer())
    lists = lmu.get_all_pairs_indices(labels)
    value = loss(x, labels, lists)
    assert value > 70_000  # more than float16 holds
    assert torch.allclose(value, loss(x.float(), labels, lists))


def test_compiled_whole(name: str, labels: Tensor) -> None:
    x = torch.randn(20, 6)
    loss = make(name)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(a, labels).backward()
    loss(b, labels).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_one_side_empty(name: str, x: Tensor, labels: Tensor) -> None:
    none = torch.tensor([])
    a, p, a2, n = miners.PairMarginMiner(0.4, 1.3)(x, labels)
    assert make(name)(x, labels, (a, p, none, none)) > 0
    assert make(name)(x, labels, (none, none, a2, n)) > 0


def test_labels_or_indices_are_needed(name: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels .* are needed when indices_tuple is None"):
        make(name)(x)
    with pytest.raises(TypeError, match="indices_tuple must be a tuple of 3 or 4 index tensors"):
        make(name)(x, torch.arange(len(x)), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 2 index lists"):
        make(name)(x, None, (torch.tensor([0]), torch.tensor([1])))


def test_zero_vectors(name: str) -> None:
    x = torch.randn(6, 3)
    x[2] = 0
    x.requires_grad_()
    loss = make(name)(x, torch.arange(6) % 2)
    loss.backward()
    assert torch.equal(x.grad[2], torch.zeros(3))  # not 1e12
    assert x.grad.abs().max() < 1e3
    assert loss.isfinite()


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_normalisation_survives_any_scale(name: str, x: Tensor, labels: Tensor, scale: float) -> None:
    found = make(name)((x * scale).float(), labels)
    assert torch.allclose(found.double(), make(name)(x, labels), rtol=1e-5)  # float32 embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, x: Tensor, labels: Tensor, dtype) -> None:
    h = x.to(dtype).requires_grad_()
    loss = make(name)(h, labels)
    loss.backward()
    assert torch.allclose(loss.double(), make(name)(h.detach().double(), labels), rtol=1e-2)  # bf16: 8 bits
    assert h.grad.dtype == dtype


# ----------------------------------------------------------------------------------- the adaptive protocol
def test_protocol(name: str, x: Tensor, labels: Tensor) -> None:
    loss_fn = make(name)
    assert isinstance(loss_fn, AdaptiveLoss)
    n = 10 if name == "mixture" else 2
    assert loss_fn.phi.shape == (n,)
    assert "phi" in dict(loss_fn.named_buffers())
    assert len(loss_fn.phi_spec) == n
    assert loss_fn.statistics(x, labels).shape == (n, 1)


def test_defaults() -> None:
    assert DistanceMixtureLoss().phi.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert FocalWeightingLoss().phi.tolist() == [2, 8]
    assert {s.rule for s in DistanceMixtureLoss().phi_spec} == {"additive"}
    assert {(s.low, s.high, s.rule) for s in FocalWeightingLoss().phi_spec} == {(0.5, 64.0, "multiplicative")}


def test_statistics(x: Tensor, labels: Tensor) -> None:
    rows = unit(x)
    expected = oracle.statistics(rows.tolist(), labels.tolist())
    assert make("mixture").statistics(x, labels)[:, 0].tolist() == pytest.approx(expected, rel=1e-12)
    focal = make("focal").statistics(x, labels)[:, 0].tolist()
    assert focal == pytest.approx([expected[1], 2 - expected[6]], rel=1e-12)
    alone = make("focal").statistics(x[:4], torch.zeros(4, dtype=torch.int64))
    assert alone[1].item() == 0


def test_set_phi(name: str) -> None:
    loss_fn = make(name)
    before = loss_fn.phi.clone()
    n = len(before)
    for bad, match in (
        (torch.ones(n + 1), rf"phi must have shape \[{n}\], got \({n + 1},\)"),
        (torch.full((n,), float("nan")), r"phi_\w+ must lie in .* got nan"),
        (torch.full((n,), 65.0), "must lie in"),
        (torch.full((n,), -0.1), "must lie in"),
    ):
        with pytest.raises(ValueError, match=match):
            loss_fn.set_phi(bad)
        assert torch.equal(loss_fn.phi, before)
    loss_fn.set_phi(torch.full((n,), 0.75, dtype=torch.float64))
    assert loss_fn.phi.tolist() == [0.75] * n


def test_errors_name_the_argument(name: str, x: Tensor, labels: Tensor) -> None:
    loss_fn, rows = make(name), len(x)
    for args, error, match in (
        ((x, labels[:-1]), ValueError, rf"labels must have shape \[{rows}\] .* got \({rows - 1},\)"),
        ((x, labels[:, None]), ValueError, rf"labels must have shape .* got \({rows}, 1\)"),
        ((x, labels.tolist()), TypeError, "labels must be a tensor of integers, got list"),
        ((x, labels.numpy()), TypeError, "labels must be a tensor of integers, got ndarray"),
        ((x, labels.double()), TypeError, "labels must have an integer dtype, got torch.float64"),
        ((x.long(), labels), TypeError, "embeddings must be float16, .* got torch.int64"),
        ((x.numpy(), labels), TypeError, "embeddings must be a tensor, got ndarray"),
        ((x[0], labels[:6]), ValueError, r"embeddings must have shape \[rows, dimensions\], got \(\d,\)"),
        ((x * math.nan, labels), ValueError, f"got NaN or Inf in {rows} of {rows} rows"),
        ((x, None), ValueError, "labels .* are needed"),
        ((x, labels, None, None, labels), ValueError, "ref_labels was given without ref_emb"),
        ((x, labels, None, x, None), ValueError, "ref_labels .* are needed"),
        ((x, labels, None, x, labels[1:]), ValueError, "ref_labels must have shape .* ref_emb"),
        ((x, labels, None, x[:, 1:], labels), ValueError, "ref_emb must have . dimensions"),
    ):
        with pytest.raises(error, match=match):
            loss_fn(*args)
    with pytest.raises(TypeError, match="phi must be a tensor or a sequence of numbers, got 'auto'"):
        type(loss_fn)("auto")


def test_offset_must_be_a_number() -> None:
    for bad in ("1", None, math.nan):
        with pytest.raises(ValueError, match="offset must be a finite number"):
            FocalWeightingLoss(offset=bad)


def test_set_phi_between_forward_and_backward(name: str, labels: Tensor) -> None:
    """An earlier graph keeps the parameters it was built with."""
    loss_fn = make(name)
    x = torch.randn(20, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(loss_fn(x, labels), x)
    loss = loss_fn(x, labels)
    loss_fn.set_phi(torch.full_like(loss_fn.phi, 0.9))
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def test_copies_and_state(name: str, x: Tensor, labels: Tensor) -> None:
    loss_fn = make(name)
    loss_fn.set_phi(torch.full_like(loss_fn.phi, 0.6))
    fresh = make(name)
    fresh.load_state_dict(loss_fn.state_dict())
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)), fresh):
        assert torch.equal(twin(x, labels), loss_fn(x, labels))


def test_inside_pml_wrappers(name: str, x: Tensor, labels: Tensor) -> None:
    both = MultipleLosses([make(name), MultiSimilarityLoss()], weights=[0.5, 2])
    expected = 0.5 * make(name)(x, labels) + 2 * MultiSimilarityLoss()(x, labels)
    assert torch.allclose(both(x, labels), expected)
    from pytorch_metric_learning.utils import common_functions

    assert common_functions.COLLECT_STATS in (True, False)
    make(name, collect_stats=True)(x, labels)
    # CrossBatchMemory admits its own losses only, by class name; see the documentation of our own wrappers
    with pytest.raises(Exception, match=type(make(name)).__name__):
        CrossBatchMemory(make(name), 6)


def test_impl_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match="impl must be"):
        make(name, impl="fastest")


def test_ops_and_losses_agree(x: Tensor, labels: Tensor) -> None:
    loss_fn = DistanceMixtureLoss(PHI, reducer=reducers.DoNothingReducer())
    direct = ops.distance_mixture(unit(x), labels, loss_fn.phi)
    assert torch.allclose(loss_fn(x, labels)["loss"]["losses"], direct, rtol=1e-12)


@pytest.mark.parametrize("lists", [3, 4])
def test_compiled_with_mined_pairs(impl: str, name: str, lists: int, labels: Tensor) -> None:
    torch._dynamo.reset()
    loss = make(name, impl=impl)
    triplets = (torch.tensor([0, 1, 1, 1]), torch.tensor([2, 3, 3, 4]), torch.tensor([5, 6, 7, 6]))
    pairs = (*triplets[:2], torch.tensor([0, 0, 1]), torch.tensor([6, 6, 7]))
    indices = triplets if lists == 3 else pairs
    results = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        leaf = torch.randn(len(labels), 4, requires_grad=True)
        value = call(leaf, labels, indices)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(eager, compiled)


def test_mined_lists_of_unequal_lengths(impl: str, name: str, x: Tensor, labels: Tensor) -> None:
    none, one = torch.tensor([], dtype=torch.int64), torch.tensor([1])
    for indices in ((none, one, one), (one, none, none), (none, one, one, one), (one, one, one, none)):
        with pytest.raises(ValueError, match="index lists must have equal lengths"):
            make(name, impl=impl)(x, labels, indices)


def test_inference_tensors(impl: str, name: str, labels: Tensor) -> None:
    with torch.inference_mode():
        y, held, index = torch.randn(len(labels), 4), labels.clone(), torch.tensor([0, 1])
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = make(name, impl=impl)
    for arguments in ((held,), (held, (index, index, index)), (held, None, y, held)):
        copies = [
            v.clone() if isinstance(v, Tensor) else v and tuple(i.clone() for i in v) for v in arguments
        ]
        (found,), (expected,) = (torch.autograd.grad(loss(x, *a), x) for a in (arguments, copies))
        assert torch.equal(found, expected)
