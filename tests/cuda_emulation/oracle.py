"""What the kernels should give: the equations in float64 on whole matrices, with their gradients."""

from __future__ import annotations

import copy

import numpy as np

Array = np.ndarray


def functions(d: Array, positive: bool) -> tuple[Array, Array]:
    """The five shapes of Eq. 9 and their slopes, [5, ...]."""

    def softplus(u: Array) -> Array:
        return np.logaddexp(0, u)

    def sigmoid(u: Array) -> Array:
        return np.exp(-np.logaddexp(0, -u))

    if positive:
        root = np.sqrt(d + 0.01)
        u = 6 * (d - 0.8)
        return (
            np.stack([d**2, d, root - 0.1, 0.5 * d**3, softplus(u) / 6]),
            np.stack([2 * d, np.ones_like(d), 0.5 / root, 1.5 * d**2, sigmoid(u)]),
        )
    c = np.maximum(d, 0.1)  # below 0.1 the tangent at 0.1 goes on
    u = 6 * (1.2 - d)
    return (
        np.stack(
            [
                0.5 / c - 0.5 / c**2 * (d - c),
                2 - d,
                -np.log(c / 2) - (d - c) / c,
                2 * np.exp(-2 * d),
                softplus(u) / 6,
            ]
        ),
        np.stack([-0.5 / c**2, -np.ones_like(d), -1 / c, -4 * np.exp(-2 * d), -sigmoid(u)]),
    )


class Pairs:
    """Distances by differences, and which pairs are positive or negative."""

    def __init__(self, x: Array, y: Array | None, labels: Array | None, ref_labels: Array | None) -> None:
        self.x = x.astype(np.float64)
        self.symmetric = y is None
        self.y = self.x if y is None else y.astype(np.float64)
        self.difference = self.x[:, None] - self.y[None]
        self.d = np.sqrt((self.difference**2).sum(2))
        other = np.ones(self.d.shape, bool)
        if self.symmetric:
            np.fill_diagonal(other, False)
        self.any = other
        if labels is not None:
            same = labels[:, None] == (labels if ref_labels is None else ref_labels)[None]
            self.positive, self.negative = same & other, ~same & other

    def at(self, distances: Array) -> Pairs:
        """The same pairs at other distances."""
        other = copy.copy(self)
        other.d = distances
        return other

    def pull(self, slope: Array) -> tuple[Array, Array]:
        """Gradients of x and y for dL/dd = slope; symmetric: both roles are in the first."""
        with np.errstate(divide="ignore", invalid="ignore"):
            g = np.where(self.d > 0, slope / self.d, 0) * self.any
        grad_x = np.einsum("ij,ijk->ik", g, self.difference)
        grad_y = -np.einsum("ij,ijk->jk", g, self.difference)
        return (grad_x + grad_y, grad_y) if self.symmetric else (grad_x, grad_y)


def mixture(p: Pairs, phi: Array, weights: Array) -> dict[str, Array]:
    loss = np.zeros(len(p.x))
    slope = np.zeros_like(p.d)
    grad_phi = np.zeros(10)
    for kind, mask in enumerate((p.positive, p.negative)):
        share = mask / np.maximum(mask.sum(1, keepdims=True), 1)
        f, df = functions(p.d, kind == 0)
        mine = phi[5 * kind : 5 * kind + 5]
        loss += (share * np.tensordot(mine, f, 1)).sum(1)
        weighted = share * weights[:, None]
        slope += weighted * np.tensordot(mine, df, 1)
        grad_phi[5 * kind : 5 * kind + 5] = (weighted * f).sum((1, 2))
    grad_x, grad_y = p.pull(slope)
    return {"loss": loss, "grad_x": grad_x, "grad_y": grad_y, "grad_phi": grad_phi}


def statistics(p: Pairs) -> Array:
    out = np.zeros(10)
    for kind, mask in enumerate((p.positive, p.negative)):
        if mask.any():
            out[5 * kind : 5 * kind + 5] = functions(p.d, kind == 0)[0][:, mask].mean(1)
    return out


def focal(p: Pairs, phi: Array, offset: float, weights: Array) -> dict[str, Array]:
    n = len(p.x)
    loss, slope, grad_phi, lse = np.zeros(n), np.zeros_like(p.d), np.zeros(2), np.zeros((n, 2))
    for k, (mask, sign) in enumerate(((p.positive, 1.0), (p.negative, -1.0))):
        z = np.where(mask, sign * phi[k] * (p.d - offset), -np.inf)
        top = np.maximum(z.max(1, initial=0), 0)
        small = np.exp(z - top[:, None]).sum(1)
        lse[:, k] = np.where(top == 0, np.log1p(small), top + np.log(np.exp(-top) + small))
        loss += lse[:, k] / phi[k]
        share = np.exp(z - lse[:, k, None]) * weights[:, None]
        slope += sign * share
        grad_phi[k] = (
            sign * (share * (p.d - offset)).sum() / phi[k] - (weights * lse[:, k]).sum() / phi[k] ** 2
        )
    grad_x, grad_y = p.pull(slope)
    return {"loss": loss, "lse": lse, "grad_x": grad_x, "grad_y": grad_y, "grad_phi": grad_phi}


def mined(
    x: Array, y: Array | None, phi: Array, lists: list[tuple[bool, Array, Array, Array]]
) -> dict[str, Array]:
    """Lists of (positive, anchors, others, weights), one after the other."""
    symmetric = y is None
    x = x.astype(np.float64)
    y = x if y is None else y.astype(np.float64)
    out = {"grad_x": np.zeros_like(x), "grad_y": np.zeros_like(y), "grad_phi": np.zeros(10)}
    for number, (positive, a, o, w) in enumerate(lists):
        first = 0 if positive else 5
        difference = x[a] - y[o]
        d = np.sqrt((difference**2).sum(1))
        f, df = functions(d, positive)
        out[f"values{number}"] = phi[first : first + 5] @ f
        out["grad_phi"][first : first + 5] += f @ w
        with np.errstate(divide="ignore", invalid="ignore"):
            g = np.where(d > 0, w * (phi[first : first + 5] @ df) / d, 0)
        np.add.at(out["grad_x"], a, g[:, None] * difference)
        np.add.at(out["grad_x"] if symmetric else out["grad_y"], o, -g[:, None] * difference)
    return out


def ranks(
    x: Array, y: Array | None, labels: Array, ref_labels: Array | None, cosine: bool
) -> tuple[Array, Array, Array]:
    """Pessimistic and optimistic ranks and offsets, by sorting; distances rounded to tie as they should."""
    symmetric = y is None
    x = x.astype(np.float64)
    y = x if y is None else y.astype(np.float64)
    refs = labels if ref_labels is None else ref_labels
    bad, good, offsets = [], [], [0]
    for i in range(len(x)):
        if cosine:
            length = np.sqrt((y * y).sum(1))
            unit = y / np.where(length > 0, length, 1)[:, None]  # exact for rows along one axis
            key = -(unit * x[i]).sum(1)
            key = key / max(np.sqrt((x[i] ** 2).sum()), 1e-300)
        else:
            key = ((y - x[i]) ** 2).sum(1)
        negative = np.sort(key[refs != labels[i]])
        own = refs == labels[i]
        if symmetric:
            own[i] = False
        mine = np.sort(key[own])
        count = np.arange(1, len(mine) + 1)
        bad.append(count + np.searchsorted(negative, mine, side="right"))
        good.append(count + np.searchsorted(negative, mine, side="left"))
        offsets.append(offsets[-1] + len(mine))
    return np.concatenate([*bad, []]), np.concatenate([*good, []]), np.array(offsets)
