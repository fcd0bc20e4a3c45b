"""A forked child computes what its parent does, whatever the parent's threads were doing before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FORKED = """
import os, signal, sys, torch
from ala_metric import metrics, ops
torch.set_num_threads(int(sys.argv[2]))
x, labels, phi = torch.randn(1000, 64), torch.arange(1000) % 7, torch.ones(10)  # enough for torch's threads
def values():
    leaf = x.clone().requires_grad_()
    ops.distance_mixture(leaf, labels, phi, impl=sys.argv[1]).mean().backward()
    ranks = ops.positive_ranks(x, labels, impl=sys.argv[1])[0]
    means = ops.distance_statistics(x, labels, impl=sys.argv[1])
    return leaf.grad, ranks, means, torch.tensor(metrics.RecallAtK((1,), impl=sys.argv[1])(x, labels))
before = values()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that hangs ends by a signal
    same = (torch.allclose(a, b, rtol=1e-4) for a, b in zip(values(), before))
    os._exit(0 if all(same) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_child_of_fork_computes(impl: str, threads: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, impl, str(threads)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=150)
    assert done.stdout.split() == ["0", str(threads)], done.stderr  # the parent keeps its threads
