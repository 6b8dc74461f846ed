"""The site of docs/ builds without a warning, and every link on it, and in the README, leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
LINKS = {"a": "href", "img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """Names of anchors, links, and what a browser fetches of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        where = given.get(LINKS.get(tag, ""))
        if where and not (tag == "link" and given.get("rel") not in ("stylesheet", "icon")):
            self.links.append(where)
            if tag != "a":
                self.fetched.append(where)


def build(place: Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = build(place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_is_there_and_nothing_comes_from_another_host(site: Path):
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(pages) > 30
    wrong, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched:
                    wrong.append(f"{path.name} fetches {link}")
                continue
            if path.name == "404.html":  # its links begin at the root of the server
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            checked += 1
            if not target.is_file():
                wrong.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{path.name}: {link} has no such anchor")
    assert not wrong, "\n".join(wrong)
    assert checked > 1000


@pytest.mark.slow
def test_every_link_of_the_readme_leads_somewhere(site: Path):
    for name in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            assert (ROOT / parts.path).exists(), f"{name}: {link}"
            if parts.fragment:
                page = site / Path(parts.path).relative_to("docs").with_suffix(".html")
                assert parts.fragment in Page(page).anchors, f"{name}: {link}"


@pytest.mark.slow
def test_the_reference_shows_the_public_names_with_their_arguments(site: Path):
    import elalora

    text = {name: (site / "api" / f"{name}.html").read_text(encoding="utf-8") for name in ("elalora", "baselines")}
    for name in elalora.__all__:
        assert re.search(rf'id="elalora\.\w+\.{name}"', text["elalora"]), name
    for word in ("rank1_growth", "not yet trained", "Raises"):
        assert word in text["elalora"]
    from baselines.registry import METHODS

    for where in METHODS.values():
        module, _, name = where.partition(":")
        assert f'id="{module}.{name}"' in text[module.partition(".")[0]], where


@pytest.mark.parametrize("mistake", ["[x](nowhere.md)", "[x](faq.md#nothing-there)"])
def test_a_broken_link_or_anchor_stops_the_build(mistake: str, tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n[good](faq.md#how-many)\n\n{mistake}\n")
    (tmp_path / "docs" / "faq.md").write_text("# Questions\n\n## How many\n")
    whole = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(whole[: whole.index("\nplugins:")] + "\nnav: [index.md, faq.md]\n")
    done = build(tmp_path / "site", tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and mistake[4:-1] in said and "Aborted with 1 warning" in said
