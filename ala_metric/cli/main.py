"""The command ``ala-metric``: demo, tune, train, eval, plot, policy, data and doctor."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..types import AlaMetricError
from . import options
from .arguments import UsageError, add_options, build_options

COMMANDS: dict[str, type] = {
    "demo": options.DemoOptions,
    "tune": options.TuneOptions,
    "train": options.TrainOptions,
    "eval": options.EvalOptions,
    "plot": options.PlotOptions,
    "policy": options.PolicyOptions,
    "data": options.DataOptions,
    "doctor": options.DoctorOptions,
}
FAILURE, USAGE, INTERRUPTED = 1, 2, 128 + signal.SIGINT


def make_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ala-metric", description="Losses that adapt to the metric you care about."
    )
    parser.add_argument("--version", action="version", version=f"ala-metric {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, kind in COMMANDS.items():
        summary = (kind.__doc__ or "").strip()
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="options from a YAML, TOML or JSON file"
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add_options(command, kind)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments without the program's name; those of the process if not given.

    Returns
    -------
    int
        Exit status: 0, 1 for a failure, 2 for a wrong call, 130 or 143 after SIGINT or SIGTERM.

    Examples
    --------
    >>> main(["train", "--steps", "-1"])
    2
    """
    try:
        given: dict[str, Any] = vars(make_parser().parse_args(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    name, config, debug = given.pop("command"), given.pop("config"), given.pop("debug")
    try:
        chosen: Any = build_options(COMMANDS[name], given, config or options.options_of_run(given))
        return int(importlib.import_module(f".{name}", __package__).run(chosen))
    except KeyboardInterrupt:
        print(f"ala-metric {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        said = " ".join(_message(error).split()) or type(error).__name__
        expected = isinstance(
            error, (UsageError, AlaMetricError, ValueError, TypeError, OSError, ImportError)
        )
        prefix = "" if expected else f"{type(error).__name__}: "
        print(f"ala-metric {name}: error: {prefix}{said}", file=sys.stderr)
        if not expected:
            print("run again with --debug for the traceback", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE


def _message(error: Exception) -> str:
    """What an error says; of one from a loader's process, which brings its traceback along, the last line."""
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker process" in text.splitlines()[0]:
        return text.rstrip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    sys.exit(main())
