"""The classification loss and the controller of its class pairs, as ratios to their peers.

The unit is ``torch.nn.functional.cross_entropy``, forward and backward, on the same logits. Of the controller
the milliseconds per step are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from ala_metric import ALALoss, classification, controller, metrics
from ala_metric.classification.loss import DENSE_CLASSES

from . import measure

SIZES = ((128, 10), (1024, 1000), (512, 100_000))
UNIT = "cross_entropy"
CLASSES, TOP, VALIDATION = 1000, 64, 10_000


def step(loss: object, batch: int, classes: int) -> measure.Call:
    """One forward and backward pass as a call without arguments."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator).requires_grad_()
    targets = torch.randint(0, classes, (batch,), generator=generator)

    def call() -> None:
        logits.grad = None
        loss(logits, targets).backward()  # type: ignore[operator]

    return call


def peers(batch: int, classes: int) -> dict[str, measure.Call]:
    """Calls by name."""
    found = {
        UNIT: step(F.cross_entropy, batch, classes),
        "softplus, diagonal Phi": step(classification.AdaptiveClassificationLoss(classes), batch, classes),
    }
    if classes <= DENSE_CLASSES:
        full = classification.AdaptiveClassificationLoss(classes, off_diagonal=True)
        found["softplus, full Phi"] = step(full, batch, classes)
    return found


def controller_steps(top: int | None, rounds: int) -> list[float]:
    """Milliseconds per controller step (state, policy, actions, learning), for pairs of 1,000 classes."""
    loss = classification.AdaptiveClassificationLoss(CLASSES, off_diagonal=True, top_confusions=top)
    spec = loss.phi_spec
    kind = controller.ManyController if len(spec) > controller.MANY else controller.Controller
    scheme = kind(spec, loss.statistics_width, standardized=True)
    generator = torch.Generator().manual_seed(0)
    phi = loss.phi_vector if kind is controller.ManyController else loss.phi_vector.tolist()
    times = []
    for number in range(rounds + 20):  # learning begins after 16 rewards
        statistics_now = torch.randn(len(spec), loss.statistics_width, generator=generator)
        begin = time.perf_counter()
        phi = scheme.step(phi, statistics_now, 1.0 if number % 2 else -1.0, 0.5).phi
        times.append(1000 * (time.perf_counter() - begin))
    return times[20:]


def adaptations(top: int | None, rounds: int) -> list[float]:
    """Milliseconds per adaptation: metric and statistics of the validation outputs, and the controller."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(VALIDATION, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (VALIDATION,), generator=generator)
    loss = classification.AdaptiveClassificationLoss(CLASSES, off_diagonal=True, top_confusions=top)
    options = {"total_steps": rounds + 30, "every": 1, "offsets": (0,)}
    loss_fn = ALALoss(loss, metrics.ClassificationError(), lambda: (outputs, targets), **options)
    logits = outputs[:1].clone().requires_grad_()
    for _ in range(rounds + 20):
        loss_fn(logits, targets[:1])
    return [1000 * record.seconds for record in loss_fn.history][19:]


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks classification_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    measure.add_csv_option(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = []
    for batch, classes in SIZES:
        times = measure.interleaved(peers(batch, classes), options.rounds, seconds=20.0)
        found += measure.rows("classification", f"{batch}x{classes}", UNIT, times, options.threads, {})
    measure.write_csv(options.csv, found)
    print(measure.markdown(found))
    for top in (None, TOP):
        pairs = "all 500,500 pairs" if top is None else f"the {top} most confused pairs"
        for what, times in (
            ("controller step", controller_steps(top, options.rounds)),
            (
                f"metric and statistics of {VALIDATION:,} outputs, and the step",
                adaptations(top, options.rounds),
            ),
        ):
            print(
                f"{what}, {CLASSES} classes, {pairs}: median {statistics.median(times):.1f} ms, "
                f"fastest {min(times):.1f} ms, {options.threads} thread(s)"
            )
    print(measure.conditions())
    return 0
