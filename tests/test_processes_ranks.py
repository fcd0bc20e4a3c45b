"""Gradients of processes that train one model: their mean, also where a branch was not used by all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ala_metric.training.processes import Processes

from .processes import together

SLOPES: list[list[list[float] | None]] = [  # of each process, for five parameters
    [[1.0], None, [3.0, 5.0], None, [4.0]],
    [None, [2.0], [1.0, 1.0], None, [2.0]],
]


def averaged(rank: int, slopes: list[list[list[float] | None]]) -> list[Any]:
    parameters = [torch.zeros(size, requires_grad=True) for size in (1, 1, 2, 2, 1)]
    parameters[4] = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for parameter, slope in zip(parameters, slopes[rank]):
        parameter.grad = None if slope is None else torch.tensor(slope, dtype=parameter.dtype)
    Processes(torch.device("cpu")).average_gradients(p for p in parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_gradients_that_only_some_processes_have(tmp_path: Path) -> None:
    expected = [[0.5], [1.0], [2.0, 3.0], None, [3.0]]
    assert together(2, tmp_path, averaged, SLOPES) == [expected] * 2
    nothing: list[list[float] | None] = [None] * 5
    halves = [[0.5], None, [1.5, 2.5], None, [2.0]]
    assert together(2, tmp_path, averaged, [SLOPES[0], nothing]) == [halves] * 2
    assert together(2, tmp_path, averaged, [nothing, nothing]) == [nothing] * 2


def test_alone_gradients_stay() -> None:
    assert averaged(0, SLOPES) == SLOPES[0]
