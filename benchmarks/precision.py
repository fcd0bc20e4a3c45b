"""What ``precision="tf32"`` and ``"bf16"`` cost: relative L2 errors against float64, in emulation.

Unit rows in classes of 8, as normal vectors ("apart") or within 0.5 of a centre of their class ("clusters").
The products are NumPy's, of numbers whose low bits are cut off; a GPU's sums are in another order.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from ala_metric import ops

from .kernels import PHI

PRECISIONS = ("fp32", "tf32", "bf16")
CLASS = 8


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 128, 512])
    options = parser.parse_args(arguments)
    print("| rows | D | loss | precision | values | gradient | worst row of the gradient |")
    print("|---|---|---|---|---|---|---|")
    for d in options.dims:
        for kind in ("apart", "clusters"):
            for cells in table(rows(options.rows, d, kind)):
                print("|", " | ".join((kind, str(d), *cells)), "|")
    return 0


def rows(n: int, d: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(d)
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    if kind == "clusters":
        centres = rng.normal(size=(n // CLASS + 1, d))
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        x = centres[np.arange(n) // CLASS] + 0.5 * x
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def table(x: np.ndarray) -> Iterator[tuple[str, ...]]:
    from tests.cuda_emulation import library

    lib = library.Emulated(library.build())
    labels = np.arange(len(x)) // CLASS
    for name, op in (("mixture", ops.distance_mixture), ("focal", ops.focal_weighting)):
        exact = torch.from_numpy(x).double().requires_grad_()
        phi = PHI[name].double()
        wanted = op(exact, torch.from_numpy(labels), phi, impl="strips")
        (gradient,) = torch.autograd.grad(wanted.sum(), exact)
        for precision, word in enumerate(PRECISIONS):
            lib.use(path=2, multiply=library.blas, precision=precision)
            out = {"loss": np.empty(len(x), np.float32), "grad_x": np.empty_like(x)}
            more = {} if name == "mixture" else {"offset": 1.0}
            fields = {"phi": phi.numpy(), "x_labels": labels, **more, **out}
            lib.call("distance_mixture" if name == "mixture" else "focal_weighting", x, **fields)
            worst = relative(out["grad_x"], gradient.numpy(), axis=1).max()
            errors = relative(out["loss"], wanted.detach().numpy()), relative(out["grad_x"], gradient.numpy())
            yield name, f'`"{word}"`', *(f"{error:.1e}" for error in (*errors, worst))


def relative(found: np.ndarray, wanted: np.ndarray, axis: int | None = None) -> np.ndarray:
    scale = np.linalg.norm(wanted, axis=axis)
    return np.asarray(np.linalg.norm(found.astype(np.float64) - wanted, axis=axis) / scale)
