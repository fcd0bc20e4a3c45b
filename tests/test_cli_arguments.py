"""Options come from defaults, a config file and the command line, in this order; wrong ones are refused."""

# ruff: noqa: RUF009  (`option` returns a dataclasses.field)

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from ala_metric.cli.arguments import UsageError, add_options, build_options, option
from ala_metric.cli.main import COMMANDS, main


@dataclass(frozen=True)
class Sample:
    """A sample."""

    count: int = option(3, "a count of 100 %", at_least=1)
    rate: float = option(0.5, "a rate", at_least=0, below=1)
    kind: Literal["a", "b"] = option("a", "a kind")
    path: Path | None = option(None, "a path")
    ks: tuple[int, ...] = option((1, 10), "some numbers", at_least=1)
    fast: bool = option(False, "a switch")


def parse(*argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    return vars(parser.parse_args(argv))


def test_defaults_config_and_command_line_in_this_order(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("count: 5\nrate: 0\nks: [2, 3]\npath: x/y\nfast: true\n")
    got = build_options(Sample, parse("--count", "7", "--no-fast"), config)
    assert got == Sample(count=7, rate=0.0, kind="a", path=Path("x/y"), ks=(2, 3), fast=False)
    assert isinstance(got.rate, float)
    assert build_options(Sample, parse()) == Sample()


def test_yaml_numbers_that_are_strings_and_lists_of_one(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("rate: 1e-3\nks: 7\n")
    assert build_options(Sample, {}, config) == Sample(rate=1e-3, ks=(7,))


def test_toml_says_the_same(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('count = 5\nkind = "b"\nks = [4]\n')
    assert build_options(Sample, {}, config) == Sample(count=5, kind="b", ks=(4,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuont: 5", "unknown option 'cuont'; did you mean count?"),
        ("zzz: 5", "known are count, rate, kind, path, ks, fast"),
        ("count: five", "count must be of type int, got 'five'"),
        ("count: true", "count must be of type int, got True"),
        ("count: 1.5", "count must be of type int, got 1.5"),
        ("count:", "count must not be empty"),
        ("count: 0", "count must be at least 1, got 0"),
        ("rate: 1", "rate must be below 1, got 1.0"),
        ("rate: .nan", "rate must be at least 0, got nan"),
        ("kind: c", "kind must be one of a, b; got 'c'"),
        ("ks: five", "ks must be of type int, got 'five'"),
        ("rate: fast", "rate must be of type float, got 'fast'"),
        ("ks: [1, 0]", "ks must be at least 1, got 0"),
        ("fast: 1", "fast must be of type bool, got 1"),
        ("- 1", "expected options as 'name: value', got a list"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(UsageError) as error:
        build_options(Sample, {}, config)
    assert said in str(error.value)


def test_a_missing_or_foreign_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read config file .*none\.yaml"):
        build_options(Sample, {}, tmp_path / "none.yaml")
    foreign = tmp_path / "c.ini"
    foreign.write_text("")
    with pytest.raises(UsageError, match=r"must end in \.yaml, \.yml, \.toml or \.json"):
        build_options(Sample, {}, foreign)
    broken = tmp_path / "c.toml"
    broken.write_text("a = ")
    with pytest.raises(UsageError, match="is not valid TOML"):
        build_options(Sample, {}, broken)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented_typed_and_has_a_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = COMMANDS[command]
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert kind() == kind()
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for item in fields(kind):
        assert item.metadata["help"] in said or item.metadata["help"].split()[0] in said
        flag = item.name if item.metadata["positional"] else "--" + item.name.replace("_", "-")
        assert flag in said or flag.upper() in said


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nothing"],
        ["train", "--bogus"],
        ["train", "--steps", "x"],
        ["train", "--step", "5"],
        ["train", "--steps", "0"],
    ],
)
def test_bad_usage_exits_2_without_a_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.strip()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from ala_metric import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_config_reaches_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("jsn: true\n")
    assert main(["doctor", "--config", str(config)]) == 2
    assert "did you mean json?" in capsys.readouterr().err
