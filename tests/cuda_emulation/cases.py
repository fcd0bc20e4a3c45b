"""The cases that every build of the emulated kernels must pass: ops x dtypes x odd shapes x both paths.

Run as a program (``python -m tests.cuda_emulation.cases LIBRARY [PATTERN ...]``) it stops at the first
failure; so do the sanitizers and the planted faults use it.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import oracle
from .library import BF16, LOST_BITS, TF32, Emulated, blas

Array = np.ndarray
PHI = np.array([1.0, 0.3, 0.2, 0.4, 0.6, 0.9, 0.5, 0.7, 0.25, 0.8])
FIRST = np.array([1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0])
FUSED, STRIPS = 1, 2
# float32: what rounding of |x|^2 + |y|^2 - 2xy leaves, measured 1e-7 to 4e-7. float64: the same in its units.
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}


def points(seed: int, n: int, d: int, kind: str) -> tuple[Array, Array]:
    """Unit rows in clusters as (what the kernel gets, the same numbers in float64)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d))
    rows /= np.maximum(np.sqrt((rows**2).sum(1, keepdims=True)), 1e-30)
    if kind == "bfloat16":
        bits = (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    given = rows.astype(kind)
    return given, given.astype(np.float64)


def labels(seed: int, n: int, classes: int) -> Array:
    names = np.array([-7, 0, 1 << 40, 3, 12, 2**31 + 5, 6])  # none of them an int32 in disguise
    return names[np.random.default_rng(seed).integers(0, classes, n)]


def compute(kind: str) -> str:
    return "float64" if kind == "float64" else "float32"


def empty(kind: str, *shape: int) -> Array:
    return np.full(shape, np.nan, compute(kind))


def relative(value: Array, truth: Array) -> float:
    scale = max(float(np.sqrt((truth**2).sum())), 1e-30)
    return float(np.sqrt(((value.astype(np.float64) - truth) ** 2).sum())) / scale


def compare(
    found: dict[str, Array],
    wanted: dict[str, Array],
    tolerance: float,
    floor: dict[str, float] | None = None,
) -> None:
    least = tolerance
    for name, value in found.items():
        truth = wanted[name]
        scale = max(float(np.sqrt((truth**2).sum())), 1e-30)
        error = relative(value, truth)
        tolerance = max(least, (floor or {}).get(name, 0))
        # where the truth is 0 to rounding (one lone row), so must be what was found
        small = bool(np.abs(value).max(initial=0) <= tolerance) and scale <= tolerance
        if not (error <= tolerance or small):
            raise AssertionError(f"{name}: relative error {error:.3g} > {tolerance:.1g}")


class Case:
    """Numbers of one case, shared by the ops."""

    def __init__(self, n: int, m: int | None, d: int, kind: str, seed: int = 1) -> None:
        self.kind, self.n, self.d = kind, n, d
        self.x, x64 = points(seed, n, d, kind)
        self.labels = labels(seed + 1, n, 4)
        self.y = self.ref_labels = y64 = None
        if m is not None:
            self.y, y64 = points(seed + 2, m, d, kind)
            self.ref_labels = labels(seed + 3, m, 5)
        self.set(x64, y64)
        self.weights = np.random.default_rng(seed + 4).uniform(0.5, 2, n).astype(compute(kind))

    def set(self, x64: Array, y64: Array | None) -> None:
        self.x64, self.y64 = x64, y64
        self.pairs = oracle.Pairs(x64, y64, self.labels, self.ref_labels)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[compute(self.kind)]

    def grads(self, phi: int) -> dict[str, Array]:
        out = {"grad_x": empty(self.kind, self.n, self.d), "grad_phi": empty(self.kind, phi)}
        if self.y is not None:
            out["grad_y"] = empty(self.kind, len(self.y), self.d)
        return out

    def common(self) -> dict[str, Any]:
        out = {"x_labels": self.labels}
        return out if self.ref_labels is None else out | {"y_labels": self.ref_labels}


def mixture(lib: Emulated, case: Case, phi: Array = PHI, want_phi: bool = True) -> None:
    out = {"loss": empty(case.kind, case.n), **case.grads(10)}
    if not want_phi:
        del out["grad_phi"]
    lib.call("distance_mixture", case.x, case.y, phi=phi, weights=case.weights, **case.common(), **out)
    compare(out, oracle.mixture(case.pairs, phi, case.weights.astype(float)), case.tolerance)


def own_is_refused(lib: Emulated, case: Case) -> None:
    fields = {"phi": PHI, "own": np.zeros(case.n, np.int64), **case.common()}
    message = "own was ignored"
    try:
        lib.call("distance_mixture", case.x, case.y, **fields)
    except ValueError as error:
        message = str(error)
    assert "own is not supported on CUDA" in message, message


def focal_floor(case: Case, phi: Array, wanted: dict[str, Array]) -> dict[str, float]:
    """What float32 costs the equations in float64: norms, products (added up one by one) and d in float32.

    Each of the three alone, everything else exact; their effects are added.
    """
    p = case.pairs
    x, y = p.x.astype(np.float32), p.y.astype(np.float32)
    product = np.zeros(p.d.shape, np.float32)
    for k in range(x.shape[1]):
        product += x[:, k, None] * y[:, k]
    x_square, y_square = (p.x**2).sum(1), (p.y**2).sum(1)
    norms = x_square.astype(np.float32).astype(float)[:, None] + y_square.astype(np.float32)
    squares = norms - 2 * (p.x @ p.y.T), x_square[:, None] + y_square - 2.0 * product
    total = dict.fromkeys(wanted, 0.0)
    for distances in (p.d.astype(np.float32), *(np.sqrt(np.maximum(square, 0)) for square in squares)):
        found = oracle.focal(p.at(distances.astype(float)), phi, 0.9, case.weights.astype(float))
        for name, value in found.items():
            total[name] += relative(value, wanted[name])
    return total


def focal(
    lib: Emulated, case: Case, phi: tuple[float, float] = (2.0, 8.0), beyond_float32: bool = False
) -> None:
    given = np.array(phi)
    out = {"loss": empty(case.kind, case.n), "lse": np.full((case.n, 2), np.nan), **case.grads(2)}
    more = {"phi": given, "offset": 0.9, "weights": case.weights}
    lib.call("focal_weighting", case.x, case.y, **more, **case.common(), **out)
    wanted = oracle.focal(case.pairs, given, 0.9, case.weights.astype(float))
    compare(out, wanted, case.tolerance, focal_floor(case, given, wanted) if beyond_float32 else None)
    again = case.grads(2)
    lib.call("focal_weighting", case.x, case.y, lse_given=1, lse=out["lse"], **more, **case.common(), **again)
    for name, value in again.items():
        assert np.array_equal(value, out[name]), f"{name} differs with lse given"


def statistics(lib: Emulated, case: Case) -> None:
    out = {"statistics": empty(case.kind, 10)}
    lib.call("distance_statistics", case.x, case.y, **case.common(), **out)
    compare(out, {"statistics": oracle.statistics(case.pairs)}, case.tolerance)


def distance(lib: Emulated, case: Case) -> None:
    m = case.n if case.y is None else len(case.y)
    out = {"distances": empty(case.kind, case.n, m)}
    lib.call("pairwise_distance", case.x, case.y, **out)
    wanted = np.where(case.pairs.any, case.pairs.d, 0)
    compare(out, {"distances": wanted}, case.tolerance)
    if case.y is None:
        assert np.array_equal(out["distances"], out["distances"].T), "not symmetric"
    rng = np.random.default_rng(9)
    grad = np.asfortranarray(rng.normal(size=(case.n, m)).astype(compute(case.kind)))  # any strides
    grads = case.grads(1)
    del grads["grad_phi"]
    lib.call("pairwise_distance_backward", case.x, case.y, grad_distances=grad, **grads)
    grad_x, grad_y = case.pairs.pull(grad.astype(float))
    compare(grads, {"grad_x": grad_x, "grad_y": grad_y}, case.tolerance)


def mined(lib: Emulated, case: Case) -> None:
    rng = np.random.default_rng(4)
    m = case.n if case.y is None else len(case.y)
    sizes = (71, 45) if min(case.n, m) else (0, 0)
    lists = [
        (positive, rng.integers(0, max(case.n, 1), p), rng.integers(0, max(m, 1), p), rng.uniform(0.5, 2, p))
        for positive, p in zip((True, False), sizes)
    ]
    cast = [(k, a, o, w.astype(compute(case.kind))) for k, a, o, w in lists]
    out = {**case.grads(10), **{f"values{k}": empty(case.kind, sizes[k]) for k in range(2)}}
    lib.call(
        "mined_pairs",
        case.x,
        case.y,
        phi=PHI,
        n_positive=sizes[0],
        n_negative=sizes[1],
        positive_anchors=cast[0][1],
        positives=cast[0][2],
        negative_anchors=cast[1][1],
        negatives=cast[1][2],
        positive_weights=cast[0][3],
        negative_weights=cast[1][3],
        positive_values=out["values0"],
        negative_values=out["values1"],
        **{k: v for k, v in out.items() if k.startswith("grad")},
    )
    wanted = oracle.mined(case.x64, case.y64, PHI, [(k, a, o, w.astype(float)) for k, a, o, w in cast])
    compare(out, wanted, case.tolerance)
    # triplets are the two lists over the same anchors and weights
    t = sizes[1]
    anchors, weights = cast[1][1], cast[1][3]
    out = {**case.grads(10), "values": empty(case.kind, t)}
    positives, negatives = np.ascontiguousarray(cast[0][2][:t]), cast[1][2]
    lib.call(
        "mined_triplets",
        case.x,
        case.y,
        phi=PHI,
        n_triplets=t,
        anchors=anchors,
        positives=positives,
        negatives=negatives,
        weights=weights,
        **out,
    )
    both = [
        (True, anchors, positives, weights.astype(float)),
        (False, anchors, negatives, weights.astype(float)),
    ]
    wanted = oracle.mined(case.x64, case.y64, PHI, both)
    wanted["values"] = wanted["values0"] + wanted["values1"]
    compare(out, wanted, case.tolerance)


def ranks(lib: Emulated, case: Case, cosine: bool = False) -> None:
    bad, good, offsets = oracle.ranks(case.x64, case.y64, case.labels, case.ref_labels, cosine)
    for first_only in (0, 1):
        count = case.n if first_only else int(offsets[-1])
        out = {"pessimistic": np.full(count, -1), "optimistic": np.full(count, -1)}
        lib.call(
            "positive_ranks",
            case.x,
            case.y,
            cosine=int(cosine),
            first_only=first_only,
            offsets=offsets,
            positives_count=int(offsets[-1]),
            **case.common(),
            **out,
        )
        for name, truth in (("pessimistic", bad), ("optimistic", good)):
            if first_only:
                has = offsets[1:] > offsets[:-1]
                wanted = np.zeros(case.n)
                wanted[has] = truth[offsets[:-1][has]]
            else:
                wanted = truth
            assert np.array_equal(out[name], wanted), f"{name} ranks differ (first_only={first_only})"


def near_case(kind: str, gap: float, d: int = 33) -> Case:
    """A batch with duplicates and pairs `gap` apart among ordinary rows."""
    case = Case(70, None, d, kind)
    step = np.random.default_rng(3).normal(size=(35, d))
    x = case.x64.copy()
    x[35:] = x[:35] + gap * step / np.sqrt((step**2).sum(1, keepdims=True))
    x[5] = x[3]
    x[40] = x[35]
    case.x = x.astype(kind)
    case.set(case.x.astype(np.float64), None)
    return case


def axis_case(kind: str) -> Case:
    """Rows along one axis, of many lengths: for cosines two points, and a tie of all rows on one side."""
    case = Case(64, None, 4, kind)
    case.x = np.zeros((64, 4), kind)
    case.x[:, 1] = np.random.default_rng(0).uniform(0.1, 9, 64)
    case.x[::7] *= -1
    case.set(case.x.astype(np.float64), None)
    return case


def collapsed(kind: str, gap: float) -> Case:
    case = Case(66, 67, 20, kind)
    rng = np.random.default_rng(8)
    centre = case.x64[:1]
    case.x = (centre + gap * rng.normal(size=(66, 20))).astype(kind)
    case.y = (centre + gap * rng.normal(size=(67, 20))).astype(kind)
    case.set(case.x.astype(np.float64), case.y.astype(np.float64))
    return case


# Half a unit in the last place. Rounding of rows and weights leaves 0.2 to 0.75 of it in the gradient of a
# mixture; in that of focal weighting, where positives and negatives cancel, up to 1.7.
HALF_UNIT = {TF32: 2.0**-11, BF16: 2.0**-8}


def to_nearest(x: Array, precision: int) -> Array:
    """float32 with the significand of TF32 or bfloat16, in float64; ties away from zero."""
    unit = 2.0 ** (np.frexp(x)[1] - 24 + LOST_BITS[precision])
    return np.copysign(np.floor(np.abs(x.astype(np.float64)) / unit + 0.5) * unit, x)


def at_rounded_rows(p: oracle.Pairs, precision: int) -> oracle.Pairs:
    """The pairs at the distances of their rounded rows, near pairs at their own."""
    x, y = (to_nearest(rows.astype(np.float32), precision) for rows in (p.x, p.y))
    square = ((x[:, None] - y) ** 2).sum(2)
    near = square <= 1e-2 * ((x**2).sum(1)[:, None] + (y**2).sum(1))
    return p.at(np.where(near, p.d, np.sqrt(square)))


def lowered(lib: Emulated, case: Case, name: str, most: float = 1.0) -> None:
    """Values are float32's at the rounded rows; gradients are off by `most` half units in the last place."""
    precision = lib.context.precision
    rounded, weights = at_rounded_rows(case.pairs, precision), case.weights.astype(float)
    if name == "mixture":
        out = {"loss": empty(case.kind, case.n), **case.grads(10)}
        lib.call("distance_mixture", case.x, case.y, phi=PHI, weights=case.weights, **case.common(), **out)
        truth, wanted = (oracle.mixture(p, PHI, weights) for p in (case.pairs, rounded))
    elif name == "focal":
        phi = np.array([2.0, 8.0])
        out = {"loss": empty(case.kind, case.n), "lse": np.full((case.n, 2), np.nan), **case.grads(2)}
        more = {"phi": phi, "offset": 0.9, "weights": case.weights}
        lib.call("focal_weighting", case.x, case.y, **more, **case.common(), **out)
        truth, wanted = (oracle.focal(p, phi, 0.9, weights) for p in (case.pairs, rounded))
    elif name == "statistics":
        out = {"statistics": empty(case.kind, 10)}
        lib.call("distance_statistics", case.x, case.y, **case.common(), **out)
        truth, wanted = {}, {"statistics": oracle.statistics(rounded)}
    else:
        m = case.n if case.y is None else len(case.y)
        out = {"distances": empty(case.kind, case.n, m)}
        lib.call("pairwise_distance", case.x, case.y, **out)
        grad = np.random.default_rng(9).normal(size=(case.n, m)).astype(np.float32)
        grads = case.grads(1)
        del grads["grad_phi"]
        lib.call("pairwise_distance_backward", case.x, case.y, grad_distances=grad, **grads)
        out |= grads
        truth = dict(zip(("grad_x", "grad_y"), case.pairs.pull(grad.astype(float))))
        wanted = {"distances": np.where(case.pairs.any, rounded.d, 0)}
    lossy = {k for k in out if k in ("grad_x", "grad_y")}
    compare({k: v for k, v in out.items() if k not in lossy}, wanted, case.tolerance)
    compare({k: out[k] for k in lossy}, truth, max(case.tolerance, most * HALF_UNIT[precision]))


def tied_case(kind: str) -> Case:
    """Rows on a coarse grid, many of them equal, far from the origin: every distance ties with others."""
    case = Case(90, None, 5, kind)
    x = np.random.default_rng(2).integers(0, 3, size=(90, 5)) * 0.5 + 100
    case.x = x.astype(kind)
    case.set(case.x.astype(np.float64), None)
    return case


def cases() -> Iterator[tuple[str, Callable[[Emulated], None]]]:
    """(name, what to do) of every case."""

    def add(op: Callable[..., None], case: Callable[[], Case], path: int, **more: Any) -> Callable[..., None]:
        options = {k: more.pop(k) for k in ("strip_bytes", "multiply", "precision") if k in more}

        def go(lib: Emulated) -> None:
            op(lib.use(path=path, **options), case(), **more)

        return go

    pair_ops: dict[str, Callable[..., None]] = {"mixture": mixture, "focal": focal, "statistics": statistics}
    pair_ops |= {"distance": distance, "mined": mined}
    shapes = [(0, None, 3), (1, None, 1), (67, None, 31), (131, None, 128), (5, 199, 67), (130, 61, 64)]
    for n, m, d in shapes:
        for op, go in pair_ops.items():
            for path, name in ((FUSED, "fused"), (STRIPS, "strips")):
                if (op, path) in (("distance", FUSED), ("mined", FUSED)) and n != 67:
                    continue
                case = lambda n=n, m=m, d=d: Case(n, m, d, "float32")  # noqa: E731
                yield f"{op}-float32-{n}x{m}x{d}-{name}", add(go, case, path)
        for cosine in (False, True):
            case = lambda n=n, m=m, d=d: Case(n, m, d, "float32")  # noqa: E731
            yield f"ranks-float32-{n}x{m}x{d}-cosine{int(cosine)}", add(ranks, case, 0, cosine=cosine)
    for kind in ("float64", "float16", "bfloat16"):
        for op, go in (pair_ops | {"ranks": ranks}).items():
            case = lambda kind=kind: Case(37, 53, 130, kind)  # noqa: E731
            yield f"{op}-{kind}-37x53x130-auto", add(go, case, 0)
            case = lambda kind=kind: Case(65, None, 12, kind)  # noqa: E731
            yield f"{op}-{kind}-65xNonex12-auto", add(go, case, 0)
    big = lambda: Case(139, None, 37, "float32")  # noqa: E731
    narrow = {"strip_bytes": 64 * 140 * 4}
    for op, go in pair_ops.items():
        yield f"{op}-several-strips", add(go, big, STRIPS, **narrow)
        yield f"{op}-blas", add(go, big, STRIPS, multiply=blas, **narrow)
    wide = lambda: Case(3, 2203, 6, "float32")  # noqa: E731
    tall = lambda: Case(2203, 3, 6, "float32")  # noqa: E731
    for path, name in ((FUSED, "fused"), (STRIPS, "strips")):
        yield f"mixture-wide-{name}", add(mixture, wide, path)
        yield f"mixture-tall-{name}", add(mixture, tall, path)
        yield f"mixture-first-{name}", add(mixture, big, path, phi=FIRST, want_phi=False)
        yield f"focal-wide-{name}", add(focal, wide, path, phi=(0.7, 3.0))
        # near pairs: the promise of the documentation is 1e-3
        for gap in (1e-1, 1e-3, 1e-5):
            near = lambda gap=gap: near_case("float32", gap)  # noqa: E731
            for op, go in (("mixture", mixture), ("focal", focal)):
                yield f"near-{op}-{gap:g}-{name}", add(go, near, path)
        for gap in (1e-3, 0.0):
            lump = lambda gap=gap: collapsed("float32", gap)  # noqa: E731
            yield f"collapsed-mixture-{gap:g}-{name}", add(mixture, lump, path)
            yield f"collapsed-focal-{gap:g}-{name}", add(focal, lump, path)
        yield f"large-focal-{name}", add(focal, big, path, phi=(64.0, 64.0))  # the end of its range
        # far beyond it, exponents carry the rounding of d 300 times over
        yield f"huge-focal-{name}", add(focal, big, path, phi=(300.0, 300.0), beyond_float32=True)
    near = lambda: near_case("float32", 1e-3)  # noqa: E731
    yield "near-distance", add(distance, near, 0)
    for precision, word, kind in ((TF32, "tf32", "float16"), (BF16, "bf16", "bfloat16")):
        lower = {"precision": precision, "multiply": blas}
        for op in ("mixture", "focal", "statistics", "distance"):
            most = 2.0 if op == "focal" else 1.0
            for n, m, d in ((139, None, 37), (5, 199, 130), (67, None, 3)):
                case = lambda n=n, m=m, d=d: Case(n, m, d, "float32")  # noqa: E731
                yield f"{word}-{op}-{n}x{m}x{d}", add(lowered, case, 0, name=op, most=most, **lower, **narrow)
            # without a BLAS, and never fused; rows of 16 bits are not rounded any more
            case = lambda kind=kind: Case(65, None, 12, kind)  # noqa: E731
            own = {"precision": precision}
            yield f"{word}-{op}-{kind}", add(lowered, case, FUSED, name=op, most=most, **own)
        for op in ("mixture", "focal"):
            yield f"{word}-near-{op}", add(lowered, lambda: near_case("float32", 1e-3), 0, name=op, **lower)
            lump = lambda: collapsed("float32", 1e-3)  # noqa: E731
            yield f"{word}-collapsed-{op}", add(lowered, lump, 0, name=op, most=0, **lower)
        for op, go in (("mined", mined), ("ranks", ranks)):  # they have no such products
            yield f"{word}-{op}-exact", add(go, big, 0, **lower)
    yield "own-is-refused", add(own_is_refused, lambda: Case(5, 7, 3, "float32"), 0)
    yield "ranks-tied-float32", add(ranks, lambda: tied_case("float32"), 0)
    yield "ranks-tied-float16", add(ranks, lambda: tied_case("float16"), 0)
    for kind in ("float32", "float64"):
        case = lambda kind=kind: axis_case(kind)  # noqa: E731
        yield f"ranks-axis-{kind}", add(ranks, case, 0, cosine=True)
    yield "ranks-near", add(ranks, lambda: near_case("float32", 1e-6), 0)
    yield "ranks-wide", add(ranks, lambda: Case(33, 2203, 40, "float32"), 0)


def main() -> int:
    library, *patterns = sys.argv[1:]
    lib = Emulated(Path(library))
    done = 0
    for name, go in cases():
        if patterns and not any(fnmatch.fnmatch(name, p) for p in patterns):
            continue
        try:
            go(lib)
        except (AssertionError, ValueError) as error:
            print(f"{name}: {error}")
            return 1
        done += 1
    print(f"{done} cases")
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(main())
