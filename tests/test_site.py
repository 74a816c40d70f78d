"""The documentation site is built strictly, offline, and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import amc

ROOT = Path(__file__).parents[1]
LOADING = {  # attribute by which a tag makes the browser load something
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src",
    "object": "data", "link": "href",
}  # fmt: skip


class Page(HTMLParser):
    """Collects the addresses that a page loads, and those that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.links = list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [given.get(LOADING[tag]) or ""] if tag in LOADING else []
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style") or "")
        self.links += [given.get("href") or ""] if tag == "a" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a network: any connection is an error."""
    folder = tmp_path_factory.mktemp("site")

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"the build connects to {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        patch.setattr(socket.socket, "connect", refuse)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 20
    elsewhere = re.compile(r"^(\w+:)?//")
    assert [(path.name, load) for path, page in pages.items() for load in page.loads if elsewhere.match(load)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")]*", styles) == []


def test_a_load_from_elsewhere_would_be_seen() -> None:
    page = Page('<script src="https://a/b.js"></script><div style="background: url(//c/d.png)"></div><a href="//e">')
    assert (page.loads, page.links) == (["https://a/b.js", "//c/d.png"], ["//e"])


def test_no_page_asks_for_a_diagram(site: Path) -> None:
    """The theme's script would load the package that draws diagrams from elsewhere, for pages that have one."""
    assert [path.name for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text(encoding="utf-8")] == []


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    broken = []
    for path in site.rglob("*.html"):
        for link in Page(path.read_text(encoding="utf-8")).links:
            target = link.partition("#")[0]
            if target and not re.match(r"^\w+:|^/", target) and not (path.parent / target).exists():
                broken.append((path.name, link))
    assert broken == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: amc\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(amc.__all__) - {"__version__"})
    shown = (site / "reference.html").read_text(encoding="utf-8")
    assert [name for name in listed if f'id="amc.{name}"' not in shown] == []


def test_the_reference_explains_parameters_and_fields(site: Path) -> None:
    text = (site / "reference.html").read_text(encoding="utf-8")
    assert "<li><strong>calibration</strong>: batches of training images" in text
    help_of_a_field = "Policies to score, at most."
    assert help_of_a_field in text
    assert "By parameter name, bool of its shape, True = kept" in text


def test_the_pages_that_the_readme_links_to_are_pages_of_the_site(site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(docs/([\w/-]+)\.md", readme))
    assert len(linked) > 10
    assert [name for name in sorted(linked) if not (site / f"{name}.html").exists()] == []
