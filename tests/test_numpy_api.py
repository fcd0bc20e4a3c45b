"""The kernels for NumPy arrays, against the equations in NumPy float64 and finite differences."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import oracle as brute

api = pytest.importorskip("ala_metric.numpy_api", exc_type=ImportError)

Array = NDArray[Any]
SHAPES = [(7, None, 5), (4, 9, 3), (37, None, 19), (1, None, 2), (0, None, 3), (3, 0, 2)]
PHI = np.linspace(0.2, 1.1, 10)
SHARPNESS = np.array([2.0, 5.0])
# float32 kernels on data of order 1, sums of at most 37 terms; float16 input is computed in float32
TOLERANCE = {np.float16: 2e-5, np.float32: 2e-5, np.float64: 1e-12}


def softplus(z: Array) -> Array:
    return np.logaddexp(0.0, z)


def positive_shapes(d: Array) -> list[Array]:
    return [d**2, d, np.sqrt(d + 0.01) - 0.1, d**3 / 2, softplus(6 * (d - 0.8)) / 6]


def negative_shapes(d: Array) -> list[Array]:
    far = np.maximum(d, 0.1)
    pole = np.where(d < 0.1, 5 - 50 * (d - 0.1), 0.5 / far)
    log = np.where(d < 0.1, np.log(20) - 10 * (d - 0.1), -np.log(far / 2))
    return [pole, 2 - d, log, 2 * np.exp(-2 * d), softplus(6 * (1.2 - d)) / 6]


class Oracle:
    """Distances and masks of a batch in float64."""

    def __init__(self, x: Array, labels: Array, y: Array | None, ref_labels: Array | None) -> None:
        x = x.astype(np.float64)
        y_rows = x if y is None else y.astype(np.float64)
        self.d = np.linalg.norm(x[:, None, :] - y_rows[None, :, :], axis=2)
        other = labels if ref_labels is None else ref_labels
        valid = ~np.eye(len(x), dtype=bool) if y is None else np.ones(self.d.shape, dtype=bool)
        same = labels[:, None] == other[None, :]
        self.positive, self.negative = same & valid, ~same & valid

    def mixture(self, phi: Array) -> Array:
        total = np.zeros(len(self.d))
        for shapes, weights, mask in (
            (positive_shapes, phi[:5], self.positive),
            (negative_shapes, phi[5:], self.negative),
        ):
            value = sum(w * f for w, f in zip(weights, shapes(self.d), strict=True))
            total += (value * mask).sum(1) / np.maximum(mask.sum(1), 1)
        return total

    def focal(self, phi: Array, offset: float) -> Array:
        pull = (np.exp(phi[0] * (self.d - offset)) * self.positive).sum(1)
        push = (np.exp(-phi[1] * (self.d - offset)) * self.negative).sum(1)
        return np.log1p(pull) / phi[0] + np.log1p(push) / phi[1]

    def statistics(self) -> Array:
        means = []
        for shapes, mask in ((positive_shapes, self.positive), (negative_shapes, self.negative)):
            means += [f[mask].mean() if mask.any() else 0.0 for f in shapes(self.d)]
        return np.array(means)


def batch(n: int, m: int | None, d: int, dtype: Any = np.float64) -> tuple[Array, Array, dict[str, Array]]:
    random = np.random.default_rng(n * 100 + d)
    x, labels = random.normal(size=(n, d)).astype(dtype), random.integers(3, size=n)
    if m is None:
        return x, labels, {}
    references = {
        "ref_emb": random.normal(size=(m, d)).astype(dtype),
        "ref_labels": random.integers(3, size=m),
    }
    return x, labels, references


def oracle(x: Array, labels: Array, references: dict[str, Array]) -> Oracle:
    return Oracle(x, labels, references.get("ref_emb"), references.get("ref_labels"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int | None, int], dtype: Any) -> None:
    x, labels, references = batch(*shape, dtype)
    truth = oracle(x, labels, references)
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    result = np.float64 if dtype == np.float64 else np.float32
    for found, expected in (
        (api.pairwise_distance(x, references.get("ref_emb")), truth.d),
        (api.distance_mixture(x, labels, PHI, **references), truth.mixture(PHI)),
        (api.focal_weighting(x, labels, SHARPNESS, offset=0.7, **references), truth.focal(SHARPNESS, 0.7)),
        (api.distance_statistics(x, labels, **references), truth.statistics()),
    ):
        assert found.dtype == result
        np.testing.assert_allclose(found, expected, **near)


def split(ranks: Array, offsets: Array) -> list[list[int]]:
    return [ranks[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 2), (53, None, 1)], ids=str)
def test_ranks(shape: tuple[int, int | None, int], dtype: Any) -> None:
    original, labels, references = batch(*shape, dtype)
    for grid in (True, False):  # on a grid, exact in every dtype, there are ties
        x, given = original, dict(references)
        if grid:
            x = np.rint(x)
            if given:
                given["ref_emb"] = np.rint(given["ref_emb"])
        lists = [v.tolist() for v in (x, labels, *given.values())]
        for ties in ("pessimistic", "optimistic"):
            expected = brute.ranks(*lists, optimistic=ties == "optimistic")
            ranks, offsets = api.positive_ranks(x, labels, ties=ties, **given)
            assert ranks.dtype == offsets.dtype == np.int64
            assert split(ranks, offsets) == expected
            first = api.positive_ranks(x, labels, ties=ties, first_only=True, **given)
            assert first.tolist() == [own[0] if own else 0 for own in expected]
        both, _ = api.positive_ranks(x, labels, ties="both", threads=3, **given)
        assert split(both[1], offsets) == expected  # optimistic
        assert np.array_equal(both[0], api.positive_ranks(x, labels, **given)[0])


def test_ranks_by_cosine() -> None:
    x, labels, references = batch(23, 31, 4)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, references["ref_emb"])]
    classes = references["ref_labels"]
    expected = brute.ranks(unit[0].tolist(), labels.tolist(), unit[1].tolist(), classes.tolist())
    assert split(*api.positive_ranks(x, labels, distance="cosine", **references)) == expected
    assert split(*api.positive_ranks(x, labels, **references)) != expected


def test_ranks_of_classes_that_the_gallery_lacks() -> None:
    labels, classes = np.array([7, -3, 2**40, 0]), np.array([2**40, 1, 2**40 + 1])
    ranks, offsets = api.positive_ranks(np.eye(4), labels, ref_emb=np.eye(4)[1:], ref_labels=classes)
    assert (ranks.tolist(), offsets.tolist()) == ([3], [0, 0, 0, 1, 1])


def test_ranks_refuse_what_has_no_order() -> None:
    x, labels, references = batch(7, 5, 2)
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[[1, 4], 0] = bad
        with pytest.raises(ValueError, match="emb must be finite, got NaN or Inf in 2 of 7 rows"):
            api.positive_ranks(broken, labels)
    references["ref_emb"][3] = np.nan
    with pytest.raises(ValueError, match="ref_emb must be finite, got NaN or Inf in 1 of 5 rows"):
        api.positive_ranks(x, labels, **references)
    with pytest.raises(ValueError, match="differences inside the range of float64"):
        api.positive_ranks(np.array([[1.7e308], [-1.7e308]]), [0, 0])
    with pytest.raises(ValueError, match="distance must be"):
        api.positive_ranks(x, labels, distance="manhattan")
    with pytest.raises(ValueError, match="ties must be"):
        api.positive_ranks(x, labels, ties="fair")


def numeric_gradient(function: Any, at: Array, step: float = 1e-6) -> Array:
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("name", ["mixture", "focal"])
def test_gradients(name: str, shape: tuple[int, int | None, int], weighted: bool) -> None:
    x, labels, references = batch(*shape)
    w = np.linspace(0.5, 2, shape[0]) if weighted else np.ones(shape[0])
    given = {"weights": w} if weighted else {}
    if name == "mixture":
        phi, found = PHI, api.distance_mixture_gradient(x, labels, PHI, **references, **given)
    else:
        phi, found = SHARPNESS, api.focal_weighting_gradient(x, labels, SHARPNESS, **references, **given)

    def total(x: Array, phi: Array, references: dict[str, Array]) -> float:
        truth = oracle(x, labels, references)
        return float(w @ (truth.mixture(phi) if name == "mixture" else truth.focal(phi, 1.0)))

    near = {"rtol": 1e-6, "atol": 1e-7}  # central differences of step 1e-6 in float64
    np.testing.assert_allclose(found.loss @ w, total(x, phi, references), rtol=1e-12)
    np.testing.assert_allclose(found.emb, numeric_gradient(lambda v: total(v, phi, references), x), **near)
    np.testing.assert_allclose(found.phi, numeric_gradient(lambda v: total(x, v, references), phi), **near)
    if references:
        expected = numeric_gradient(
            lambda v: total(x, phi, references | {"ref_emb": v}), references["ref_emb"]
        )
        assert found.ref_emb is not None
        np.testing.assert_allclose(found.ref_emb, expected, **near)
    else:
        assert found.ref_emb is None


def test_any_layout_gives_the_same_bits() -> None:
    x, labels, _ = batch(11, None, 6)
    expected = api.distance_mixture(x, labels, PHI)
    every_other = np.zeros((22, 12))
    every_other[::2, ::2] = x
    record = np.zeros(11, dtype=[("tag", "i1"), ("row", "f8", (6,))])  # rows 49 bytes apart, askew
    record["row"] = x
    for layout in (
        np.asfortranarray(x),
        every_other[::2, ::2],
        x[::-1, ::-1][::-1, ::-1],
        record["row"],
        x.astype(x.dtype.newbyteorder("S")),
    ):
        assert np.array_equal(api.distance_mixture(layout, labels, PHI), expected)
    assert np.array_equal(api.distance_mixture(x, labels.astype(np.int8), PHI), expected)
    assert np.array_equal(api.distance_mixture(x, np.repeat(labels, 2)[::2], PHI), expected)
    read_only = x.copy()
    read_only.flags.writeable = False
    assert np.array_equal(api.distance_mixture(read_only, labels, PHI), expected)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    x, labels, _ = batch(301, None, 17, np.float32)
    one = api.focal_weighting_gradient(x, labels, SHARPNESS, threads=1)
    many = api.focal_weighting_gradient(x, labels, SHARPNESS, threads=threads)
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True) if a is not None)


def test_calls_from_many_python_threads() -> None:
    x, labels, _ = batch(211, None, 9, np.float32)
    expected = api.distance_mixture(x, labels, PHI, threads=1)
    found: list[Array] = []
    workers = [
        threading.Thread(target=lambda: found.append(api.distance_mixture(x, labels, PHI, threads=2)))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert all(np.array_equal(value, expected) for value in found)


def test_nan_comes_out_as_nan() -> None:
    x, labels, _ = batch(7, None, 5)
    x[3, 2] = np.nan
    assert np.isnan(api.distance_mixture(x, labels, PHI)).all()  # every row meets row 3
    assert np.isnan(api.focal_weighting(x, labels, SHARPNESS)).all()


@pytest.mark.parametrize(
    ("arguments", "changes", "error", "message"),
    [
        ((np.zeros((3, 2), int), np.zeros(3, int), PHI), {}, TypeError, "emb must be float16"),
        ((np.zeros(3), np.zeros(3, int), PHI), {}, ValueError, r"emb must have shape \[rows, dimensions\]"),
        ((np.zeros((3, 2)), np.zeros(3), PHI), {}, TypeError, "labels must have an integer dtype"),
        ((np.zeros((3, 2)), np.zeros(4, int), PHI), {}, ValueError, r"labels must have shape \[3\]"),
        ((np.zeros((3, 2)), np.zeros(3, int), PHI[:9]), {}, ValueError, r"phi must have shape \[10\]"),
        (
            (np.zeros((3, 2)), np.zeros(3, int), PHI),
            {"ref_emb": np.zeros((3, 2))},
            ValueError,
            "ref_emb and ref_labels must be given together",
        ),
        (
            (np.zeros((3, 2)), np.zeros(3, int), PHI),
            {"ref_emb": np.zeros((3, 4)), "ref_labels": np.zeros(3, int)},
            ValueError,
            "ref_emb must have 2 dimensions",
        ),
        (
            (np.zeros((3, 2)), np.zeros(3, int), PHI),
            {"ref_emb": np.zeros((3, 2), np.float32), "ref_labels": np.zeros(3, int)},
            TypeError,
            "ref_emb must have dtype float64",
        ),
        ((np.zeros((3, 2)), np.zeros(3, int), PHI), {"threads": 0}, ValueError, "threads must be at least 1"),
    ],
)
def test_errors_name_the_argument(
    arguments: tuple[Array, ...], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        api.distance_mixture(*arguments, **changes)


def test_more_errors() -> None:
    x, labels, _ = batch(3, None, 2)
    with pytest.raises(ValueError, match=r"weights must have shape \[3\]"):
        api.distance_mixture_gradient(x, labels, PHI, weights=np.ones(2))
    with pytest.raises(ValueError, match="phi"):
        api.focal_weighting(x, labels, [1.0, 0.0])
    assert api.distance_mixture(np.zeros((0, 4)), [], PHI).shape == (0,)


def test_torch_is_not_imported() -> None:
    program = (
        "import sys; from ala_metric import numpy_api; "
        "print(numpy_api.pairwise_distance([[0.0], [2.0]])[0, 1], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ALA_REQUIRE_NATIVE": ""},
    )
    assert done.stdout.split() == ["2.0", "False"]


def test_any_number_of_threads_is_a_most() -> None:
    x, labels, _ = batch(40, None, 3)
    expected = api.distance_mixture_gradient(x, labels, PHI, threads=1)
    found = api.distance_mixture_gradient(x, labels, PHI, threads=10**12)
    assert np.array_equal(found.emb, expected.emb)
    with pytest.raises(ValueError, match="threads"):
        api.distance_mixture(x, labels, PHI, threads=0)
