"""The folder of a run: its options, checkpoint, history (JSON and CSV) and test metrics."""

from __future__ import annotations

import csv
import io
import json
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
    """Write JSON in one step, with a newline at the end."""
    atomic_write_bytes(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


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
