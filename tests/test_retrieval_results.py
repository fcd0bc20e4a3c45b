"""Scores per query and class, intervals over classes, the PML calculator, and how faiss is found."""

from __future__ import annotations

import builtins
import importlib.metadata
import math
import pickle

import numpy as np
import pytest
import torch

from ala_metric import metrics, ops
from tests import oracle


def data(n: int = 240, classes: int = 40, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, classes, (n,))
    labels[0] = 99  # without positives
    centres = torch.randn(100, d)
    return torch.nn.functional.normalize(centres[labels] + torch.randn(n, d)), labels


# -------------------- per query and class


def test_scores_per_query() -> None:
    x, labels = data(60, 12)
    found = metrics.retrieval(x, labels, k=(1, 5), per_query=True).per_query
    assert found is not None
    for i, ranks in enumerate(oracle.ranks(x.tolist(), labels.tolist())):
        r = len(ranks)
        expected = (
            {
                "recall_at_1": ranks[0] <= 1,
                "recall_at_5": ranks[0] <= 5,
                "r_precision": sum(v <= r for v in ranks) / r,
                "map_at_r": sum(j / v for j, v in enumerate(ranks, 1) if v <= r) / r,
                "mrr": 1 / ranks[0],
            }
            if ranks
            else {}
        )
        for name, scores in found.items():
            if ranks:
                assert float(scores[i]) == pytest.approx(float(expected[name]), abs=1e-15)
            else:
                assert math.isnan(float(scores[i]))


def test_scores_per_class() -> None:
    x, labels = data()
    result = metrics.retrieval(x, labels, k=(1, 5), per_query=True, per_class=True)
    query, group = result.per_query, result.per_class
    assert query is not None
    assert group is not None
    asked = ~query["mrr"].isnan()
    assert group["class"].tolist() == sorted(set(labels[asked].tolist()))
    for name in query:
        for c, score in zip(group["class"].tolist(), group[name].tolist()):
            assert score == pytest.approx(float(query[name][asked & (labels == c)].mean()), abs=1e-15)
    assert result.map_at_r == pytest.approx(float(query["map_at_r"][asked].mean()), abs=1e-15)
    plain = metrics.retrieval(x, labels, k=(1, 5))
    assert plain == result
    assert plain.per_query is plain.per_class is None


# -------------------- bootstrap


def test_interval_widens_with_classes_that_stand_or_fall_together() -> None:
    """Ten copies of every query tell nothing new: resampling queries would shrink the interval threefold."""
    classes = torch.arange(40)
    first, second = torch.rand(40), torch.rand(40) + 0.2
    alone = metrics.paired_bootstrap(first, second, classes)
    copies = metrics.paired_bootstrap(first.repeat(10), second.repeat(10), classes.repeat(10))
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert alone.low < alone.difference < alone.high
    assert alone.difference == pytest.approx(
        float((second - first).double().mean()), abs=1e-7
    )  # float32 data


def test_interval_covers_the_truth_about_as_often_as_promised() -> None:
    inside = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.arange(120) // 4
        effect = torch.randn(30, generator=generator)[classes] + 0.3
        found = metrics.paired_bootstrap(torch.zeros(120), effect, classes, resamples=499, confidence=0.9)
        inside += found.low <= 0.3 <= found.high
    # 60 draws of probability 0.9: 54 on average, below 47 or always once in 300 runs; the seeds are fixed
    assert 47 <= inside < 60


def test_excluded_queries_are_left_out_of_the_interval() -> None:
    classes = torch.arange(30) // 3
    first, second = torch.rand(30), torch.rand(30)
    expected = metrics.paired_bootstrap(first, second, classes)
    more = torch.tensor([math.nan])
    found = metrics.paired_bootstrap(
        torch.cat([first, more]), torch.cat([second, more]), torch.cat([classes, torch.tensor([77])])
    )
    assert found == expected


def test_no_difference_has_no_width() -> None:
    classes = torch.arange(12) // 3
    for gain in (0.0, 0.25):
        found = metrics.paired_bootstrap(torch.zeros(12), torch.full((12,), gain), classes)
        assert (found.difference, found.low, found.high) == (gain, gain, gain)


def test_bad_bootstraps() -> None:
    a, classes = torch.rand(6), torch.arange(6) % 2
    call = metrics.paired_bootstrap
    with pytest.raises(ValueError, match="one shape"):
        call(a, a[:5], classes)
    with pytest.raises(ValueError, match="NaN for the same queries"):
        call(a, a.clone().fill_(math.nan), classes)
    with pytest.raises(ValueError, match="at least 2 classes"):
        call(a, a, classes * 0)
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            call(a, a, classes, confidence=confidence)
    with pytest.raises(ValueError, match="resamples"):
        call(a, a, classes, resamples=0)


# -------------------- the PML calculator

NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision")


@pytest.mark.parametrize("averages", [{}, {"avg_of_avgs": True}, {"return_per_class": True}])
@pytest.mark.parametrize("gallery", ["own", "separate", "includes"])
def test_calculator_equals_pml(averages: dict[str, bool], gallery: str) -> None:
    pytest.importorskip("faiss")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    x, labels = data()
    more, more_labels = data()
    args = {
        "own": (x, labels),
        "separate": (x, labels, more, more_labels),
        "includes": (x, labels, torch.cat([x, more]), torch.cat([labels, more_labels]), True),
    }[gallery]
    names = (*NAMES, "mean_reciprocal_rank")
    theirs = AccuracyCalculator(include=names, device=torch.device("cpu"), **averages).get_accuracy(*args)
    ours = metrics.accuracy_calculator(include=names, **averages).get_accuracy(*args)
    assert theirs.keys() == ours.keys()
    for name in names:
        # float32 in their reciprocal rank
        tolerance = 1e-6 if name == "mean_reciprocal_rank" else 1e-12
        assert ours[name] == pytest.approx(theirs[name], abs=tolerance)


def test_calculator_adds_recall() -> None:
    x, labels = data()
    found = metrics.accuracy_calculator().get_accuracy(x.numpy(), labels.numpy()[:, None])
    result = metrics.retrieval(x, labels)
    assert {k: found[f"recall_at_{k}"] for k in result.recall_at_k} == result.recall_at_k
    assert "recall_at_1000" not in found  # more than there are references
    assert "NMI" not in found
    with pytest.raises(ValueError, match="k must be"):
        metrics.accuracy_calculator((1, 1000)).get_accuracy(x, labels)


def test_calculator_keeps_large_labels_apart() -> None:
    x = torch.tensor([[0.0], [0.1], [1.0], [1.2]])
    labels = torch.tensor([0, 1, 1, 0]) + 2**24  # equal as float32
    found = metrics.accuracy_calculator((1,)).get_accuracy(x, labels)
    assert found["precision_at_1"] == 0.0


def test_calculator_refuses_what_would_lie() -> None:
    x, labels = data()
    calculator = metrics.accuracy_calculator((1,))
    with pytest.raises(ValueError, match="finite"):
        calculator.get_accuracy(x * math.nan, labels)
    with pytest.raises(ValueError, match="none of the 5 queries"):
        calculator.get_accuracy(x[:5], torch.arange(5))
    with pytest.raises(ValueError, match="first rows of reference"):
        calculator.get_accuracy(x, labels, x.flip(0), labels.flip(0), True)
    with pytest.raises(ValueError, match="Primary metrics"):
        metrics.accuracy_calculator(include=("recall_at_7",))


def test_calculator_in_the_tester_of_two_streams() -> None:
    """It hands labels over as float32; anchors are the queries and their partners the references."""
    from pytorch_metric_learning.testers import GlobalTwoStreamEmbeddingSpaceTester

    x, labels = data(40, 10)
    y, _ = data(40, 10)
    tester = GlobalTwoStreamEmbeddingSpaceTester(
        accuracy_calculator=metrics.accuracy_calculator((1, 10)),
        dataloader_num_workers=0,
        data_and_label_getter=lambda item: item,
    )
    rows = torch.utils.data.TensorDataset(x, y, labels)
    found = tester.test({"val": rows}, 0, torch.nn.Identity(), torch.nn.Identity())["val"]
    norm = torch.nn.functional.normalize
    expected = metrics.retrieval(norm(x), labels, ref_emb=norm(y), ref_labels=labels, k=(10,))
    assert found["recall_at_10_level0"] == expected.recall_at_k[10]


def test_calculator_in_the_tester_of_parent_labels() -> None:
    from pytorch_metric_learning.testers import WithSameParentLabelTester

    x, labels = data(60, 10)
    parents = torch.arange(60) % 2
    tester = WithSameParentLabelTester(
        accuracy_calculator=metrics.accuracy_calculator((1, 10)), dataloader_num_workers=0
    )
    rows = torch.utils.data.TensorDataset(x, torch.stack([labels, parents], dim=1))
    found = tester.test({"val": rows}, 0, torch.nn.Identity())["val"]["recall_at_10_level0"]
    each = [
        metrics.retrieval(torch.nn.functional.normalize(x[own]), labels[own], k=(10,)).recall_at_k[10]
        for own in (parents == 0, parents == 1)
    ]
    assert found == sum(each) / 2


def test_float_labels_of_the_calculator() -> None:
    x, labels = data(20, 4)
    calculator = metrics.accuracy_calculator((1,))
    assert calculator.get_accuracy(x, labels.float()) == calculator.get_accuracy(x, labels)
    for bad in (labels + 0.5, labels.float() + 2**24, labels.float() * math.nan):
        with pytest.raises(ValueError, match="whole numbers"):
            calculator.get_accuracy(x, bad)


# -------------------- faiss


def test_faiss_counts_queries_beyond_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    from ala_metric.ops import _faiss

    monkeypatch.setattr(_faiss, "_DEPTHS", (3, 9))
    monkeypatch.setattr(_faiss, "_QUERIES", 17)
    x, labels = data(150, 12)
    y, ref_labels = data(90, 12)
    for refs in ({}, {"ref_emb": y, "ref_labels": ref_labels}):
        for distance in ("euclidean", "cosine"):
            expected = ops.positive_ranks(x, labels, distance=distance, impl="strips", **refs)
            found = ops.positive_ranks(x, labels, distance=distance, impl="faiss", **refs)
            assert torch.equal(found[0], expected[0])


def test_faiss_searches_tensors_as_well_as_arrays() -> None:
    """The way of CUDA tensors, walked on the CPU: faiss gives back tensors, and no array is made."""
    pytest.importorskip("faiss.contrib.torch_utils")
    from ala_metric.ops import _faiss
    from ala_metric.ops._rank_strips import positives_per_query

    x, labels = data(150, 12)
    for distance in ("euclidean", "cosine"):
        ranks = _faiss.FaissRanks(x, labels, None, None, distance)
        ranks.tensors = True
        found = ranks.ranks(positives_per_query(labels, None), False)
        expected = ops.positive_ranks(x, labels, distance=distance, impl="strips", ties="both")[0]
        assert torch.equal(found, expected)


def test_faiss_distances_are_not_trusted() -> None:
    """An offset of 1e3 and steps of 1e-4: plain float32 products of such rows are noise."""
    pytest.importorskip("faiss")
    x = 1e3 + 1e-4 * torch.randint(0, 50, (200, 4), dtype=torch.float64)
    labels = torch.randint(0, 30, (200,))
    expected = ops.positive_ranks(x, labels, impl="reference", ties="both")[0]
    assert torch.equal(ops.positive_ranks(x, labels, impl="faiss", ties="both")[0], expected)


def test_missing_faiss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_faiss)
    with pytest.raises(ImportError, match=r"pip install 'ala-metric\[faiss\]'"):
        ops.positive_ranks(*data(20, 4), impl="faiss")


def test_two_faiss_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(RuntimeError, match="faiss-cpu and faiss-gpu .*pip uninstall"):
        ops.positive_ranks(*data(20, 4), impl="faiss")


def test_faiss_uses_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faiss for GPUs on a machine without one reports 0 of them; with one its memory is capped."""
    faiss = pytest.importorskip("faiss")
    from ala_metric.ops import _faiss

    seen: list[object] = []

    class Resources:
        def setTempMemory(self, size: int) -> None:
            seen.append(size)

    def to_gpu(resources: object, device: int, index: object) -> object:
        seen.append(device)
        return index

    x, labels = data(40, 6)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    for gpus, expected in ((0, []), (1, [_faiss.GPU_TEMPORARY_BYTES, 0])):
        monkeypatch.setattr(faiss, "get_num_gpus", lambda gpus=gpus: gpus, raising=False)
        seen.clear()
        found = ops.positive_ranks(x, labels, impl="faiss")
        assert seen == expected
        assert torch.equal(found[0], ops.positive_ranks(x, labels, impl="strips")[0])


def test_other_ops_do_not_know_faiss() -> None:
    x, labels = data(20, 4)
    with pytest.raises(ValueError, match="impl must be"):
        ops.distance_statistics(x, labels, impl="faiss")


def test_against_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    x, labels = data()
    _, near = NearestNeighbors(n_neighbors=len(x), algorithm="brute").fit(x.numpy()).kneighbors(x.numpy())
    hits = labels.numpy()[near[:, 1:]] == labels.numpy()[:, None]
    first = np.where(hits.any(1), hits.argmax(1) + 1, 0)
    assert ops.positive_ranks(x, labels, first_only=True).tolist() == first.tolist()


def test_one_depth_may_be_an_integer() -> None:
    x, labels = torch.randn(11, 3), torch.arange(11) % 4
    assert metrics.retrieval(x, labels, k=5).recall_at_k == metrics.retrieval(x, labels, k=(5,)).recall_at_k
    assert metrics.RecallAtK(5)(x, labels) == metrics.RecallAtK((5,))(x, labels)
    assert metrics.RecallAtK(5).name == "recall@5"
    for wrong in (0, -1, True, 11, 1.5, (), (1, 1.0)):
        with pytest.raises((ValueError, TypeError), match="k must be"):
            metrics.retrieval(x, labels, k=wrong)
        with pytest.raises((ValueError, TypeError), match="k must be"):
            metrics.RecallAtK(wrong)(x, labels)


def test_a_pickled_metric_trims_its_default_depths_too() -> None:
    x, labels = torch.randn(11, 3), torch.arange(11) % 4
    copied = pickle.loads(pickle.dumps(metrics.RecallAtK()))
    assert copied(x, labels) == metrics.RecallAtK()(x, labels) == metrics.RecallAtK((1, 10))(x, labels)
