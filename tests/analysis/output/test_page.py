"""The report page: whole by itself, harmless with a stranger's store, and working in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, installed
from PIL import Image

from analysis.output.page import gathered
from analysis.reading.stored import read_stores
from analysis.report import report
from analysis.sections.run_list import run_list
from experiments.standins.stored_runs import moved_run, result, write_run

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two arms and of one with a hostile name."""
    root = tmp_path_factory.mktemp("page")
    for seed, (lora, ela) in enumerate(((80.0, 81.0), (82.0, 9.5))):
        write_run(root / "runs", result("lora", seed, lora))
        moved_run(root / "runs", seed, ela)
    write_run(root / "runs", result("svd_lora", 0, 100.0, label=EVIL, data__citation=EVIL))
    report([root / "runs"], root / "out", quiet=True)
    return root / "out"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    tags = Tags(text).found
    assert {str(a.get("type", "code")) for tag, a in tags if tag == "script"} == {"code", "application/json"}
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "form", "base")]
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "src" not in attributes or str(attributes["src"]).startswith("data:image/svg+xml;base64,")
        assert re.fullmatch(r"#main|#s\d+|[\w.+-]+\.(md|csv|tex|svg|png)", attributes.get("href") or "#s0")
    (policy,) = [str(a["content"]) for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.partition("script-src ")[2].split(";")[0].split() == [f"'sha256-{digest}'" for digest in digests]


def test_every_link_leads_to_a_file_of_the_folder(folder: Path) -> None:
    links = [a.get("href") or "" for tag, a in Tags((folder / "index.html").read_text()).found if tag == "a"]
    files = [link for link in links if not link.startswith("#")]
    assert files and all((folder / link).is_file() for link in files)


def test_names_are_escaped(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    assert "<script>document" not in text and "<img src=x" not in text
    assert "&lt;script&gt;document.title=" in text


@pytest.fixture(scope="module")
def browser(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    if installed() is None:
        pytest.skip("no chromium is installed")
    with Browser(folder / "index.html", tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def column(browser: Browser, number: int, title: str) -> list[str]:
    """The visible cells of a table's column."""
    return browser.run(
        f"""(() => {{ const table = document.querySelectorAll("table")[{number}];
        const at = [...table.querySelectorAll("th")].findIndex((th) => th.textContent.trim() === {title!r});
        const rows = [...table.tBodies[0].rows].filter((row) => row.offsetParent !== null);
        return rows.map((row) => row.cells[at].textContent) }})()"""
    )


def click_head(browser: Browser, title: str) -> None:
    browser.run(
        f'[...document.querySelectorAll("table")[0].querySelectorAll("th button")]'
        f".find((b) => b.textContent === {title!r}).click()"
    )


def test_in_a_browser_columns_sort_by_number_and_back(browser: Browser) -> None:
    click_head(browser, "Accuracy")
    up = [float(text.split()[0]) for text in column(browser, 0, "Accuracy")]
    click_head(browser, "Accuracy")
    down = [float(text.split()[0]) for text in column(browser, 0, "Accuracy")]
    assert up == sorted(up) and down == sorted(up, reverse=True) and max(up) == 100.0 and len(up) == 4
    click_head(browser, "Method")
    assert column(browser, 0, "Method")[1:] == ["Constant answer", "ElaLoRA (paper)", "LoRA"]


def test_in_a_browser_rows_are_filtered_by_words_and_by_choice(browser: Browser) -> None:
    browser.run('(() => { search.value = "elalora"; search.dispatchEvent(new Event("input")) })()')
    assert column(browser, 0, "Method") == ["ElaLoRA (paper)"]
    assert browser.run('document.querySelector(".count").textContent') == "1 of 4 rows"
    browser.run('document.getElementById("clear").click()')
    assert len(column(browser, 0, "Method")) == 4
    browser.run(
        """(() => { const choice = document.querySelector('select[data-column="Method"]');
        choice.value = "LoRA"; choice.dispatchEvent(new Event("change")) })()"""
    )
    assert column(browser, 0, "Method") == ["LoRA"]
    browser.run('document.getElementById("clear").click()')


def test_in_a_browser_figures_zoom_and_are_drawn(browser: Browser) -> None:
    browser.run("[...document.images].forEach((i) => (i.loading = 'eager'))")
    until = time.monotonic() + 20
    while not browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 100)"):
        assert time.monotonic() < until
    width = 'document.querySelector("figure img").getBoundingClientRect().width'
    before = browser.run(width)
    browser.run('document.querySelector("[data-zoom=in]").click()')
    assert browser.run(width) == pytest.approx(1.5 * before, rel=0.02)
    browser.run('document.querySelector("[data-zoom=reset]").click()')
    assert browser.run(width) == pytest.approx(before, rel=0.02)


def test_in_a_browser_nothing_is_asked_for_no_error_is_logged_and_no_stranger_s_script_ran(browser: Browser) -> None:
    assert browser.run("document.title") == "elalora: results"
    assert browser.complaints() == []
    shown = np.asarray(Image.open(BytesIO(browser.screenshot())).convert("L"))
    assert shown.shape[1] == 1400
    assert shown.min() < 80 and (shown > 240).mean() > 0.5  # dark text on a light page


SIZES = [(1400, 900, "light"), (1400, 900, "dark"), (820, 1100, "light"), (390, 844, "light"), (390, 844, "dark")]


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_in_a_browser_the_page_fits_every_width_and_follows_the_colour_scheme(
    browser: Browser, width: int, height: int, scheme: str
) -> None:
    browser.emulate(width, height, scheme)
    browser.run("location.reload()")
    time.sleep(0.5)
    assert browser.run("document.scrollingElement.scrollWidth") <= width
    browser.run("scrollTo(0, 3000)")
    bar = browser.run('(r => [r.width, r.height])(document.getElementById("menu").getBoundingClientRect())')
    assert bar[0] < 0.25 * width if width > 1200 else bar[1] < 0.1 * height
    shown = np.asarray(Image.open(BytesIO(browser.screenshot())).convert("L"))
    assert (np.median(shown) > 200) == (scheme == "light")
    if width < 600:  # the score of a row is on the screen without scrolling sideways
        edge = browser.run(
            """(() => { const table = document.querySelector("table");
            const at = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === "Accuracy");
            return table.rows[1].cells[at].getBoundingClientRect().right })()"""
        )
        assert edge <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser: Browser, scheme: str) -> None:
    package = find_spec("axe_playwright_python")
    assert package and package.origin, "make setup installs axe-core"
    browser.emulate(1400, 900, scheme)
    browser.run((Path(package.origin).parent / "axe.min.js").read_text() + "; 1")
    browser.run("(window.found = null, axe.run().then((r) => (window.found = r.violations)), 1)")
    until = time.monotonic() + 60
    while (
        found := browser.run("found && found.map((v) => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)])")
    ) is None:
        assert time.monotonic() < until, "axe has not ended"
        time.sleep(0.2)
    assert found == []


def test_in_a_browser_a_mark_shows_the_notes_that_explain_it(browser: Browser) -> None:
    note = """(() => { const mark = document.querySelector(".mark"); mark.click();
    const shown = document.getElementById(mark.getAttribute("popovertarget"));
    const result = [mark.textContent, shown.matches(":popover-open"), shown.textContent]; shown.hidePopover();
    return result })()"""
    sign, opened, text = browser.run(note)
    assert opened and text.startswith(sign) and "parameters differ" in text


def test_in_a_browser_parameters_sort_by_their_end(browser: Browser) -> None:
    click_head(browser, "Parameters")
    shown = [text for text in column(browser, 0, "Parameters") if text]
    ends = [int(re.sub(r"[^0-9]", "", text.split("→")[-1].split("(")[0])) for text in shown]
    assert ends == sorted(ends) and any("→" in text for text in shown)


def test_in_a_browser_the_rows_shown_become_a_csv_file_without_formulas(browser: Browser) -> None:
    browser.run(
        """(() => { window.saved = null; URL.createObjectURL = (blob) => { blob.text().then((t) => (window.saved = t));
        return "#s0" }; search.value = "lora"; search.dispatchEvent(new Event("input"));
        document.querySelector("[data-csv]").click(); document.getElementById("clear").click() })()"""
    )
    until = time.monotonic() + 10
    while (text := browser.run("saved")) is None:
        assert time.monotonic() < until
    rows = text.lstrip("\ufeff").splitlines()
    assert rows[0].startswith("Method,n,Accuracy") and len(rows) == 4 - 1
    assert not [cell for row in rows for cell in row.split(",") if re.match(r"[=+@]", cell)]


def test_notes_that_say_the_same_of_several_places_are_one() -> None:
    notes = [
        "cola, r2: one seed is missing.",
        "Scores are points.",
        "rte, r2: one seed is missing.",
        "Scores are points.",
    ]
    assert gathered(notes) == ["cola, r2; rte, r2: one seed is missing.", "Scores are points."]


def test_every_run_has_a_row_and_one_that_stopped_has_the_command_that_continues_it(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("lora", 0, 80.0))
    stopped = write_run(tmp_path / "runs", result("lora", 1, 80.0))
    (stopped / "result.json").unlink()
    (stopped / "status.json").write_text(
        '{"state": "preempted", "error": "SIGINT after step 47", "failure": "preempted"}'
    )
    (stopped / "config.yaml").write_text("overrides:\n- method=lora\n- seed=1\n- data.root=/etc\n")
    stored = read_stores([tmp_path / "runs"])
    table = run_list(stored.runs, stored.unfinished)
    assert table.columns == ["Method", "Seed", "Score", "State", "Run", "Command"]
    assert [row[:4] for row in table.rows] == [
        ["lora-r4", "1", "", "preempted: SIGINT after step 47"], ["LoRA", "0", "80.00", "done"]
    ]  # fmt: skip
    assert [row[-1] for row in table.rows] == [f"python run.py method=lora store.root={tmp_path}/runs seed=1", ""]
