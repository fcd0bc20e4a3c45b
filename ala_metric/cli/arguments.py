"""Turns a frozen dataclass of options into an argument parser and a config-file reader."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


class UsageError(Exception):
    """The command was called in a way that cannot work; the message says what to change."""


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    below: float | None = None,
    positional: bool = False,
) -> Any:
    """Declare one option of a command: its default, its help text and its range."""
    return field(
        default=default,
        metadata={"help": help, "at_least": at_least, "below": below, "positional": positional},
    )


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add one argument per field of ``kind``; values that are not given stay out of the namespace."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint, many = _element(hints[item.name])
        help_text = item.metadata["help"].replace("%", "%%")
        shown = _shown(item.default)
        keywords: dict[str, Any] = {"help": help_text + (f" (default: {shown})" if shown else "")}
        if hint is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is Literal:
            keywords["choices"] = get_args(hint)
        else:
            keywords["metavar"] = hint.__name__.upper()
            keywords["type"] = hint
        if many:
            keywords["nargs"] = "+"
        if item.metadata["positional"]:
            # Without a type: argparse would convert the word that stands for "not given".
            parser.add_argument(item.name, nargs="?", default=argparse.SUPPRESS, help=keywords["help"])
        else:
            flag = "--" + item.name.replace("_", "-")
            parser.add_argument(flag, dest=item.name, default=argparse.SUPPRESS, **keywords)


def build_options(kind: type[Options], given: Mapping[str, Any], config: Path | None = None) -> Options:
    """Make the options from defaults, then the config file, then what the command line gave.

    Raises
    ------
    UsageError
        On an unreadable file, an unknown key, or a value of the wrong type or out of range.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for source, mapping in ((f"{config}: ", read_config(config) if config else {}), ("", given)):
        for key, value in mapping.items():
            name = str(key).replace("-", "_")
            if name not in hints:
                near = difflib.get_close_matches(name, hints, n=3, cutoff=0.5)
                hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(hints)}"
                raise UsageError(f"{source}unknown option {key!r}{hint}")
            values[name] = _convert(f"{source}{name}", value, hints[name])
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in values:
            _check_range(item.name, values[item.name], item.metadata)
    return kind(**values)


def read_config(path: Path) -> dict[str, Any]:
    """Read a flat mapping of options from a YAML, TOML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read config file {path}: {error}") from None
    if path.suffix.lower() == ".toml":
        data = _parse_toml(path, text)
    elif path.suffix.lower() in (".yaml", ".yml"):
        data = _parse_yaml(path, text)
    elif path.suffix.lower() == ".json":
        data = _parse_json(path, text)
    else:
        raise UsageError(f"config file must end in .yaml, .yml, .toml or .json, got {path.name!r}")
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected options as 'name: value', got a {type(data).__name__}")
    return data


def _parse_toml(path: Path, text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _parse_yaml(path: Path, text: str) -> Any:
    from .console import optional

    yaml = optional("yaml", "reading a YAML file")
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None


def _element(hint: Any) -> tuple[Any, bool]:
    """``X | None`` -> X; ``tuple[X, ...]`` -> (X, many)."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def _shown(default: Any) -> str:
    if default is MISSING or default is None or isinstance(default, bool):
        return ""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _convert(name: str, value: Any, hint: Any) -> Any:
    if value is None:
        if type(None) in get_args(hint):
            return None
        raise UsageError(f"{name} must not be empty")
    element, many = _element(hint)
    if many:
        parts = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(_convert(name, part, element) for part in parts)
    if get_origin(element) is Literal:
        if value not in get_args(element):
            raise UsageError(f"{name} must be one of {', '.join(map(str, get_args(element)))}; got {value!r}")
        return value
    if element is Path and isinstance(value, (str, Path)):
        return Path(value)
    if element is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 1e-3 as a string
    if not isinstance(value, element) or (isinstance(value, bool) and element is not bool):
        raise UsageError(f"{name} must be of type {element.__name__}, got {value!r}")
    return value


def _check_range(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    for part in value if isinstance(value, tuple) else (value,):
        low, high = limits["at_least"], limits["below"]
        if low is not None and part is not None and not part >= low:
            raise UsageError(f"{name} must be at least {low:g}, got {part}")
        if high is not None and part is not None and not part < high:
            raise UsageError(f"{name} must be below {high:g}, got {part}")
