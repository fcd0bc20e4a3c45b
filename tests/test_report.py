"""The demo's page: complete, self-contained, honest about the outcome, and free of errors in a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ala_metric.cli.report import render
from ala_metric.cli.summary import Row, compare, split_pairs, verdict

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def made_up_results(seeds: int = 3, parameters: int = 10) -> dict[str, Any]:
    """Results as the demo collects them, of random numbers."""
    rng = np.random.default_rng(0)

    def history(adaptive: bool) -> list[dict[str, Any]]:
        phi, records = rng.random(parameters), []
        for step in range(45, 900, 45):
            reward = float(rng.integers(-1, 2)) if adaptive and step > 45 else None
            records.append(
                {"step": step, "metric": float(rng.random()), "reward": reward, "phi": phi.tolist()}
            )
            phi = np.clip(phi + rng.choice([-0.1, 0, 0.1], parameters), 0, 1)
        return records

    runs = [
        {
            "mode": mode,
            "seed": seed,
            "recall_at_k": {k: float(rng.uniform(0.5, 0.9)) for k in (1, 10, 100)},
            "r_precision": 0.4,
            "map_at_r": 0.3,
            "steps": 900,
            "validations": 19,
            "train_seconds": 30.0,
            "validation_seconds": 2.5,
            "history": history(mode == "paper"),
            "neighbours": rng.integers(0, 12, (4, 5)).tolist(),
        }
        for seed in range(seeds)
        for mode in ("fixed", "paper")
    ]
    return {
        "runs": runs,
        "images": {i: rng.integers(0, 255, (28, 28)).astype(np.uint8) for i in range(12)},
        "labels": {i: i % 3 for i in range(12)},
        "queries": [0, 1, 2, 3],
        "phi_names": [f"phi_{i + 1}" for i in range(parameters)],
        "phi_start": [0.5] * parameters,
        "metric": "Recall@1",
        "introduction": "Two networks & <one> question.",
        "conditions": {"command": "ala-metric demo", "seeds": "0 1 2"},
    }


class Page(HTMLParser):
    """Collects tags and attributes, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up_results())


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^'\")]*)", page))


def test_same_results_make_the_same_bytes(page: str) -> None:
    assert render(made_up_results()) == page


def test_the_table_has_the_means_the_deviations_and_every_difference(page: str) -> None:
    results = made_up_results()
    fixed = [run["recall_at_k"][10] for run in results["runs"] if run["mode"] == "fixed"]
    adaptive = [run["recall_at_k"][10] for run in results["runs"] if run["mode"] == "paper"]
    gains = 100 * (np.array(adaptive) - np.array(fixed))
    text = html.unescape(page)
    assert f"<td>{100 * np.mean(fixed):.1f} ± {100 * np.std(fixed, ddof=1):.1f}</td>" in text
    assert f"<td>{100 * np.mean(adaptive):.1f} ± {100 * np.std(adaptive, ddof=1):.1f}</td>" in text
    assert " ".join(f"{gain:+.1f}".replace("-", "−") for gain in gains) in text
    assert f"<td>{gains.mean():+.1f}</td>".replace("-", "−") in text


def test_every_neighbour_is_framed_right_or_wrong(page: str) -> None:
    results = made_up_results()
    right = wrong = 0
    for run in results["runs"][:2]:
        for query, found in zip(results["queries"], run["neighbours"]):
            hits = sum(results["labels"][i] == results["labels"][query] for i in found)
            right, wrong = right + hits, wrong + len(found) - hits
    kinds = [attributes.get("class") for tag, attributes in Page(page).tags if tag == "div"]
    assert kinds.count("cell right") == page.count("✓</span>") == right
    assert kinds.count("cell wrong") == page.count("✗</span>") == wrong
    assert kinds.count("cell first") == 2 * len(results["queries"])
    assert all(attributes.get("alt") for tag, attributes in Page(page).tags if tag == "img")


def test_text_of_the_results_is_escaped(page: str) -> None:
    assert "Two networks &amp; &lt;one&gt; question." in page
    assert "<one>" not in page


def test_pictures_follow_the_theme(page: str) -> None:
    assert page.count("<svg role=") == 3
    assert "stroke: var(--adaptive)" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("parameters", [1, 2, 3, 10])
def test_any_number_of_parameters_and_a_single_seed(parameters: int) -> None:
    page = render(made_up_results(seeds=1, parameters=parameters))
    assert Page(page).open == []
    assert all(f">phi_{i + 1}<" in page for i in range(parameters))
    assert "use more seeds" in page


def test_runs_without_an_action_still_make_a_page() -> None:
    results = made_up_results()
    for run in results["runs"]:
        run["history"] = []
    page = render(results)
    assert Page(page).open == []
    assert "No action was rewarded yet." in page


@pytest.mark.parametrize(
    ("fixed", "adaptive", "said"),
    [
        ((0.5, 0.5, 0.5), (0.6, 0.6, 0.6), "higher Recall@1 with all 3 seeds (+10.0 points on average)"),
        ((0.5, 0.5, 0.5), (0.6, 0.6, 0.6), "25 % of cases"),
        ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4), "did not help here: Recall@1 was lower with all 3 seeds (−10.0"),
        ((0.5, 0.5, 0.5), (0.9, 0.4, 0.6), "did not help here: Recall@1 was higher with 2 of 3 seeds (+13.3"),
        (
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.6),
            "did not help here: Recall@1 was higher with 1 of 3 seeds (+3.3",
        ),
        ((0.5, 0.5), (0.5, 0.5), "did not help here: Recall@1 was the same with all 2 seeds"),
        ((0.5,), (0.9,), "One seed says nothing"),
    ],
)
def test_the_verdict_is_no_stronger_than_the_values(
    fixed: tuple[float, ...], adaptive: tuple[float, ...], said: str
) -> None:
    assert said in verdict(Row("Recall@1", fixed, adaptive))


def test_runs_without_a_partner_are_refused() -> None:
    runs = made_up_results()["runs"]
    for broken in (runs[:-1], runs[1:], [], [*runs, runs[0]]):
        with pytest.raises(ValueError, match="one fixed and one adaptive run"):
            split_pairs(broken)
    assert [row.name for row in compare(runs)] == [
        "Recall@1",
        "Recall@10",
        "Recall@100",
        "R-precision",
        "MAP@R",
    ]


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed to open the page in")
def test_a_browser_opens_the_page_without_errors(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    shown, errors = open_in_browser(tmp_path / "report.html", tmp_path / "profile")
    assert not errors
    assert "How this page was made" in shown
    assert shown.count("<img") == page.count("<img")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed to open the page in")
def test_an_error_in_the_page_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>undefined_function()</script><img src='missing.png'>")
    _, errors = open_in_browser(tmp_path / "bad.html", tmp_path / "profile")
    assert any("undefined_function" in line for line in errors)


def open_in_browser(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document as the browser built it, and what it wrote to its console."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
