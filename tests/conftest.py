from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ala_metric import _native
from ala_metric.data.glyphs import RULES

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sanitizer", choices=["address", "thread"], default="address")
    parser.addoption("--wheel", help="a built wheel to test instead of building one (tests/test_wheel.py)")


def implementations() -> list[object]:
    """Every implementation of an op; native is skipped with its reason where it is absent."""
    info = _native.native_info()
    mark = [] if info.available else [pytest.mark.skip(reason=f"native: {info.reason}")]
    return ["reference", "strips", pytest.param("native", marks=mark)]


@pytest.fixture(params=implementations())
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def shared_cache() -> Iterator[Path]:
    """One cache folder for all workers and runs: what is slow to build is built once."""
    folder = Path(tempfile.gettempdir()) / f"ala_metric-tests-{os.getuid()}-rules{RULES}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if folder.stat().st_uid == os.getuid():
            patch.setenv("ALA_METRIC_CACHE", str(folder))
        yield folder
