"""The command ``ala-metric``: demo, tune, train, eval, plot, policy, data and doctor."""

from __future__ import annotations

import argparse
import importlib
import io
import os
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
FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE
EXPECTED = (UsageError, AlaMetricError, ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""Errors whose message is enough; others are bugs, and the traceback is offered."""


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
        Exit status: 0, 1 for a failure, 2 for a wrong call, 130 or 143 after SIGINT or SIGTERM, 141 if the
        reader of the output has gone.

    Examples
    --------
    >>> main(["train", "--steps", "-1"])
    2
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a ± on an ASCII terminal
    status = _run(argv)
    return BROKEN_PIPE if _cannot_flush() else status


def _run(argv: Sequence[str] | None) -> int:
    """Parse and run, and turn an error into one line and a status."""
    try:
        given: dict[str, Any] = vars(make_parser().parse_args(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    name, config, debug = given.pop("command"), given.pop("config"), given.pop("debug")
    try:
        chosen: Any = build_options(COMMANDS[name], given, config or options.options_of_run(given))
        status = int(importlib.import_module(f".{name}", __package__).run(chosen))
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        print(f"ala-metric {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # training.Interrupted, or the demo told to end
        status = stop.code if isinstance(stop.code, int) else FAILURE
        print(f"ala-metric {name}: {'interrupted' if str(stop) == str(status) else stop}", file=sys.stderr)
        return status
    except BrokenPipeError:  # as in "| head": no error of the command
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            raise
        said = " ".join(_message(error).split()) or type(error).__name__
        expected = isinstance(error, EXPECTED)
        prefix = "" if expected else f"{type(error).__name__}: "
        print(f"ala-metric {name}: error: {prefix}{said}", file=sys.stderr)
        if not expected:
            print("run again with --debug for the traceback", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE


def _cannot_flush() -> bool:
    """Whether text is left that nobody reads any more; it is thrown away, or Python would try again."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            gone = gone or isinstance(error, BrokenPipeError)
            with open(os.devnull, "wb") as sink:
                os.dup2(sink.fileno(), stream.fileno())
    return gone


def _message(error: Exception) -> str:
    """What an error says; of one from a loader's process, which brings its traceback along, the last line."""
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker process" in text.splitlines()[0]:
        return text.rstrip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    sys.exit(main())
