"""The counting kernel against double arithmetic: threads, instruction sets, ties, near ties, huge classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ala_metric as ala
from ala_metric import metrics, ops

pytestmark = pytest.mark.skipif(not ala.native_info().available, reason=ala.native_info().reason)


def brute(x: Tensor, labels: Tensor, y: Tensor | None = None, ref_labels: Tensor | None = None) -> Tensor:
    """Both ranks [2, ...] by float64 differences and sorting, with NumPy."""
    queries, own = x.double().numpy(), labels.numpy()
    refs, other = (queries, own) if y is None else (y.double().numpy(), ref_labels.numpy())
    found = []
    for i, query in enumerate(queries):
        square = ((query - refs) ** 2).sum(1)
        positive = other == own[i]
        negatives = np.sort(square[~positive])
        if y is None:
            positive[i] = False
        at = np.sort(square[positive])
        j = np.arange(1, len(at) + 1)
        found.append([j + np.searchsorted(negatives, at, side) for side in ("right", "left")])
    return torch.tensor(np.concatenate([np.empty((2, 0)), *found], 1), dtype=torch.int64)


def native(
    x: Tensor, labels: Tensor, y: Tensor | None = None, ref_labels: Tensor | None = None, **kw
) -> Tensor:
    found = ops.positive_ranks(x, labels, ref_emb=y, ref_labels=ref_labels, ties="both", impl="native", **kw)
    return found if kw.get("first_only") else found[0]


# 1 and 0 rows, primes, one more and one less than the sizes of panels, strips and blocks
@pytest.mark.parametrize(
    ("n", "d", "classes"), [(0, 3, 1), (1, 0, 1), (31, 1, 3), (65, 129, 13), (257, 17, 2), (523, 300, 90)]
)
@pytest.mark.parametrize("m", [None, 0, 1, 33, 601])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equal_to_brute_force(n: int, d: int, classes: int, m: int | None, dtype: torch.dtype) -> None:
    x, labels = torch.randn(n, d).to(dtype), torch.randint(0, classes, (n,))
    refs = () if m is None else (torch.randn(m, d).to(dtype), torch.randint(0, classes, (m,)))
    expected = brute(x, labels, *refs)
    assert torch.equal(native(x, labels, *refs), expected)
    ranks, offsets = ops.positive_ranks(
        x, labels, ref_emb=refs[0] if refs else None, ref_labels=refs[1] if refs else None, impl="native"
    )
    first = native(x, labels, *refs, first_only=True)
    has = offsets.diff() > 0
    assert torch.equal(first[0][has], ranks[offsets[:-1][has]])
    assert not first[:, ~has].any()


def hard(n: int = 900) -> tuple[Tensor, Tensor]:
    """Exact ties, pairs nearer to a tie than float32 can tell, and rows of very different lengths.

    Near 100 float32 has steps of 2^-17, so all sums of squared differences are exact in float64: whatever the
    order of additions, ties are ties.
    """
    centres = torch.randn(30, 24) * torch.logspace(-3, 1, 30)[:, None]
    x = centres[torch.randint(0, 30, (n,))]
    x[: n // 2] += 1e-6 * torch.randn(n // 2, 24)
    return x + 100, torch.randint(0, 120, (n,))


def test_near_ties_are_settled_in_double() -> None:
    x, labels = hard()
    expected = brute(x, labels)
    assert (expected[0] != expected[1]).any()  # there are ties
    assert torch.equal(native(x, labels), expected)
    square = torch.cdist(x, x) ** 2  # plain float32 does not find these ranks
    square.fill_diagonal_(-1)
    nearest = (square.argsort(1).argsort(1) * (labels[:, None] == labels)).sum()
    assert int(nearest) != int(expected[0].sum())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, labels = hard(1500)
    y, ref_labels = x[:700].flip(0).contiguous(), labels[:700].flip(0)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append((native(x, labels), native(x, labels, y, ref_labels)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx"])
def test_every_instruction_set(isa: str, tmp_path: Path) -> None:
    x, labels = hard(400)
    torch.save({"x": x, "labels": labels}, tmp_path / "in.pt")
    code = f"""
import sys, json, torch, ala_metric as ala
from ala_metric import ops
if not ala.native_info().available:
    sys.exit(3)
data = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
ranks = ops.positive_ranks(data["x"], data["labels"], ties="both", impl="native")[0]
many = ops.positive_ranks(data["x"], data["labels"] % 2, ties="both", impl="native")[0]
print(json.dumps([ala.native_info().isa, ranks.tolist(), many.tolist()]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "ALA_METRIC_ISA": isa},
        cwd=Path(__file__).parents[1],
        check=False,
    )
    if run.returncode == 3:
        pytest.skip(f"this CPU does not run {isa}")
    assert run.returncode == 0, run.stderr
    name, ranks, many = json.loads(run.stdout)
    assert name in (isa, "neon")
    assert ranks == brute(x, labels).tolist()
    assert many == brute(x, labels % 2).tolist()


@pytest.mark.parametrize(("above_one", "step"), [(2**-8, 2**-15), (2**-9 + 2**-17, 2**-23)])
@pytest.mark.parametrize("separate", [False, True])
def test_roundings_that_add_up(above_one: float, step: float, separate: bool) -> None:
    """Every number just below the middle between two sums of bfloat16, so that what products of two or three
    such parts leave out has one sign: the most that they can be wrong, far more than the distances differ."""
    signs = torch.randn(5, 16).sign().double()[torch.randint(0, 5, (120,))]
    x = (signs * (1 + above_one - step * torch.randint(1, 60, (120, 16)))).float()
    x = torch.cat([x, -x])  # the centre is 0 and no number is rounded again
    labels = torch.randint(0, 20, (240,))
    refs = (x.flip(0), labels.roll(1)) if separate else ()
    assert torch.equal(native(x, labels, *refs), brute(x, labels, *refs))


def test_rows_of_any_length() -> None:
    """Down to numbers that float32 does not hold as normal ones, and AMX not at all."""
    x = torch.randn(300, 24).double() * 10.0 ** -torch.tensor([0, 4, 39, 42])[torch.arange(300) % 4, None]
    x, labels = x.float(), torch.randint(0, 30, (300,))
    assert torch.equal(native(x, labels), brute(x, labels))
    few, own = x[2::4], labels[2::4].clone()
    assert torch.equal(native(few, own, x, labels), brute(few, own, x, labels))


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_huge_classes_search_their_thresholds(classes: int) -> None:
    x = (4 * torch.randn(911, 6)).round()  # few distinct distances: many ties
    labels = torch.arange(911) % classes
    assert torch.equal(native(x.double(), labels), brute(x.double(), labels))
    assert torch.equal(native(x, labels, x[:300], labels[:300]), brute(x, labels, x[:300], labels[:300]))


def test_sizes_of_classes_may_differ_wildly() -> None:
    labels = torch.cat([torch.zeros(300), torch.ones(49), torch.arange(2, 60).repeat(3)]).long()
    labels = labels[torch.randperm(len(labels))] - 2**40
    x = torch.randn(len(labels), 40)
    assert torch.equal(native(x, labels), brute(x, labels))


def test_an_outlier_beyond_float32_range_of_the_rest() -> None:
    x = torch.randn(400, 8).double()
    x[7], x[8] = 1e150, -1e-150
    labels = torch.randint(0, 40, (400,))
    assert torch.equal(native(x, labels), brute(x, labels))


def test_strided_rows() -> None:
    x, labels = torch.randn(90, 50), torch.randint(0, 20, (90,))
    for view in (x.T, x[:, ::3], x[:1].expand(60, 50), x[::2]):
        own = labels[: len(view)]
        own = torch.cat([own, own])[: len(view)]
        assert torch.equal(native(view, own), native(view.clone(), own))


def test_cosine_equals_strips() -> None:
    x, labels = torch.randn(300, 20, dtype=torch.float64), torch.randint(0, 40, (300,))
    x[5] = x[90] = 0
    x[10] = 4 * x[11]  # powers of two keep ties exact
    x = torch.ldexp(x, torch.randint(-60, 60, (300, 1)))  # lengths do not matter
    for dtype in (torch.float64, torch.float32):
        found = native(x.to(dtype), labels, distance="cosine")
        strips = ops.positive_ranks(x.to(dtype), labels, distance="cosine", ties="both", impl="strips")[0]
        assert torch.equal(found, strips)


def test_wrong_counts_and_values_are_refused_by_the_kernel_itself() -> None:
    op = torch.ops.ala_metric.positive_ranks
    x, labels, offsets = torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), torch.arange(5)
    assert op(x, labels, offsets, 4, None, None, False, False).shape == (2, 4)
    for wrong in (
        torch.tensor([0, 2, 2, 3, 4]),
        torch.tensor([1, 2, 3, 4, 5]),
        torch.tensor([0, 2, 1, 3, 4]),
    ):
        with pytest.raises((ValueError, RuntimeError), match="offsets"):
            op(x, labels, wrong, int(wrong[-1]), None, None, False, False)
    with pytest.raises((ValueError, RuntimeError), match="count"):
        op(x, labels, offsets, 3, None, None, False, False)
    for bad in (float("nan"), float("inf")):
        for cosine in (False, True):
            with pytest.raises((ValueError, RuntimeError), match="finite"):
                op(x.clone().fill_(bad), labels, offsets, 4, None, None, cosine, False)


def test_opcheck() -> None:
    x, labels, offsets = torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), torch.arange(5)
    torch.library.opcheck(
        torch.ops.ala_metric.positive_ranks.default, (x, labels, offsets, 4, None, None, False, False)
    )


def test_scale_of_the_numbers_changes_nothing() -> None:
    x, labels = torch.randn(200, 16), torch.randint(0, 30, (200,))
    expected = metrics.retrieval(x, labels, impl="native")
    for scale in (2.0**-90, 2.0**90):
        assert metrics.retrieval(x * scale, labels, impl="native") == expected
