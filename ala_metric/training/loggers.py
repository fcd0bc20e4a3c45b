"""Where the records of the controller steps go: a table in CSV, or TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_SCALARS = ("step", "metric", "error", "reward", "entropy", "seconds")
_MOST_CURVES = 64  # above so many parameters TensorBoard gets a histogram instead of one curve each


def columns(names: Sequence[str]) -> list[str]:
    """Names of the columns of :func:`flatten`.

    Parameters
    ----------
    names
        Names of the parameters.

    Returns
    -------
    list of str

    Examples
    --------
    >>> columns(["margin"])[-2:]
    ['margin', 'action_margin']
    """
    return [*_SCALARS, *names, *(f"action_{name}" for name in names)]


def flatten(record: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, float | None]:
    """One controller step as one flat row of numbers.

    Parameters
    ----------
    record
        What :class:`ala_metric.ALALoss` gives its logger.
    names
        Names of the parameters, usually ``[spec.name for spec in loss.phi_spec]``; without them ``phi_1``,
        ``phi_2`` and so on.

    Returns
    -------
    dict
        ``step``, ``metric``, ``error``, ``reward``, ``entropy``, ``seconds`` (of validation and controller
        at this step), then each parameter and each ``action_`` of a parameter; for more than 4,096
        parameters, whatever their names, the numbers of the record's summary as ``phi_mean`` and so on.
        None is "not known".

    Raises
    ------
    ValueError
        If there are names, but not one for each parameter.

    Examples
    --------
    >>> record = dict(step=200, metric=0.4, error=-0.4, reward=None, entropy=1.1, seconds=0.02,
    ...               phi=(0.6,), action=(0.1,))
    >>> flatten(record, ["margin"])["margin"], flatten(record)["action_phi_1"]
    (0.6, 0.1)
    """
    if summary := record.get("summary"):
        numbers = {f"phi_{name}": value for name, value in summary.items() if name != "farthest"}
        return {key: record[key] for key in _SCALARS} | numbers
    names = names or [f"phi_{k}" for k in range(1, len(record["phi"]) + 1)]
    if len(names) != len(record["phi"]):
        raise ValueError(f"names must have one entry per parameter ({len(record['phi'])}), got {len(names)}")
    values = [*(record[key] for key in _SCALARS), *record["phi"], *record["action"]]
    return dict(zip(columns(names), values))


class CSVLogger:
    """Appends one line per controller step to a CSV file.

    Parameters
    ----------
    path
        The file; its folder must exist.
    names
        Names of the parameters, see :func:`flatten`.
    resume
        Go on with an existing file. Lines of steps that are taken again are replaced, and a last line without
        its end, which a crash has torn, is dropped.

    Raises
    ------
    FileExistsError
        If the file exists and ``resume`` is off.
    FileNotFoundError
        If its folder does not exist.
    ValueError
        When a record has other columns than the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> record = dict(step=200, metric=0.4, error=-0.4, reward=None, entropy=1.1, seconds=0.02,
    ...               phi=(0.6,), action=(0.1,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = CSVLogger(Path(folder, "history.csv"), ["margin"])
    ...     logger.log(record)
    ...     print(Path(folder, "history.csv").read_text().splitlines()[0])
    step,metric,error,reward,entropy,seconds,margin,action_margin
    """

    def __init__(
        self, path: str | os.PathLike[str], names: Sequence[str] = (), *, resume: bool = False
    ) -> None:
        self.path, self.names = Path(path), tuple(names)
        self._started = False
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"folder of the table does not exist: {self.path.parent}")
        if self.path.exists() and not resume:
            raise FileExistsError(f"{self.path} exists: name another file, or go on with resume=True")

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one line."""
        row = flatten(record, self.names)
        kept = [] if self._started else self._earlier(row)
        with open(self.path, "a" if self._started else "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(row), lineterminator="\n")
            if not self._started:
                table.writeheader()
            table.writerows([*kept, row])
        self._started = True

    def _earlier(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """Lines of the file that come before this step."""
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            text = file.read()
        table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        if table.fieldnames is not None and list(table.fieldnames) != list(row):
            raise ValueError(f"{self.path} has the columns {table.fieldnames}, this run has {list(row)}")
        return [line for line in table if int(line["step"]) < row["step"]]


class TensorBoardLogger:
    """Writes metric, error, reward, entropy, seconds and every parameter to TensorBoard.

    Parameters
    ----------
    to
        A folder, or a ``torch.utils.tensorboard.SummaryWriter`` of yours.
    names
        Names of the parameters, see :func:`flatten`. More than 64 parameters become one histogram.
    prefix
        Put before every tag.

    Raises
    ------
    ImportError
        If the package tensorboard is missing.

    Examples
    --------
    >>> class Writer:  # yours would be a SummaryWriter
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    ...     def flush(self):
    ...         pass
    >>> record = dict(step=200, metric=0.4, error=-0.4, reward=None, entropy=1.1, seconds=0.02,
    ...               phi=(0.6,), action=(0.1,))
    >>> TensorBoardLogger(Writer(), ["margin"]).log(record)
    ala/metric 0.4 200
    ala/error -0.4 200
    ala/entropy 1.1 200
    ala/seconds 0.02 200
    ala/phi/margin 0.6 200
    """

    def __init__(self, to: Any, names: Sequence[str] = (), *, prefix: str = "ala/") -> None:
        if isinstance(to, (str, os.PathLike)):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "TensorBoardLogger needs the package tensorboard: pip install tensorboard"
                ) from error
            to = SummaryWriter(os.fspath(to))
        self.writer, self.names, self.prefix = to, tuple(names), prefix

    def log(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of one step that are known."""
        row, step = list(flatten(record, self.names).items()), record["step"]
        first = len(_SCALARS)
        curves = dict(row[1:first])
        if record.get("summary"):
            curves |= dict(row[first:])
        elif len(record["phi"]) <= _MOST_CURVES:
            phi = row[first : first + len(record["phi"])]
            curves |= {f"phi/{name}": value for name, value in phi}
        else:
            self.writer.add_histogram(f"{self.prefix}phi", torch.tensor(record["phi"]), step)
        for name, value in curves.items():
            if value is not None:
                self.writer.add_scalar(self.prefix + name, value, step)
        self.writer.flush()
