"""Retrieval where rounding decides: outliers, near duplicates, parallel rows, no dimensions, shared rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ala_metric as ala
from ala_metric import metrics, ops


@pytest.fixture(params=["reference", "strips", "native", "faiss"])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not ala.native_info().available:
        pytest.skip(ala.native_info().reason)
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


@pytest.mark.parametrize("first", [True, False])
def test_one_outlier_changes_no_other_query(impl: str, first: bool) -> None:
    labels = torch.arange(200) // 5
    x = torch.randn(40, 16)[labels] + 0.3 * torch.randn(200, 16)
    expected = metrics.retrieval(x[5:], labels[5:], k=1, impl="reference").recall_at_k[1]
    x[0 if first else 3] = 1e9
    result = metrics.retrieval(x, labels, k=1, impl=impl)
    assert result.tied_queries == 0
    assert result.recall_at_k[1] == pytest.approx(expected, abs=0.03)
    strips = ops.positive_ranks(x, labels, impl=impl)[0]
    assert torch.equal(strips, ops.positive_ranks(x, labels, impl="reference")[0])


@pytest.mark.parametrize("spread", [1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("classes", [2, 40])
def test_near_duplicates_do_not_tie(impl: str, spread: float, classes: int) -> None:
    """Rows of float64 that differ by less than their products can tell."""
    places = torch.arange(200) % 20
    x = torch.randn(20, 16, dtype=torch.float64)[places] + spread * torch.randn(200, 16).double()
    labels = torch.arange(200) // 20 % classes
    found, offsets = ops.positive_ranks(x, labels, ties="both", impl=impl)
    distance = ((x[:, None] - x) ** 2).sum(2)
    for i in range(0, 200, 7):
        same = labels == labels[i]
        negatives = distance[i, ~same]
        same[i] = False
        ordered = distance[i, same].sort().values
        expected = (negatives < ordered[:, None]).sum(1) + torch.arange(len(ordered)) + 1
        assert torch.equal(found[1, offsets[i] : offsets[i + 1]], expected)
    if spread > 1e-10:  # below it float64 itself has few values left
        assert torch.equal(found[0], found[1])
    first = ops.positive_ranks(x, labels, first_only=True, impl=impl)
    assert torch.equal(first[offsets.diff() > 0], found[0, offsets[:-1][offsets.diff() > 0]])


@pytest.mark.parametrize("dims", [1, 3, 32, 37])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_along_one_axis_tie_under_the_cosine(impl: str, dims: int, dtype: torch.dtype) -> None:
    x, labels = torch.zeros(600, dims, dtype=dtype), torch.arange(600) % 6
    x[:, dims // 2] = torch.rand(600).to(dtype) * 3 + 0.1
    result = metrics.retrieval(x, labels, distance="cosine", k=(1, 10, 100), impl=impl)
    assert result.recall_at_k == {1: 0.0, 10: 0.0, 100: 0.0}
    assert result.tied_queries == 600


def test_equal_rows_tie_under_the_cosine(impl: str) -> None:
    x, labels = torch.randn(1, 37).expand(300, 37), torch.arange(300) % 6
    result = metrics.retrieval(x, labels, distance="cosine", k=(1, 100, 250), impl=impl)
    assert result.recall_at_k == {1: 0.0, 100: 0.0, 250: 0.0}


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_rows_without_dimensions_tie(impl: str, distance: str) -> None:
    ranks, _ = ops.positive_ranks(
        torch.zeros(5, 0), torch.tensor([0, 0, 1, 1, 1]), distance=distance, impl=impl
    )
    assert ranks.tolist() == [4, 4, 3, 4, 3, 4, 3, 4]


def test_an_offset_in_one_coordinate_keeps_tiny_distances(impl: str) -> None:
    x, labels = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 12
    expected = ops.positive_ranks(x, labels, impl="reference")[0]
    x *= 2.0**-80
    x = torch.cat([x, torch.ones(60, 1).double()], 1)
    assert torch.equal(ops.positive_ranks(x, labels, impl=impl)[0], expected)


def test_queries_in_their_own_gallery_are_refused() -> None:
    x, labels = torch.randn(40, 8), torch.arange(40) % 8
    for emb, ref in ((x, x), (x, x[:]), (x[:7], x), (x, x[30:]), (x[::2], x[20:])):
        with pytest.raises(ValueError, match="ref_emb must not hold the queries"):
            metrics.retrieval(emb, labels[: len(emb)], ref_emb=ref, ref_labels=labels[: len(ref)], k=1)
    for emb, ref in ((x[:20], x[20:]), (x[::2], x[1::2]), (x[:, :4], x[:, 4:]), (x, x.clone())):
        metrics.retrieval(emb, labels[: len(emb)], ref_emb=ref, ref_labels=labels[: len(ref)], k=1)


def test_views_that_are_other_rows_are_as_their_copies() -> None:
    one, square, labels = torch.randn(1, 8).expand(40, 8), torch.randn(20, 20), torch.arange(40) % 8
    for emb, ref in ((one[:10], one[10:]), (square, square.T), (square[:1], square.T)):
        found, expected = (
            metrics.retrieval(emb, labels[: len(emb)], ref_emb=r, ref_labels=labels[: len(r)], k=1)
            for r in (ref, ref.clone())
        )
        assert found == expected


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_scores_of_a_bootstrap() -> None:
    first, second, classes = torch.zeros(20), torch.rand(20), torch.arange(20) // 4
    with pytest.raises(ValueError, match="resamples must be enough for an interval, got 1"):
        metrics.paired_bootstrap(first, second, classes, resamples=1)
    second[3] = math.inf
    with pytest.raises(ValueError, match="finite or NaN, got Inf for 1 of 20"):
        metrics.paired_bootstrap(first, second, classes)
    with pytest.raises(TypeError, match="classes must be integers, got torch.float32"):
        metrics.paired_bootstrap(first, first, classes.float())


def test_calculator_leaves_clusterings_out_unless_included() -> None:
    pytest.importorskip("pytorch_metric_learning")
    found = metrics.accuracy_calculator((1,), exclude=("r_precision",)).get_accuracy(
        torch.randn(20, 4), torch.arange(20) % 4
    )
    assert not {"NMI", "AMI", "r_precision"} & set(found)
    assert "recall_at_1" in found
    both = metrics.accuracy_calculator((1,), include=("NMI", "precision_at_1"))
    assert set(both.get_curr_metrics()) == {"NMI", "precision_at_1"}


def test_calculator_names_nan_rows_first() -> None:
    pytest.importorskip("pytorch_metric_learning")
    x, labels = torch.randn(20, 4), torch.arange(20) % 4
    x[3, 2] = math.nan
    with pytest.raises(ValueError, match="query must be finite, got 1 NaN"):
        metrics.accuracy_calculator((1,)).get_accuracy(x, labels, x.clone(), labels, True)


def test_verification_of_any_array() -> None:
    distances, same, folds = np.linspace(0, 1, 8), np.arange(8) < 4, np.arange(8) % 2
    expected = metrics.verification(distances, same, folds)
    backwards = [v[::-1] for v in (distances, same, folds)]
    for v in (distances, same, folds):
        v.setflags(write=False)
    assert metrics.verification(distances, same, folds) == expected
    assert metrics.verification(*backwards).accuracy == expected.accuracy
    pairs = np.array([[0, 1], [1, 2], [0, 2], [1, 3]])
    rows = torch.randn(4, 3)
    metric = metrics.VerificationAccuracy(pairs[::-1], folds[:4][::-1])
    again = metrics.VerificationAccuracy(pairs[::-1].copy(), folds[:4][::-1].copy())
    targets = torch.tensor([0, 0, 1, 0])
    assert metric(rows, targets) == again(rows, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_accuracies_of_half_distances_follow_from_their_thresholds(dtype: torch.dtype) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        distances = (1 + torch.rand(24, generator=generator)).to(dtype)
        same = torch.rand(24, generator=generator) < 0.5
        folds = torch.arange(24) % 3
        result = metrics.verification(distances, same, folds)
        for fold, accuracy, threshold in zip(range(3), result.fold_accuracies, result.thresholds):
            held_out = folds == fold
            called = distances[held_out].double() <= threshold
            assert accuracy == float((called == same[held_out]).double().mean())
        assert result == metrics.verification(distances.double(), same, folds)
