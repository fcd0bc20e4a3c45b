"""Row strips: distances and gradients of c x M pairs at a time, so that nothing N x M is ever stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

# |x|^2 + |y|^2 - 2xy cancels when the pair is near: at d = 1e-3 half the digits of float32 are gone.
# Below this fraction of |x|^2 + |y|^2 the difference itself is squared, and its gradient applied directly.
NEAR = 1e-2
_STRIP_BYTES = {"cpu": 2 << 20}
_STRIP_BYTES_ELSEWHERE = 32 << 20
_GATHER_BYTES = 4 << 20


_products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
_lock = threading.Lock()
_inside = {"ieee": 0, "tf32": 0}
_found: list[str] = []


@contextmanager
def products(*, tf32: bool = False) -> Iterator[None]:
    """Keep float32 products out of TF32 and bfloat16 (or, on CUDA, in TF32), whatever torch's flags allow.

    torch has no such choice per product. So the flags are set for the whole process while any thread is in
    here, and the last one to leave puts back what the first one found. Threads of both kinds at once all get
    float32.
    """
    wanted = "tf32" if tf32 else "ieee"
    _count(wanted, 1)
    try:
        yield
    finally:
        _count(wanted, -1)


def _count(wanted: str, threads: int) -> None:
    with _lock:
        if not any(_inside.values()):
            _found[:] = [flags.fp32_precision for flags in _products]
        _inside[wanted] += threads
        for flags, found in zip(_products, _found):
            now = found
            if _inside["ieee"]:
                now = "ieee" if found in ("tf32", "bf16") else found
            elif _inside["tf32"]:
                now = "tf32" if flags is _products[0] else found
            if flags.fp32_precision != now:
                flags.fp32_precision = now


def rounded(x: Tensor, precision: int) -> Tensor:
    """The nearest numbers that TF32 (1) or bfloat16 (2) can hold; ``x`` itself for float32 (0)."""
    if precision == 0:
        return x
    scaled = x * (2**13 + 1 if precision == 1 else 2**16 + 1)  # 11 or 8 of 24 bits stay (T. J. Dekker, 1971)
    return scaled - (scaled - x)


def chunks(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(total)``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def gather_chunks(total: int, x: Tensor) -> Iterator[slice]:
    """Slices of an index list short enough that gathering rows of ``x`` by one takes little memory."""
    return chunks(total, max(1, _GATHER_BYTES // (x.element_size() * max(1, x.shape[1]))))


def computed_in_float32(op: CustomOpDef) -> None:
    """Autocast hands the op float32 (float64 stays), also for the products inside it."""
    for device in ("cpu", "cuda"):
        op.register_autocast(device, torch.float32)


def differentiable_once(
    forward: CustomOpDef, backward: CustomOpDef, differentiate: Callable[..., Any], save: Callable[..., None]
) -> None:
    """Register the gradient of a strip op, and refuse the gradient's gradient; both stay in float32."""

    def no_second_derivative(*_: Any) -> Any:
        raise NotImplementedError(f"{forward._name} is differentiable once; use impl='reference' for more")

    forward.register_autograd(differentiate, setup_context=save)
    backward.register_autograd(no_second_derivative)
    computed_in_float32(forward)
    computed_in_float32(backward)


def squares(x: Tensor) -> Tensor:
    """Squared norms [N]; NaN, not Inf, where they overflow, so that no distance becomes a finite lie."""
    total = (x * x).sum(1)
    return total.masked_fill_(total.isinf(), torch.nan)


@dataclass(frozen=True)
class Strip:
    """Distances of the anchors ``rows`` to all references, and which of them were near pairs."""

    rows: slice
    distance: Tensor  # [c, M]
    near: tuple[Tensor, Tensor]  # (row within the strip, reference)


class PairStrips:
    """All pairs of anchors ``x`` [N, D] and references ``y`` [M, D], strip by strip.

    With ``y=None`` the references are the anchors, and the distance of a row to itself is exactly 0. What
    products take is rounded to ``precision``, squared norms are those of the rounded rows. bfloat16 fits into
    TF32, in which the products are taken on CUDA; elsewhere they are float32's, of the same numbers.
    """

    def __init__(self, x: Tensor, y: Tensor | None, precision: int = 0) -> None:
        self.x = x
        self.symmetric = y is None
        self.y = x if y is None else y
        self.precision = precision
        self.x_factors = rounded(x, precision)
        self.y_factors = self.x_factors if y is None else rounded(y, precision)
        self.x_square = squares(self.x_factors)
        self.y_square = self.x_square if y is None else squares(self.y_factors)

    def __iter__(self) -> Iterator[Strip]:
        n, m = self.x.shape[0], self.y.shape[0]
        budget = _STRIP_BYTES.get(self.x.device.type, _STRIP_BYTES_ELSEWHERE)
        for rows in chunks(n, max(1, budget // (self.x.element_size() * max(1, m)))):
            yield self._strip(rows)

    def _strip(self, rows: slice) -> Strip:
        scale = self.x_square[rows, None] + self.y_square
        with self._products():
            square = torch.addmm(scale, self.x_factors[rows], self.y_factors.T, alpha=-2)
        is_near = square < NEAR * scale
        if self.symmetric:
            is_near[:, rows].fill_diagonal_(False)
            square[:, rows].fill_diagonal_(0)
        i, j = is_near.nonzero(as_tuple=True)
        for part in gather_chunks(i.numel(), self.x):
            difference = self.x[rows][i[part]] - self.y[j[part]]
            square[i[part], j[part]] = (difference * difference).sum(1)
        return Strip(rows, square.clamp_min_(0).sqrt_(), (i, j))

    def _products(self) -> AbstractContextManager[None]:
        return products(tf32=self.precision > 0 and self.x.is_cuda)

    def masks(
        self, strip: Strip, labels: Tensor, ref_labels: Tensor | None, own: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positive and negative pairs [c, M] of a strip, a row's pair with itself in neither.

        ``own`` is the reference that is the row itself, where there is one, else -1.
        """
        positive = labels[strip.rows, None] == (labels if ref_labels is None else ref_labels)
        negative = ~positive
        if self.symmetric:
            positive[:, strip.rows].fill_diagonal_(False)
        if own is not None:
            anchors = (own[strip.rows] >= 0).nonzero()[:, 0]
            places = anchors, own[strip.rows][anchors]
            positive[places] = negative[places] = False
        return positive, negative

    def pull_back(self, strip: Strip, slope: Tensor, grad_x: Tensor, grad_y: Tensor) -> None:
        """Add the gradient for ``slope`` = dL/d(distance) [c, M], which is overwritten.

        d(distance)/dx = (x - y) / distance, read as 0 where the distance is 0. Summed over the
        references this is rowsum(G) x - G y with G = slope / distance, except for near pairs, where
        that difference would cancel: they are gathered and added one by one.
        """
        rows = strip.rows
        g = slope.div_(strip.distance).masked_fill_(strip.distance == 0, 0)
        i, j = strip.near
        near = g[i, j]
        g[i, j] = 0
        g = rounded(g, self.precision)
        x = self.x[rows]
        with self._products():
            grad_x[rows] += torch.addmm(g.sum(1)[:, None] * x, g, self.y_factors, alpha=-1)
            grad_y += torch.addmm(g.sum(0)[:, None] * self.y, g.T, self.x_factors[rows], alpha=-1)
        for part in gather_chunks(i.numel(), self.x):
            pull = near[part, None] * (x[i[part]] - self.y[j[part]])
            grad_x[rows].index_add_(0, i[part], pull)
            grad_y.index_add_(0, j[part], pull, alpha=-1)

    def new_gradients(self) -> tuple[Tensor, Tensor]:
        """Zeroed accumulators for the anchors and the references (one and the same if symmetric)."""
        grad_x = torch.zeros_like(self.x)
        return grad_x, grad_x if self.symmetric else torch.zeros_like(self.y)
