"""A batch against a queue of past embeddings, forward and gradient: ratios to pytorch-metric-learning's.

The loss is the same for all: mean of d over positive and of 2 - d over negative pairs, which is their
ContrastiveLoss with margins 0 and 2, and the mixture with two weights. Every class is as frequent, so that
their mean over pairs is our mean over anchors; values and gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from ala_metric import losses

from . import measure

PHI = (0.0, 1, 0, 0, 0, 0, 1, 0, 0, 0)
UNIT = "PML CrossBatchMemory"
BATCH, PER_CLASS, CLASSES = 128, 4, 1024
QUEUES = (8192, 65536)


def data(dim: int, queue: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of unit rows and a full queue of them, with their labels."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(BATCH + queue, dim, generator=generator))
    labels = torch.arange(queue) // PER_CLASS % CLASSES
    return rows[:BATCH].clone().requires_grad_(), labels[:BATCH].clone(), rows[BATCH:].clone(), labels


def theirs(dim: int, queue: int) -> Any:
    loss = pml.ContrastiveLoss(pos_margin=0, neg_margin=2, reducer=MeanReducer())
    return pml.CrossBatchMemory(loss, dim, queue)


def ours(impl: Any, dim: int, queue: int) -> Any:
    return losses.CrossBatchMemory(losses.DistanceMixtureLoss(PHI, impl=impl), dim, queue)


def lists(dim: int, queue: int) -> Any:
    """Our fused loss without our memory: their memory makes it look at lists of pairs."""

    class Admitting(pml.CrossBatchMemory):
        @classmethod
        def check_loss_support(cls, loss_name: str) -> None:
            pass

    return Admitting(losses.DistanceMixtureLoss(PHI), dim, queue)


PROVIDERS: dict[str, Callable[[int, int], Any]] = {
    UNIT: theirs,
    "PML CrossBatchMemory, native loss": lists,
    "native": partial(ours, "native"),
    "strips": partial(ours, "strips"),
}


def step(make: Callable[[int, int], Any], dim: int, queue: int) -> measure.Call:
    """One step of training with a full queue, at the place in the queue where the batch has been before."""
    x, labels, kept, owner = data(dim, queue)
    memory = make(dim, queue)
    memory.embedding_memory, memory.label_memory, memory.has_been_filled = kept, owner, True

    def call() -> tuple[Tensor, Tensor]:
        x.grad, memory.queue_idx = None, 0
        value = memory(x, labels)
        value.backward()
        assert x.grad is not None
        return value.detach(), x.grad

    return call


def disagreement(dim: int, queue: int) -> dict[str, tuple[float, float]]:
    """Relative difference of loss and gradient to theirs."""
    value, gradient = step(theirs, dim, queue)()
    found = {}
    for name, make in PROVIDERS.items():
        other, other_gradient = step(make, dim, queue)()
        found[name] = (
            abs(float(other - value) / float(value)),
            float((other_gradient - gradient).norm() / gradient.norm()),
        )
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory_bank", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queues", type=int, nargs="*", default=QUEUES)
    parser.add_argument("--no-memory", action="store_true")
    measure.add_csv_option(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found: list[measure.Row] = []
    for queue in options.queues:
        print(f"queue {queue}x{options.dim}, batch {BATCH} ...", flush=True)
        for name, (of_loss, of_gradient) in disagreement(options.dim, queue).items():
            print(f"  {name}: loss {of_loss:.1e} and gradient {of_gradient:.1e} from theirs", flush=True)
        setups = {name: partial(step, make) for name, make in PROVIDERS.items()}
        calls = {name: setup(options.dim, queue) for name, setup in setups.items()}
        times = measure.interleaved(calls, options.rounds, seconds=40)
        peaks = {}
        if not options.no_memory:
            small = (options.dim, 2 * BATCH)
            for name, setup in setups.items():
                peaks[name] = measure.peak_extra_mib(setup, small, (options.dim, queue))
        case = f"{BATCH} against {queue}x{options.dim}"
        found += measure.rows("memory_bank", case, UNIT, times, options.threads, peaks)
    print(f"\ntime / {UNIT} (peak extra memory)\n\n{measure.markdown(found)}\n\n{measure.conditions()}")
    measure.write_csv(options.csv, found)
    return 0
