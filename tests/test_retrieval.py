"""Ranks and retrieval metrics against double loops, scikit-learn, and the traps of nearest-neighbour code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import ala_metric as ala
from ala_metric import metrics, ops
from tests import oracle


@pytest.fixture(params=["reference", "strips", "auto", "native", "faiss"])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not ala.native_info().available:
        pytest.skip(ala.native_info().reason)
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def split(ranks: Tensor, offsets: Tensor) -> list[list[int]]:
    return [ranks[a:b].tolist() for a, b in zip(offsets.tolist(), offsets.tolist()[1:])]


@pytest.mark.parametrize(
    ("n", "d", "classes"), [(1, 1, 1), (2, 3, 1), (7, 2, 3), (37, 5, 4), (40, 3, 40), (61, 1, 2)]
)
@pytest.mark.parametrize("m", [None, 1, 13])
def test_ranks_equal_double_loops(impl: str, n: int, d: int, classes: int, m: int | None) -> None:
    x, labels = torch.randn(n, d), torch.randint(0, classes, (n,))
    y, ref_labels = (None, None) if m is None else (torch.randn(m, d), torch.randint(0, classes, (m,)))
    args = [None if v is None else v.tolist() for v in (x, labels, y, ref_labels)]
    expected = oracle.ranks(*args)
    refs = {"ref_emb": y, "ref_labels": ref_labels, "impl": impl}
    ranks, offsets = ops.positive_ranks(x, labels, **refs)
    assert split(ranks, offsets) == expected
    assert ranks.dtype == offsets.dtype == torch.int64
    first = ops.positive_ranks(x, labels, first_only=True, **refs)
    assert first.tolist() == [r[0] if r else 0 for r in expected]


def test_ties_of_a_grid(impl: str) -> None:
    """Integers at many equal distances: all ties are exact."""
    x = torch.stack(torch.meshgrid(*[torch.arange(-2.0, 3.0)] * 2, indexing="ij"), -1).reshape(-1, 2)
    labels = torch.arange(25) % 3
    for shift in (0, 100):
        for optimistic, ties in ((False, "pessimistic"), (True, "optimistic")):
            found = split(*ops.positive_ranks(x + shift, labels, ties=ties, impl=impl))
            assert found == oracle.ranks(x.tolist(), labels.tolist(), optimistic=optimistic)
    both, offsets = ops.positive_ranks(x, labels, ties="both", impl=impl)
    assert split(both[1], offsets) == oracle.ranks(x.tolist(), labels.tolist(), optimistic=True)


def test_exact_duplicates_of_other_labels(impl: str) -> None:
    """The query is excluded by index, not because its distance is 0."""
    x = torch.randn(10, 16).repeat_interleave(2, 0)  # every row has a twin
    other = torch.arange(20)  # ... of another class; the true positives are far
    labels = torch.stack([torch.arange(10), (torch.arange(10) + 1) % 10], 1).reshape(-1)
    assert len(set(other.tolist())) == 20
    result = metrics.retrieval(x, labels, k=(1,), impl=impl)
    assert result.recall_at_k[1] == 0.0
    same = torch.arange(10).repeat_interleave(2)
    assert metrics.retrieval(x, same, k=(1,), impl=impl).recall_at_k[1] == 1.0


def test_collapse_scores_zero(impl: str) -> None:
    x, labels = torch.ones(12, 3), torch.arange(12) % 3
    result = metrics.retrieval(x, labels, k=(1, 8, 9), impl=impl)
    assert result.recall_at_k == {1: 0.0, 8: 0.0, 9: 1.0}  # eight negatives, all before the first positive
    assert result.tied_queries == 12
    spread = metrics.retrieval(torch.randn(12, 3), labels, k=(1,), impl=impl)
    assert spread.tied_queries == 0


@pytest.mark.parametrize("scale", [1e25, 1.0, 1e-25])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_scale_and_offset_keep_the_neighbours(impl: str, scale: float, offset: float) -> None:
    spread = 1e-3 if offset else 1.0
    x = ((offset + spread * torch.randn(40, 8)) * scale).float()
    labels = torch.randint(0, 8, (40,))
    assert split(*ops.positive_ranks(x, labels, impl=impl)) == oracle.ranks(
        (x.double() / scale).tolist(), labels.tolist()
    )


def test_out_of_range_is_an_error(impl: str) -> None:
    x = torch.tensor([[1e308], [-1e308], [0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="emb must be finite with differences inside float64"):
        ops.positive_ranks(x, torch.tensor([0, 0, 1]), impl=impl)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_rows_are_an_error(impl: str, bad: float) -> None:
    x = torch.randn(6, 2)
    x[3, 1] = bad
    for level in ("auto", "cheap"):
        ala.set_checks(level)
        try:
            with pytest.raises(ValueError, match="finite"):
                ops.positive_ranks(x, torch.arange(6) % 2, impl=impl)
        finally:
            ala.set_checks("auto")


def test_cosine_is_euclidean_of_unit_rows(impl: str) -> None:
    x, labels = torch.randn(50, 6, dtype=torch.float64), torch.randint(0, 7, (50,))
    long = x * torch.logspace(-200, 200, 50, dtype=torch.float64)[:, None]
    expected = ops.positive_ranks(torch.nn.functional.normalize(x), labels, impl=impl)
    for found in (x, long):
        ranks, _ = ops.positive_ranks(found, labels, distance="cosine", impl=impl)
        assert torch.equal(ranks, expected[0])


def test_all_metrics_from_ranks(impl: str) -> None:
    x, labels = torch.randn(60, 4), torch.randint(0, 12, (60,))
    labels[0] = 99  # a query without positives
    per_query = oracle.ranks(x.tolist(), labels.tolist())
    asked = [r for r in per_query if r]
    result = metrics.retrieval(x, labels, k=(1, 2, 5, 59), impl=impl)
    for k, value in result.recall_at_k.items():
        assert value == pytest.approx(np.mean([r[0] <= k for r in asked]), abs=1e-12)
    assert result.r_precision == pytest.approx(np.mean([sum(v <= len(r) for v in r) / len(r) for r in asked]))
    expected = [sum(j / v for j, v in enumerate(r, 1) if v <= len(r)) / len(r) for r in asked]
    assert result.map_at_r == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.mrr == pytest.approx(np.mean([1 / r[0] for r in asked]), abs=1e-12)
    assert (result.queries, result.excluded_queries) == (len(asked), 60 - len(asked))


def test_against_faiss_and_pml() -> None:
    faiss = pytest.importorskip("faiss")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    x, labels = torch.nn.functional.normalize(torch.randn(500, 16)), torch.randint(0, 60, (500,))
    index = faiss.IndexFlatL2(16)
    index.add(x.numpy())
    _, neighbours = index.search(x.numpy(), 500)
    neighbours = [[j for j in row if j != i] for i, row in enumerate(neighbours)]
    hits = labels.numpy()[np.array(neighbours)] == labels.numpy()[:, None]
    first = np.where(hits.any(1), hits.argmax(1) + 1, 0)
    assert ops.positive_ranks(x, labels, first_only=True).tolist() == first.tolist()
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k="max_bin_count",
        device=torch.device("cpu"),
    ).get_accuracy(x, labels)
    ours = metrics.retrieval(x, labels, k=(1,))
    assert ours.recall_at_k[1] == pytest.approx(theirs["precision_at_1"], abs=1e-12)
    assert ours.r_precision == pytest.approx(theirs["r_precision"], abs=1e-12)
    assert ours.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-12)


@pytest.mark.parametrize("k", [(0,), (-1,), (1.0,), (60,), (True,), (), 60])
def test_bad_depths(k) -> None:
    x, labels = torch.randn(60, 4), torch.arange(60) % 5
    for call in (
        lambda: metrics.retrieval(x, labels, k=k),
        lambda: metrics.RecallAtK(k)(x, labels),
    ):
        with pytest.raises(ValueError, match="k must be"):
            call()


def test_a_metric_is_checked_when_it_is_made() -> None:
    for bad in ((0,), 0, (1.5,), ()):
        with pytest.raises(ValueError, match="k must be"):
            metrics.RecallAtK(bad)
    with pytest.raises(ValueError, match="distance must be"):
        metrics.RecallAtK(distance="l1")
    with pytest.raises(ValueError, match="impl must be"):
        metrics.RecallAtK(impl="fast")
    with pytest.raises(ValueError, match="'faiss', got 'fast'"):
        ops.positive_ranks(torch.eye(2), torch.arange(2), impl="fast")


def test_default_depths_fit_small_sets() -> None:
    x, labels = torch.randn(60, 4), torch.arange(60) % 5
    assert list(metrics.retrieval(x, labels).recall_at_k) == [1, 10]


def test_no_query_has_a_positive(impl: str) -> None:
    for call in (metrics.retrieval, metrics.RecallAtK()):
        with pytest.raises(ValueError, match="none of the 5 queries has a reference of its own class"):
            call(torch.randn(5, 2), torch.arange(5))


def test_recall_at_k_is_the_mean_over_depths() -> None:
    x, labels = torch.randn(60, 4), torch.randint(0, 12, (60,))
    result = metrics.retrieval(x, labels, k=(1, 2, 4, 8))
    metric = metrics.RecallAtK((1, 2, 4, 8))
    assert metric(x, labels) == pytest.approx(sum(result.recall_at_k.values()) / 4, abs=1e-12)
    assert metric.higher_is_better
    assert metric.name == "recall@1,2,4,8"


def test_names_of_choices() -> None:
    x, labels = torch.randn(6, 2), torch.arange(6) % 2
    with pytest.raises(ValueError, match="distance must be 'euclidean' or 'cosine', got 'l1'"):
        ops.positive_ranks(x, labels, distance="l1")
    with pytest.raises(ValueError, match="ties must be"):
        ops.positive_ranks(x, labels, ties="average")


def test_half_precision_and_label_dtypes(impl: str) -> None:
    x, labels = torch.randn(30, 8).half(), torch.arange(30) % 6
    expected = ops.positive_ranks(x.double(), labels, impl=impl)[0]
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(ops.positive_ranks(x, labels.to(dtype), impl=impl)[0], expected)


def test_arrays_are_told_how_to_become_tensors() -> None:
    emb, labels = torch.randn(6, 3), torch.arange(6) % 2
    said = r"must be a tensor, got ndarray; torch.from_numpy\(array\) makes one"
    with pytest.raises(TypeError, match=f"^emb {said}"):
        metrics.retrieval(emb.numpy(), labels, ref_emb=emb.numpy(), ref_labels=labels)
    with pytest.raises(TypeError, match=f"^ref_emb {said}"):
        metrics.retrieval(emb, labels, ref_emb=emb.numpy(), ref_labels=labels)
    with pytest.raises(TypeError, match="labels must be a tensor of integers, got ndarray; torch.from_numpy"):
        metrics.retrieval(emb, labels.numpy())
    with pytest.raises(TypeError, match=f"^second {said}"):
        metrics.paired_bootstrap(emb[:, 0], emb[:, 0].numpy(), labels)


def test_errors_of_the_metric_name_its_own_arguments() -> None:
    outputs, targets = torch.randn(6, 3), torch.arange(6) % 2
    for metric in (metrics.RecallAtK(1), metrics.RecallAtK()):
        with pytest.raises(TypeError, match="^outputs must be a tensor, got ndarray"):
            metric(outputs.numpy(), targets)
        with pytest.raises(ValueError, match="^outputs must be finite, got NaN or Inf in 6 of 6 rows"):
            metric(outputs * float("nan"), targets)
        with pytest.raises(TypeError, match="^targets must have an integer dtype"):
            metric(outputs, targets.float())
        with pytest.raises(ValueError, match=r"^targets must have shape \[6\] like the rows of outputs"):
            metric(outputs, targets[1:])


@pytest.mark.parametrize("k", [torch.tensor(1), np.array(1)])
def test_a_depth_is_no_tensor(k) -> None:
    emb, labels = torch.randn(6, 3), torch.arange(6) % 2
    with pytest.raises(ValueError, match="k must be integers >= 1, got"):
        metrics.retrieval(emb, labels, k=k)
    with pytest.raises(ValueError, match="k must be integers >= 1, got"):
        metrics.RecallAtK(k)
