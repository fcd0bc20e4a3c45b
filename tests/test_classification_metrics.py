"""Error, balanced error and AUCPR against scikit-learn and hand computation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from ala_metric import Metric, metrics

ALL = [
    metrics.ClassificationError(),
    metrics.BalancedError(),
    metrics.AUCPR(),
    metrics.AUCPR("micro"),
]
IDS = [metric.name for metric in ALL]


def logits_at_random(samples: int, classes: int, seed: int, step: float | None = None):
    """Informative logits; a step rounds them, so that many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator) + torch.eye(classes)[targets]
    return (logits if step is None else (logits / step).round() * step), targets


def log_odds(row: list[float]) -> list[float]:
    """Of every class against the others; ``fsum`` makes ties of rows that are permutations."""
    shares = [math.exp(x - max(row)) for x in row]
    return [
        x - max(row) - math.log(math.fsum(shares[:c] + shares[c + 1 :]) or 1e-300) for c, x in enumerate(row)
    ]


def oracle(logits: torch.Tensor, targets: torch.Tensor, average: str) -> float:
    """Average precision by scikit-learn, over the classes that occur."""
    if logits.shape[1] > 100:  # too many sums; nothing saturates or ties there
        scores = logits.double().log_softmax(1).numpy()
    else:
        scores = np.array([log_odds(row) for row in logits.tolist()])
    truth = np.eye(logits.shape[1], dtype=int)[targets.numpy()]
    if average == "micro":
        return average_precision_score(truth.ravel(), scores.ravel())
    return float(
        np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in np.unique(targets.numpy())])
    )


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("step", [None, 0.5, 1.0, 100.0])
@pytest.mark.parametrize(("samples", "classes"), [(2, 2), (53, 2), (211, 7), (1000, 10)])
@pytest.mark.filterwarnings("ignore:AUCPR")
def test_aucpr_equals_scikit_learn(samples: int, classes: int, step: float | None, average: str) -> None:
    logits, targets = logits_at_random(samples, classes, samples, step)
    # 1e-12: both average the same fractions in float64, in another order
    assert metrics.AUCPR(average)(logits, targets) == pytest.approx(
        oracle(logits, targets, average), abs=1e-12
    )


def test_aucpr_by_hand() -> None:
    """Class 0 ranks + + - + -: precisions 1, 1, 3/4; class 1 ranks + - + - -: 1, 2/3."""
    score = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    logits = torch.stack((score, torch.zeros(5)), 1)
    targets = torch.tensor([0, 0, 1, 0, 1])
    expected = ((1 + 1 + 3 / 4) / 3 + (1 + 2 / 3) / 2) / 2
    assert metrics.AUCPR()(logits, targets) == pytest.approx(expected, abs=1e-15)


def test_aucpr_of_ties_is_average_precision_not_trapezoid() -> None:
    """All equal: one threshold, precision = prevalence; the trapezoid from (0, 1) would give more."""
    targets = torch.tensor([0, 1, 1, 1])
    assert metrics.AUCPR()(torch.zeros(4, 2), targets) == pytest.approx((0.25 + 0.75) / 2, abs=1e-15)


def test_aucpr_ranks_where_softmax_saturates() -> None:
    """Probabilities of class 1 are 0 in float64 for all rows; their logarithms still rank them."""
    logits = torch.tensor([[0.0, -800.0], [0.0, -900.0], [0.0, -1000.0], [0.0, -1100.0]])
    targets = torch.tensor([1, 1, 0, 0])
    assert (logits.double().softmax(1)[:, 1] == 0).all()
    score = logits.double().log_softmax(1)[:, 1]
    area = average_precision_score(targets, score)
    assert area == 1.0
    assert metrics.AUCPR()(logits, targets) == 1.0  # of class 0, too, all of whose log p round to 0


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_aucpr_ranks_where_softmax_rounds_to_one(average: str) -> None:
    logits = torch.tensor([[40.0, 0.0], [60.0, 0.0], [50.0, 0.0], [45.0, 0.0], [70.0, 0.0]])
    targets = torch.tensor([0, 0, 1, 1, 0])
    odds = logits.double() - logits.double().flip(1)
    expected = {
        "macro": [average_precision_score(targets == c, odds[:, c]) for c in (0, 1)],
        "micro": [average_precision_score(torch.eye(2)[targets].ravel(), odds.ravel())],
    }[average]
    assert metrics.AUCPR(average)(logits, targets) == pytest.approx(np.mean(expected), abs=1e-12)
    if average == "macro":
        assert round(float(np.mean(expected)), 3) == 0.725


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.filterwarnings("ignore:AUCPR")
def test_aucpr_equals_scikit_learn_on_log_odds(scale: float) -> None:
    logits, targets = logits_at_random(60, 5, 3)
    logits[:, 3] = -math.inf  # ruled out
    logits[7] = torch.tensor([2.0, *[-math.inf] * 4])  # certain
    targets[targets == 3] = 0
    x = scale * logits.double()
    odds = torch.stack([x[:, c] - x[:, [k for k in range(5) if k != c]].logsumexp(1) for c in range(5)], 1)
    odds = odds.clamp(-1e6, 1e6)  # scikit-learn takes no Inf
    areas = [average_precision_score(targets == c, odds[:, c]) for c in targets.unique().tolist()]
    assert metrics.AUCPR()(scale * logits, targets) == pytest.approx(np.mean(areas), abs=1e-12)


def test_aucpr_leaves_absent_classes_out_and_says_so() -> None:
    logits, targets = logits_at_random(40, 3, 1)
    wider = torch.cat((logits, torch.full((40, 2), -1e4)), 1)
    with pytest.warns(UserWarning, match="2 of 5 classes"):
        area = metrics.AUCPR()(wider, targets)
    assert area == pytest.approx(metrics.AUCPR()(logits, targets), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.AUCPR()(logits, targets)


@pytest.mark.filterwarnings("ignore:AUCPR")
def test_aucpr_of_one_class_only_is_one() -> None:
    assert metrics.AUCPR()(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)) == 1.0


@pytest.mark.filterwarnings("ignore:AUCPR")
def test_ten_thousand_classes() -> None:
    logits, targets = logits_at_random(100, 10_000, 0)
    assert metrics.AUCPR()(logits, targets) == pytest.approx(oracle(logits, targets, "macro"), abs=1e-12)
    error = float((logits.argmax(1) != targets).double().mean())
    assert metrics.ClassificationError()(logits, targets) == error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32, torch.int64])
def test_errors_equal_counting(dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    logits, targets = logits_at_random(307, 5, 2)
    logits = logits.to(dtype)
    wrong = [
        any(row[j] >= row[t] for j in range(5) if j != t) for row, t in zip(logits.tolist(), targets.tolist())
    ]
    assert metrics.ClassificationError()(logits, targets.to(label_dtype)) == pytest.approx(
        sum(wrong) / 307, abs=1e-15
    )
    per_class = [np.mean([w for w, t in zip(wrong, targets) if t == c]) for c in range(5)]
    assert metrics.BalancedError()(logits, targets.to(label_dtype)) == pytest.approx(
        np.mean(per_class), abs=1e-15
    )


def test_balanced_error_equals_scikit_learn_without_absent_classes() -> None:
    logits, targets = logits_at_random(200, 4, 5)
    expected = 1 - balanced_accuracy_score(targets, logits.argmax(1))
    absent = torch.full((200, 3), -50.0)
    for wider, moved in ((torch.cat((logits, absent), 1), 0), (torch.cat((absent, logits), 1), 3)):
        assert metrics.BalancedError()(wider, targets + moved) == pytest.approx(expected, abs=1e-12)


def test_constant_outputs_do_not_look_right() -> None:
    targets = torch.arange(4)
    assert metrics.ClassificationError()(torch.ones(4, 4), targets) == 1.0
    assert metrics.BalancedError()(torch.ones(4, 4), targets) == 1.0


@pytest.mark.parametrize("metric", ALL, ids=IDS)
def test_masked_logits_are_allowed(metric: Metric) -> None:
    logits = torch.tensor([[1.0, -math.inf, 0.0], [0.0, 2.0, -math.inf], [0.0, 0.0, 1.0]])
    targets = torch.arange(3)
    assert metric(logits, targets) == (1.0 if metric.higher_is_better else 0.0)


@pytest.mark.parametrize("metric", ALL, ids=IDS)
@pytest.mark.parametrize(
    ("outputs", "targets", "error", "text"),
    [
        (torch.tensor([[0.0, math.nan], [1.0, 0.0]]), torch.tensor([0, 1]), ValueError, "1 of 2 rows"),
        (torch.tensor([[0.0, math.inf], [1.0, 0.0]]), torch.tensor([0, 1]), ValueError, "1 of 2 rows"),
        (torch.full((2, 2), -math.inf), torch.tensor([0, 1]), ValueError, "2 of 2 rows"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ValueError, "outputs"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), ValueError, "outputs"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), ValueError, "outputs"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), TypeError, "outputs"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), ValueError, "targets"),
        (torch.zeros(3, 2), torch.zeros(3), TypeError, "targets"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), TypeError, "targets"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), ValueError, "targets"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -1]), ValueError, "targets"),
        (
            np.zeros((3, 2)),
            torch.tensor([0, 1, 1]),
            TypeError,
            "outputs must be a tensor, got ndarray; torch",
        ),
        ([[0.0, 1.0]], torch.tensor([0]), TypeError, "outputs must be a tensor, got list"),
        (torch.zeros(3, 2), [0, 1, 1], TypeError, "targets must be a tensor, got list"),
    ],
)
def test_bad_input_is_refused(metric: Metric, outputs, targets, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        metric(outputs, targets)


def test_names_and_directions() -> None:
    assert [(m.name, m.higher_is_better) for m in ALL] == [
        ("classification_error", False),
        ("balanced_error", False),
        ("aucpr", True),
        ("aucpr_micro", True),
    ]
    assert all(isinstance(m, Metric) for m in ALL)
    with pytest.raises(ValueError, match="average"):
        metrics.AUCPR("weighted")
