"""The strips implementation keeps its promise: nothing N x N, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import implementations

ROOT = Path(__file__).resolve().parents[1]
N, D = 16_384, 64
LIMIT = 200 * 2**20  # an N x N float32 matrix would be 1 GiB

# VmHWM is the peak of this process alone (ru_maxrss would begin with the parent's); a warm-up on a small
# batch pays for everything that is loaded once. The peak is taken from what is resident before the step, not
# from the peak before it: loading torch can peak higher than the step does, and would hide it.
PROBE = """
import ctypes, re, sys, torch
from ala_metric import ops
torch.set_num_threads(1)
name, impl, n, d = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
phi = torch.tensor([1.0] * 10) if name == "distance_mixture" else torch.tensor([2.0, 8.0])
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
def step(n):
    x = torch.nn.functional.normalize(torch.randn(n, d)).requires_grad_()
    getattr(ops, name)(x, torch.arange(n) % 512, phi, impl=impl).mean().backward()
step(1024)
try:
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would serve the step unseen
    open("/proc/self/clear_refs", "w").write("5")  # a new peak; without it the result is an upper bound
except (OSError, AttributeError):
    pass
before = kib("VmRSS")
step(n)
print((kib("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("which", [i for i in implementations() if i != "reference"])
@pytest.mark.parametrize("name", ["distance_mixture", "focal_weighting"])
def test_peak_extra_memory(which: str, name: str) -> None:
    assert 0 < peak_extra_memory(name, which, N) < LIMIT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_probe_sees_a_dense_matrix() -> None:
    assert peak_extra_memory("distance_mixture", "reference", 2048) > 4 * 2048**2 * 2


def peak_extra_memory(name: str, which: str, n: int) -> int:
    command = [sys.executable, "-c", PROBE, name, which, str(n), str(D)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=280)
    return int(done.stdout)
