"""Where the time of a small batch goes: the products, the operator, autograd, the checks, the module.

Each provider does what the one before does and a little more; all are forward and gradient.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from ala_metric import losses

from . import kernels, measure

SIZES = ("8x128", "64x128", "256x128")


class Bare(torch.autograd.Function):
    """The least that an operator needs to be part of a graph: its unit gradient is kept and scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        loss, unit, *_ = kernels.operator("mixture", x.detach(), labels)
        ctx.save_for_backward(unit)
        return loss[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        (unit,) = ctx.saved_tensors
        return unit * grad, None


def providers(n: int, d: int) -> dict[str, measure.Call]:
    module = losses.DistanceMixtureLoss(phi=kernels.PHI["mixture"])
    return {
        kernels.UNIT: kernels.two_products(n, d),
        kernels.OPERATOR: kernels.without_graph("mixture", n, d),
        "bare autograd": kernels.step(lambda x, labels: Bare.apply(x, labels), n, d),
        "ops.distance_mixture": kernels.native("mixture", n, d),
        "DistanceMixtureLoss": kernels.step(module, n, d),
        "PML Contrastive": kernels.pml("ContrastiveLoss", n, d),
        "PML MultiSimilarity": kernels.pml("MultiSimilarityLoss", n, d),
    }


def table(found: list[measure.Row]) -> str:
    """Cases down, providers across: microseconds."""
    names = list(dict.fromkeys(row.provider for row in found))
    lines = ["| case | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for case in dict.fromkeys(row.case for row in found):
        cells = {row.provider: row for row in found if row.case == case}
        lines.append(
            f"| {case} | " + " | ".join(f"{cells[n].seconds_median * 1e6:.0f}" for n in names) + " |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks small_batches", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="NxD")
    measure.add_csv_option(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: list[measure.Row] = []
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        times = measure.interleaved(providers(n, d), options.rounds, block=kernels.BLOCK)
        found += measure.rows("small batches", f"mixture {size}", kernels.UNIT, times, 1, {})
    print(f"microseconds of a step, one thread (medians)\n\n{table(found)}\n\n{measure.conditions()}")
    measure.write_csv(options.csv, found)
    return 0
