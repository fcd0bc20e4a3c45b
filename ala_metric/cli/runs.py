"""The folder of a run: its options, checkpoint, history (JSON and CSV) and test metrics."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._files import atomic_write_bytes
from ..training import columns, flatten
from .arguments import UsageError, build_options
from .options import TrainOptions

CHECKPOINT, OPTIONS, HISTORY, METRICS = "checkpoint.pt", "options.json", "history.json", "metrics.json"
CHILDREN = "children.json"
NOT_OF_THE_RUN = ("out", "resume", "threads", "device", "impl", "save_every", "loader_workers")
"""Options that may differ when a run is resumed."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON in one step, with a newline at the end; infinities and NaN become strings such as "-inf"."""
    text = json.dumps(_finite(value), indent=1, default=str, allow_nan=False)
    atomic_write_bytes(path, (text + "\n").encode())


def _finite(value: Any) -> Any:
    """The same value without the floats that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def check_target(path: Path | None) -> None:
    """Refuse a file that could not be written, before hours are spent on what it is to hold."""
    if path is None:
        return
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder, give a file")
    if not folder.is_dir():
        raise UsageError(f"the folder of {path} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder of {path} is not writable")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say in one line what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def write_options(folder: Path, options: TrainOptions) -> None:
    """Keep the options that make the run what it is."""
    write_json(folder / OPTIONS, {k: v for k, v in asdict(options).items() if k not in NOT_OF_THE_RUN})


def read_options(folder: Path) -> TrainOptions:
    """The options that :func:`write_options` kept."""
    if not (folder / OPTIONS).is_file():
        raise UsageError(f"{folder} is not the folder of a run: it has no {OPTIONS}")
    return build_options(TrainOptions, {}, folder / OPTIONS)


def write_history(
    folder: Path,
    options: TrainOptions,
    names: Sequence[str],
    start: Sequence[float],
    metric: str,
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Write every controller step, as JSON with the options and as a table in CSV."""
    head = {"options": asdict(options), "phi_names": list(names), "phi_start": list(start), "metric": metric}
    write_json(folder / HISTORY, head | {"records": list(records)})
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, columns(names), lineterminator="\n")
    table.writeheader()
    table.writerows(flatten(record, names) for record in records)
    atomic_write_bytes(folder / "history.csv", buffer.getvalue().encode())
