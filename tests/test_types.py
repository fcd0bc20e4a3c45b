"""Ranges and steps of loss parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml

from ala_metric import PhiSpec, losses

RANGES = [(0.001, 1000.0), (1e-6, 1.0), (0.05, 1.0), (0.5, 64.0)]


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_range_above_zero_keeps_zero_out(low: float, high: float, rule: str) -> None:
    spec = PhiSpec("a", low, high, rule)
    for value in (0.0, -low, low * 0.99, high * 1.01, math.nan, math.inf):
        assert not spec.allows(value, 0.0)
    for value in (low, high):
        assert spec.allows(value, 0.0)
        assert spec.allows(float(np.float32(value)), 0.0)  # what a buffer makes of the bound


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-3.0, 0.0), (0.05, 1.0), (-2.0, 1e3)])
def test_a_walk_of_rounded_steps_reaches_both_ends(low: float, high: float) -> None:
    spec = PhiSpec("a", low, high)
    size = (high - low) / 20
    for ways in ([1] * 20, [-1] * 20):
        value = low if ways[0] == 1 else high
        for way in ways:
            assert spec.allows(value, way * size)
            value = float(np.float32(spec.step(value, way * size)))
        assert not spec.allows(value, ways[0] * size)


def test_a_walk_of_rounded_factors_reaches_both_ends() -> None:
    spec = PhiSpec("a", 1e-3, 1e3, "multiplicative")
    size = math.log(1e6) / 20
    for way in (1, -1):
        value = spec.low if way == 1 else spec.high
        for _ in range(20):
            assert spec.allows(value, way * size)
            value = float(np.float32(spec.step(value, way * size)))
        assert not spec.allows(value, way * size)


def test_set_phi_refuses_the_zero_of_a_wide_range() -> None:
    loss_fn = losses.AdaptPML(pml.NTXentLoss(temperature=0.5), {"temperature": (0.001, 1000.0)})
    with pytest.raises(ValueError, match=r"temperature must lie in \[0.001, 1000.0\], got 0.0"):
        loss_fn.set_phi(torch.zeros(1))
    loss_fn.set_phi(torch.tensor([0.001]))
    loss_fn.set_phi(torch.tensor([1000.0]))
