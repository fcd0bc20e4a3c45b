"""Check every link of the built pages: python docs/check_links.py FOLDER.

Internal links must lead to a file and an anchor that exist. External ones are read, not visited: scheme and
host must make sense. References that found nothing, and what a page would load from another host, are errors.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = re.compile(r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$")
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Page(HTMLParser):
    """Anchors and links of one page, and references that became no link."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.unresolved: list[str] = []
        self._depth, self._open = 0, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        self.links += [(tag, name, value) for name in ("href", "src") if (value := found.get(name))]
        self._depth += tag == "a"
        if tag == "code" and self._depth == 0 and "xref py " in (found.get("class") or ""):
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "a"
        self._open = self._open and tag != "code"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.unresolved.append(data)


def problem(page: Path, tag: str, name: str, link: str, pages: dict[Path, Page]) -> str | None:
    """What is wrong with one link, or None."""
    if link != link.strip() or " " in link:
        return "white space in the address"
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return None
    if parts.scheme or parts.netloc:
        if (tag, name) in LOADED:
            return "loaded from another host"
        if parts.scheme not in ("http", "https") or not HOST.match(parts.netloc):
            return "not an address of the web"
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        return "no such anchor"
    return None


def check(folder: Path) -> list[str]:
    """All that is wrong with the pages below ``folder``."""
    folder = folder.resolve()
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder} has no pages"]
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        found += [f"{where}: reference to nothing: {name}" for name in page.unresolved]
        for tag, name, link in page.links:
            if why := problem(path, tag, name, link, pages):
                found.append(f"{where}: {link}: {why}")
    return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "every link leads somewhere")
    sys.exit(bool(problems))
