"""The commands of the benchmarks: what they write by default, and when they fail."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import (
    classification_speed,
    evaluation,
    kernels,
    kill_race,
    measure,
    memory_bank,
    small_batches,
    threads,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    "benchmark", [classification_speed, evaluation, kernels, memory_bank, small_batches, threads]
)
def test_rows_are_written_only_where_a_file_is_named(
    benchmark: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Path | None] = []

    class Stop(Exception):
        pass

    def parsed(parser: object, arguments: object = None) -> None:
        options = original(parser, arguments)
        given.append(options.csv)
        raise Stop

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for arguments in ([], ["--csv", str(tmp_path / "rows.csv")]):
        with pytest.raises(Stop):
            benchmark.main(arguments)  # type: ignore[attr-defined]
    assert given == [None, tmp_path / "rows.csv"]


def test_no_file_no_rows(tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.csv")}
    measure.write_csv(None, [])
    assert {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.csv")} == before
    measure.write_csv(tmp_path / "new" / "rows.csv", [])
    assert (tmp_path / "new" / "rows.csv").read_text().startswith("benchmark,case,provider")


def test_too_few_kills_fail(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"kills": 5, "races_with_other_numbers": 0, "one_process_equals_two": True}
    assert kill_race.verdict(good, 5) == 0
    assert capsys.readouterr().err == ""
    assert kill_race.verdict(good, 6) == 1
    assert "only 5 of 6 kills" in capsys.readouterr().err
    assert kill_race.verdict({**good, "races_with_other_numbers": 2}, 5) == 1
    assert "2 races ended with other numbers" in capsys.readouterr().err
    assert kill_race.verdict({**good, "one_process_equals_two": False}, 5) == 1
    assert kill_race.verdict({"races_with_other_numbers": 0, "one_process_equals_two": True}, 1) == 1


def test_the_time_for_kills_starts_after_the_undisturbed_races(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clock that the undisturbed races move by an hour leaves the two minutes for kills as they are."""
    now = [0.0]
    deadlines: list[float] = []

    def undisturbed(folder: Path, size: int) -> dict[str, object]:
        now[0] += 3600.0
        return {"steps_of_all_arms": 1}

    def disturbed(folder: Path, wanted: int, draw: object, deadline: float) -> dict[str, int]:
        deadlines.append(deadline)
        folder.mkdir()
        (folder / "result.json").write_text('{"steps_of_all_arms": 1}')
        (folder / "lives0").write_text("1\n")
        return {"kills": wanted}

    monkeypatch.setattr(kill_race, "run_undisturbed", undisturbed)
    monkeypatch.setattr(kill_race, "kill_until_done", disturbed)
    monkeypatch.setattr(kill_race.time, "monotonic", lambda: now[0])
    out = tmp_path / "report.json"
    assert kill_race.main(["--forks", "--kills", "3", "--minutes", "2", "--out", str(out)]) == 0
    assert deadlines == [7200.0 + 120.0]
