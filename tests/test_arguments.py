"""Checks of what a user hands over: every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from ala_metric import PhiSpec
from ala_metric._arguments import (
    check_phi_in_range,
    check_settings,
    integer,
    metric_value,
    usable_offsets,
)

SPEC = (PhiSpec("margin", 0.0, 1.0), PhiSpec("alpha", 0.5, 64.0, "multiplicative"))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers(value: Any) -> None:
    assert type(integer("k", value)) is int
    assert integer("k", value) == 3


@pytest.mark.parametrize("value", [2.0, True, np.True_, "3", None, math.nan, torch.tensor(3), [3]])
def test_other_things_are_no_integers(value: Any) -> None:
    with pytest.raises(TypeError, match="^k must be an integer, got "):
        integer("k", value)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.array([[0.5]]), Fraction(1, 2)],
)
def test_values_of_metrics(value: Any) -> None:
    found = metric_value(value)
    assert (type(found), found) == (float, 0.5)


def test_values_that_are_not_finite_are_numbers() -> None:
    assert math.isnan(metric_value(torch.tensor(math.nan)))
    assert metric_value(-math.inf) == -math.inf


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "NoneType"),
        ("0.5", "'0.5'"),
        (1 + 2j, r"\(1\+2j\)"),
        ({"a": 1}, "dict"),
        ([0.5], "list"),
        (torch.ones(2), r"a Tensor of shape \[2\]"),
        (torch.empty(0), r"a Tensor of shape \[0\]"),
        (np.ones(3), r"a ndarray of shape \[3\]"),
        (torch.ones((), dtype=torch.complex64), "Tensor"),
    ],
)
def test_what_is_no_value_of_a_metric(value: Any, what: str) -> None:
    with pytest.raises(TypeError, match=rf"^recall must return one number, got {what}$"):
        metric_value(value, "recall")


@pytest.mark.parametrize(
    ("phi", "match"),
    [
        ([5.0, 2.0], r"loss\.phi\[0\] \('margin'\) must lie in \[0\.0, 1\.0\], got 5\.0"),
        ([-1e-5, 2.0], r"loss\.phi\[0\] \('margin'\)"),
        ([0.5, 0.0], r"loss\.phi\[1\] \('alpha'\) must lie in \[0\.5, 64\.0\], got 0\.0"),
        ([0.5, 64.1], r"loss\.phi\[1\] \('alpha'\)"),
        ([math.nan, 2.0], r"loss\.phi\[0\] .* got nan"),
        ([0.5, math.inf], r"loss\.phi\[1\] .* got inf"),
        ([0.5], r"loss\.phi must have 2 elements as phi_spec, got 1"),
    ],
)
def test_parameters_out_of_range(phi: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_phi_in_range(phi, SPEC)


def test_rounding_errors_of_parameters_are_forgiven() -> None:
    check_phi_in_range([-1e-7, 64.0 * (1 + 1e-7)], SPEC)
    check_phi_in_range([1.0 + 1e-7, 0.5], list(SPEC))


def test_ranges_that_are_no_specs() -> None:
    with pytest.raises(TypeError, match=r"loss\.phi_spec\[1\] must be a PhiSpec, got tuple"):
        check_phi_in_range([0.5, 0.5], (SPEC[0], ("b", 0, 1, "additive")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "offsets", [None, ("a",), (math.nan,), (math.inf,), (1.5,), (-1,), (True,), 5, "last", torch.tensor(3)]
)
def test_offsets_that_are_none(offsets: Any) -> None:
    with pytest.raises(ValueError, match=r"offsets must be integers >= 0 or 'all', got"):
        usable_offsets(offsets, every=4)


@pytest.mark.parametrize("offsets", [np.array([1, 0]), torch.tensor([1, 0]), iter((1, 0)), (1.0, 0, 9)])
def test_offsets_of_any_kind(offsets: Any) -> None:
    assert usable_offsets(offsets, every=4) == (0, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 2**64}, r"seed must lie in \[-2\*\*63, 2\*\*64\), got 18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed must lie in"),
        ({"beta": True}, "beta must be positive and finite, got True"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], match: str) -> None:
    arguments = {"mode": "paper", "step_on": "forward", "seed": 0, "beta": 0.1, "counts": {}}
    with pytest.raises(ValueError, match=match):
        check_settings(**(arguments | change))
    for seed in (2**64 - 1, -(2**63)):
        check_settings(**(arguments | {"seed": seed}))
        torch.Generator().manual_seed(seed)
