"""Every code block of the documentation and of the README runs; commands parse; links lead somewhere."""

from __future__ import annotations

import doctest
import importlib.util
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
)
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.M | re.S)
# What a block may be: run here, parsed here, or a directive of the page builder.
LANGUAGES = {"python", "pycon", "console"}


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name != "README.md"]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for number, block in enumerate(blocks(page, "python")):
        if page.stem == "cpp_numpy":
            from ala_metric import native_info

            if not native_info().available:
                pytest.skip(f"native: {native_info().reason}")
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "pycon")], ids=name_of)
def test_sessions_say_what_the_page_says(page: Path) -> None:
    torch.manual_seed(0)
    text = "\n".join(blocks(page, "pycon"))
    session = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(session, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language.startswith("{"):
            assert language in ("{toctree}", "{eval-rst}", "{literalinclude}", "{include}"), text
        else:
            assert language in LANGUAGES, f"a block of kind {language!r} is not run by a test:\n{text}"


def commands() -> list[str]:
    """Every command line, and every inline mention of our command, wherever it stands."""
    found = []
    for page in PAGES:
        lines = "\n".join(blocks(page, "console"))
        found += re.findall(r"^\$ (.*?)(?:\s{2,}#.*)?$", lines, re.M)
        found += [
            text
            for text in re.findall(r"`([^`\n]+)`", prose(page))
            if re.match(r"(ala-metric|make) \w", text)
        ]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command: str) -> None:
    from ala_metric.cli.main import make_parser

    words = command.split()
    while words and ("=" in words[0] or words[0] in ("torchrun", "--nproc-per-node", "8")):
        words.pop(0)
    program, *arguments = words
    if program.endswith("ala-metric"):
        make_parser().parse_args(arguments)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M), command
    elif program == "-m" and arguments[0] == "ala_metric.cli":
        make_parser().parse_args(arguments[1:])
    elif program.endswith("python"):
        assert program == "python" or program == ".venv/bin/python"
        if arguments[:2] == ["-m", "benchmarks"]:
            place = ROOT / "benchmarks" / arguments[2]
            assert place.is_dir() or place.with_suffix(".py").is_file(), command
        elif arguments[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in arguments[2:] if "/" in word)
        else:
            assert (ROOT / arguments[0]).is_file(), command
    elif (ROOT / program).is_file():
        pass  # a script of this repository
    else:
        assert program in ("pip", "cmake", "build/consumer", "pre-commit", ".venv/bin/ruff", "apt-get"), (
            command
        )


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for index in (DOCS / "index.md", DOCS / "api/index.md"):
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", index.read_text(encoding="utf-8"), re.M | re.S):
            listed |= {index.parent / f"{line}.md" for line in tree.split("\n") if re.match(r"[a-z]", line)}
    assert listed | {DOCS / "index.md"} == set(DOCS.rglob("*.md"))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Files and anchors; addresses of the web are read, not visited. `make docs` checks the pages, too."""
    check = load_checker()
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            assert check.problem(page, "a", "href", link, {}) is None, link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link} in {page.name}"
        if anchor:
            assert anchor in anchors(target), f"{link} in {page.name}"


def load_checker() -> Any:
    spec = importlib.util.spec_from_file_location("check_links", DOCS / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checker_finds_what_is_broken(tmp_path: Path) -> None:
    page = """<a href="other.html#here">ok</a> <a href="https://example.org/x">ok</a>
        <a href="#top" id="top">ok</a>
        <a href="gone.html">1</a> <a href="other.html#gone">2</a> <a href="htp://example.org">3</a>
        <a href="https://exa mple.org">4</a> <script src="https://example.org/s.js"></script>
        <code class="xref py py-func"><span>nothing()</span></code>"""
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "other.html").write_text('<h1 id="here">Here</h1>')
    found = load_checker().check(tmp_path)
    assert len(found) == 6, found
    assert load_checker().check(tmp_path / "empty")


def test_the_figure_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "distances.svg"
    monkeypatch.setattr(sys, "argv", ["draw_distances.py", str(file)])
    runpy.run_path(str(DOCS / "draw_distances.py"), run_name="__main__")
    assert file.stat().st_size > 10_000
    assert (DOCS / "distances.svg").is_file()


def test_the_continuous_integration_runs_what_exists() -> None:
    yaml = pytest.importorskip("yaml")
    steps = []
    for file in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            steps += [step["run"] for step in job["steps"] if "run" in step]
    targets = {step.split()[1] for step in steps if step.startswith("make ")}
    assert targets == {"docs", "wheel"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert (ROOT / ".ci/run").is_file()
    forms = [yaml.safe_load(file.read_text()) for file in (ROOT / ".github/ISSUE_TEMPLATE").glob("bug.yml")]
    (doctor,) = [part for part in forms[0]["body"] if part["id"] == "doctor"]
    assert doctor["validations"]["required"]
