"""Verification protocol against hand computation, explicit loops and scikit-learn."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from ala_metric import Metric, metrics


def pairs_at_random(count: int, folds: int, seed: int, decimals: int | None = None):
    """Overlapping distances of same and different pairs, in uneven folds; rounded ones have ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.4
    distances = np.where(same, 0.8, 1.2) + 0.3 * rng.standard_normal(count)
    fold = rng.choice(folds, size=count, p=np.arange(1, folds + 1) / (folds * (folds + 1) / 2))
    return (distances if decimals is None else distances.round(decimals)), same, fold


def brute_force(distances, same, folds):
    """Fold accuracies and thresholds by trying every cut, one pair at a time."""
    accuracies, thresholds = [], []
    for name in sorted(set(folds.tolist())):
        rest = [(d, s) for d, s, f in zip(distances, same, folds) if f != name]
        values = sorted({d for d, _ in rest})
        bounds = [-math.inf, *values, math.inf]
        right = [
            sum((d <= bounds[k]) == s for d, s in rest) for k in range(len(values) + 1)
        ]  # cut k: anywhere in [bounds[k], bounds[k + 1])
        plateaus: list[list[int]] = []
        for k, number in enumerate(right):
            if number == max(right):
                if plateaus and plateaus[-1][-1] == k - 1:
                    plateaus[-1].append(k)
                else:
                    plateaus.append([k])
        plateau = plateaus[(len(plateaus) - 1) // 2]
        threshold = (bounds[plateau[0]] + bounds[plateau[-1] + 1]) / 2
        held = [(d, s) for d, s, f in zip(distances, same, folds) if f == name]
        accuracies.append(sum((d <= threshold + 1e-12) == s for d, s in held) / len(held))
        thresholds.append(threshold)
    return accuracies, thresholds


# Fold 0 holds 8 same pairs below .5 and .9, .3 wrong ones; see the counts in the test.
HAND_DISTANCES = [0.10, 0.20, 0.30, 0.40, 0.90, 0.35, 0.60, 0.70, 0.80, 1.00]
HAND_DISTANCES += [0.15, 0.25, 0.45, 0.55, 0.65, 0.50, 0.75, 0.85, 0.95, 1.05]
HAND_SAME = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0] * 2


def test_twenty_pairs_in_two_folds_by_hand() -> None:
    """Every number below was worked out on paper.

    Fold 0 (same .1 .2 .3 .4 .9; different .35 .6 .7 .8 1.0): cutting between .4 and .6 accepts 4 same and
    1 different: 8 of 10 right. Between .3 and .35: 3 same, none different: 8 of 10. Plateaus (.3, .35) and
    (.4, .6): the lower of two, threshold .325. On fold 1 it accepts .15 .25: 2 + 5 = 7 of 10 right.
    Fold 1 (same .15 .25 .45 .55 .65; different .5 .75 .85 .95 1.05): between .65 and .75: 9 of 10, alone.
    Threshold .7. On fold 0 it accepts .1 .2 .3 .4 and .35 .6 .7: 4 + 2 = 6 of 10 right.
    Pooled, the same pairs below each different one: .35 5, .5 7, .6 8, .7 to .85 9 each (.7 .75 .8 .85),
    .95 1.0 1.05 10 each: 5 + 7 + 8 + 36 + 30 = 86 of 100.
    """
    result = metrics.verification(HAND_DISTANCES, HAND_SAME, [0] * 10 + [1] * 10, far=(0.0, 0.1, 0.2, 1.0))
    assert result.fold_accuracies == (0.6, 0.7)
    assert result.thresholds == pytest.approx((0.7, 0.325), abs=1e-15)
    assert result.accuracy == pytest.approx(0.65, abs=1e-15)
    assert result.std == pytest.approx(0.1 / math.sqrt(2), abs=1e-15)
    assert result.standard_error == pytest.approx(0.05, abs=1e-15)
    assert result.roc_auc == 0.86
    assert result.tar_at_far == {0.0: 0.5, 0.1: 0.7, 0.2: 0.8, 1.0: 1.0}


@pytest.mark.parametrize("decimals", [None, 1, 2])
@pytest.mark.parametrize(("count", "folds"), [(31, 2), (97, 3), (300, 10)])
def test_equals_brute_force(count: int, folds: int, decimals: int | None) -> None:
    for seed in range(5):
        distances, same, fold = pairs_at_random(count, folds, seed, decimals)
        result = metrics.verification(distances, same, fold)
        accuracies, thresholds = brute_force(distances, same, fold)
        assert result.thresholds == pytest.approx(thresholds, abs=1e-14)  # one rounding of the midpoint
        assert list(result.fold_accuracies) == accuracies
        assert result.accuracy == pytest.approx(statistics.fmean(accuracies), abs=1e-15)
        assert result.standard_error == pytest.approx(
            statistics.stdev(accuracies) / math.sqrt(len(accuracies)), abs=1e-15
        )


@pytest.mark.parametrize("decimals", [None, 1])
def test_roc_equals_scikit_learn(decimals: int | None) -> None:
    for seed in range(5):
        distances, same, fold = pairs_at_random(251, 4, seed, decimals)
        rates = (0.0, 1e-3, 0.01, 0.1, 0.5, 1.0)
        result = metrics.verification(distances, same, fold, far=rates)
        assert result.roc_auc == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
        false_rate, true_rate, _ = roc_curve(same, -distances, drop_intermediate=False)
        for rate in rates:
            assert result.tar_at_far[rate] == true_rate[false_rate <= rate].max()


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e-25, 1e25])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_changes_nothing(scale: float, decimals: int | None, dtype: torch.dtype) -> None:
    for seed in range(20):
        distances, same, fold = pairs_at_random(120, 5, seed, decimals)
        distances = torch.tensor(distances, dtype=dtype)
        one, other = (metrics.verification(d, same, fold) for d in (distances, distances * scale))
        assert one.fold_accuracies == other.fold_accuracies
        assert one.roc_auc == other.roc_auc
        assert one.tar_at_far == other.tar_at_far
        # float32: the scaled distances are rounded before we see them
        assert other.thresholds == pytest.approx([t * scale for t in one.thresholds], rel=1e-6)


def test_similarities_are_negated_distances() -> None:
    distances, same, fold = pairs_at_random(150, 5, 3)
    by_distance = metrics.verification(distances, same, fold)
    by_similarity = metrics.verification(-distances, same, fold, higher_is_same=True)
    assert by_similarity.fold_accuracies == by_distance.fold_accuracies
    assert by_similarity.thresholds == tuple(-t for t in by_distance.thresholds)
    assert by_similarity.roc_auc == by_distance.roc_auc
    assert metrics.verification(distances, same, fold, higher_is_same=True).roc_auc == pytest.approx(
        1 - by_distance.roc_auc, abs=1e-12
    )


def test_threshold_never_sees_its_fold() -> None:
    distances, same, fold = pairs_at_random(200, 4, 7)
    before = metrics.verification(distances, same, fold)
    spoiled = np.where(fold == 2, 1e6 * np.arange(200), distances)
    after = metrics.verification(spoiled, ~same * (fold == 2) + same * (fold != 2), fold)
    assert after.thresholds[2] == before.thresholds[2]


def test_uneven_folds_count_alike_and_any_numbers_name_them() -> None:
    distances = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.6]
    same = [1, 0, 1, 0, 1, 0, 1]
    result = metrics.verification(distances, same, [7, 7, 7, 7, -3, -3, 100])
    assert len(result.fold_accuracies) == 3
    assert result.fold_accuracies[2] == 0.0  # the single pair of fold 100: .6 lies above (.3 + .7) / 2
    assert result.accuracy == pytest.approx(sum(result.fold_accuracies) / 3, abs=1e-15)


@pytest.mark.parametrize("low", [0.0, 5e-324, 1.0, 1.0 + 2**-52, 1.7976931348623155e308])
def test_neighbouring_floats_are_told_apart(low: float) -> None:
    high = math.nextafter(low, math.inf)
    result = metrics.verification([low, high] * 2, [1, 0] * 2, [0, 0, 1, 1])
    assert result.accuracy == 1.0
    assert all(low <= t < high for t in result.thresholds)


def test_identical_distances_are_a_coin_toss() -> None:
    result = metrics.verification([0.5] * 8, [1, 0] * 4, [0, 0, 0, 0, 1, 1, 1, 1], far=(0.5,))
    assert result.accuracy == 0.5
    assert result.thresholds == (0.5, 0.5)
    assert result.roc_auc == 0.5
    assert result.tar_at_far == {0.5: 0.0}  # pessimistic: nothing between (0, 0) and (1, 1)


def test_all_different_may_be_the_best_cut() -> None:
    result = metrics.verification([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], [0, 0, 1] * 2, [0, 0, 0, 1, 1, 1])
    assert result.thresholds == (-math.inf, -math.inf)
    assert result.accuracy == pytest.approx(2 / 3, abs=1e-15)


GOOD = ([0.1, 0.9, 0.2, 0.8], [1, 0, 1, 0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"distances": [0.1, math.nan, 0.2, 0.8]}, ValueError, "1 NaN"),
        ({"distances": [0.1, math.inf, -math.inf, 0.8]}, ValueError, "2 NaN or infinite"),
        ({"distances": [[0.1, 0.9, 0.2, 0.8]]}, ValueError, "distances"),
        ({"distances": []}, ValueError, "same"),
        ({"same": [1, 1, 1, 1]}, ValueError, "both kinds"),
        ({"same": [0, 0, 0, 0]}, ValueError, "both kinds"),
        ({"same": [1, 1, 0, 0]}, ValueError, "outside fold 0"),
        ({"same": [1, 0, 2, 0]}, ValueError, "same"),
        ({"same": [1.0, 0.0, 1.0, 0.0]}, TypeError, "same"),
        ({"same": [1, 0, 1]}, ValueError, "same"),
        ({"folds": [0, 0, 0, 0]}, ValueError, "2 folds"),
        ({"folds": [0, 0, 1]}, ValueError, "folds"),
        ({"folds": [0.0, 0.0, 1.0, 1.0]}, TypeError, "folds"),
        ({"distances": None}, TypeError, "distances must be .* sequence of numbers, got NoneType"),
        ({"distances": ["a"] * 4}, TypeError, "distances must be .* sequence of numbers, got list of <U1"),
        ({"distances": torch.tensor([1j, 2j, 3j, 4j])}, TypeError, "distances must be real .*complex64"),
        ({"same": None}, TypeError, "same must be a tensor, array or sequence"),
        ({"folds": ["a", "a", "b", "b"]}, TypeError, "folds must be a tensor, array or sequence"),
        ({"far": (1.5,)}, ValueError, "far"),
        ({"far": (math.nan,)}, ValueError, "far"),
        ({"far": 0.1}, TypeError, "far"),
    ],
)
def test_bad_input_is_refused(change: dict, error: type, text: str) -> None:
    arguments = dict(zip(("distances", "same", "folds"), GOOD)) | change
    far = arguments.pop("far", (1e-3,))
    with pytest.raises(error, match=text):
        metrics.verification(*arguments.values(), far=far)


# ---- the metric on embeddings


def embedding_case(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 12
    centres = torch.randn(12, 7, generator=generator)
    outputs = centres[targets] + 0.8 * torch.randn(60, 7, generator=generator)
    pairs = torch.randint(0, 60, (400, 2), generator=generator)
    pairs[:150, 1] = (pairs[:150, 0] + 12) % 60  # the same class
    folds = torch.arange(400) % 5
    return outputs.to(dtype), targets, pairs, folds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_metric_is_verification_of_normalised_distances(dtype: torch.dtype) -> None:
    outputs, targets, pairs, folds = embedding_case(dtype)
    rows = outputs.double().numpy()
    rows = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    distances = [float(np.sqrt(((rows[i] - rows[j]) ** 2).sum())) for i, j in pairs.tolist()]
    same = [bool(targets[i] == targets[j]) for i, j in pairs.tolist()]
    metric = metrics.VerificationAccuracy(pairs, folds, distance="cosine")
    expected = metrics.verification(distances, same, folds)
    assert metric(outputs, targets) == expected.accuracy
    assert metric.result(outputs, targets).roc_auc == expected.roc_auc
    assert metric.higher_is_better
    assert isinstance(metric, Metric)


def test_normalisation_is_optional_and_row_scale_then_matters() -> None:
    outputs, targets, pairs, folds = embedding_case()
    scaled = outputs * torch.rand(60, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    normalised = metrics.VerificationAccuracy(pairs, folds, distance="cosine")
    plain = metrics.VerificationAccuracy(pairs, folds)
    # float32 scaling moves the distances by 1e-7 only, less than the gaps of this case
    assert normalised(scaled, targets) == normalised(outputs, targets)
    assert plain(scaled, targets) != plain(outputs, targets)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("scale", [1e-30, 1e25, 1e-170, 1e170])
def test_extreme_embeddings_keep_their_neighbours(scale: float, distance: str) -> None:
    outputs, targets, pairs, folds = embedding_case(torch.float64)
    metric = metrics.VerificationAccuracy(pairs, folds, distance=distance)
    assert metric(outputs * scale, targets) == metric(outputs, targets)


def test_large_offset_keeps_near_pairs() -> None:
    outputs, targets, pairs, folds = embedding_case(torch.float64)
    shifted = (100 + 1e-3 * outputs).float()
    metric = metrics.VerificationAccuracy(pairs, folds)
    assert metric(shifted, targets) == metric(shifted.double() - 100, targets)


def test_views_are_averaged_before_normalisation() -> None:
    outputs, targets, pairs, folds = embedding_case()
    mirrored = outputs + torch.randn(60, 7, generator=torch.Generator().manual_seed(2))
    metric = metrics.VerificationAccuracy(pairs, folds, distance="cosine")
    views = torch.stack((outputs, mirrored), 1)
    assert metric(views, targets) == metric((outputs.double() + mirrored.double()) / 2, targets)


def test_collapsed_embeddings_score_half() -> None:
    _, targets, _, _ = embedding_case()
    pairs = torch.tensor([[0, 12], [1, 13], [0, 1], [2, 3]] * 2)
    metric = metrics.VerificationAccuracy(pairs, [0, 0, 0, 0, 1, 1, 1, 1])
    assert metric(torch.zeros(60, 7), targets) == 0.5
    assert metric(torch.ones(60, 7), targets) == 0.5


def test_metric_refuses_bad_input() -> None:
    outputs, targets, pairs, folds = embedding_case()
    metric = metrics.VerificationAccuracy(pairs, folds, distance="cosine")
    spoiled = outputs.clone()
    spoiled[3, 1], spoiled[5, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 60 rows"):
        metric(spoiled, targets)
    with pytest.raises(ValueError, match="targets"):
        metric(outputs, targets[:-1])
    with pytest.raises(TypeError, match="targets"):
        metric(outputs, targets.float())
    with pytest.raises(ValueError, match="rows"):
        metric(outputs[:30], targets[:30])
    with pytest.raises(ValueError, match="outputs"):
        metric(outputs[0], targets)
    with pytest.raises(TypeError, match=r"^outputs must be a tensor, got ndarray; torch.from_numpy"):
        metric(outputs.numpy(), targets)
    with pytest.raises(TypeError, match="^targets must be a tensor, got list"):
        metric(outputs, targets.tolist())
    with pytest.raises(TypeError, match="outputs must be real numbers, got torch.complex64"):
        metric(outputs.to(torch.complex64), targets)
    with pytest.raises(TypeError, match="pairs must be a tensor, array or sequence of numbers, got NoneType"):
        metrics.VerificationAccuracy(None, folds)
    with pytest.raises(ValueError, match="both kinds"):
        metric(outputs, torch.zeros(60, dtype=torch.int64))
    with pytest.raises(ValueError, match="pairs"):
        metrics.VerificationAccuracy(pairs[:, :1], folds)
    with pytest.raises(ValueError, match="pairs"):
        metrics.VerificationAccuracy(-pairs - 1, folds)
    with pytest.raises(TypeError, match="pairs"):
        metrics.VerificationAccuracy(pairs.float(), folds)
    with pytest.raises(ValueError, match="folds"):
        metrics.VerificationAccuracy(pairs, folds[:-1])
