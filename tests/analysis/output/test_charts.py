"""The interactive charts of the page, in a real browser, and the library that draws them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from pathlib import Path

import pytest
from browser import Browser, installed
from large_store import build

from analysis.docs_pages.family import FAMILY
from analysis.output.chart import Chart
from analysis.output.looks import FAMILIES, Looks
from analysis.report import report
from baselines.registry import METHODS
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import moved_run, result, write_run

STEADY = [0.68, 0.60, 0.50, 0.40, 0.35, 0.30, 0.28, 0.25, 0.22, 0.20]


def test_the_library_is_the_published_one() -> None:
    named = dict(re.findall(r"^(analysis/\S+)\n(?:.*\n)*?.*sha256 (\w{64})", (CHECKOUT / "NOTICE").read_text(), re.M))
    assert set(named) == {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("analysis/output/vendor/*.js")}
    for path, digest in named.items():
        assert hashlib.sha256((CHECKOUT / path).read_bytes()).hexdigest() == digest
    assert len(list(CHECKOUT.glob("analysis/output/vendor/*.LICENSE"))) == len(named)


def test_data_of_a_chart_cannot_end_their_element_and_hold_no_number_that_json_lacks() -> None:
    text = Chart("lines", "", {"name": "</script><script>alert(1)", "values": [math.nan, 1.0, 0.123456789]}).json
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><script>alert(1)", "values": [None, 1, 0.12346]}


def test_every_method_has_a_family_and_arms_of_one_family_differ() -> None:
    known = [method for methods in FAMILIES.values() for method in methods]
    assert sorted(known) == sorted(METHODS) and len(set(known)) == len(known)
    for methods in FAMILY.values():  # the picture of the methods has a finer division of the same
        assert len({family for family, of in FAMILIES.items() if set(of) & set(methods)}) == 1
    looks = Looks()
    assert len({looks.of(f"LoRA {k}", "lora")[:2] for k in range(12)}) == 12
    assert looks.of("LoRA 0", "lora") == looks.of("LoRA 0", "lora")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """The page of two arms on three seeds, at two rates more on LoRA's side."""
    if installed() is None:
        pytest.skip("no chromium is installed")
    root = tmp_path_factory.mktemp("charts")
    for seed, (lora, ela) in enumerate(((80.0, 81.0), (82.0, 84.0), (84.0, 84.5))):
        more = {"cost__step_seconds_median": 0.7}
        folders = [write_run(root / "runs", result("lora", seed, lora)), moved_run(root / "runs", seed, ela, **more)]
        for rate in (3e-4, 9e-3):
            trainer = {"lr": rate, "max_steps": 100}
            folders.append(write_run(root / "runs", result("lora", seed, lora - 5, identity__trainer=trainer)))
        for folder in folders:
            lines = [
                json.dumps({"step": 9 + 10 * i, "split": "train", "metric": "loss", "value": loss + seed / 50})
                for i, loss in enumerate(STEADY)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(lines))
    report([root / "runs"], root / "out", quiet=True, with_figures=False)
    with Browser(root / "out/index.html", tmp_path_factory.mktemp("profile")) as opened:
        opened.run("drawings.forEach(open)")
        yield opened


def figure(kind: str) -> str:
    return f'document.querySelector("figure[data-kind={kind}]")'


def values(browser: Browser, kind: str) -> list[list[str]]:
    """The rows of a chart's table."""
    browser.run(f"{figure(kind)}.querySelector('details.values').open = true")
    code = f"[...{figure(kind)}.querySelectorAll('.values tr')].map((tr) => [...tr.cells].map((td) => td.textContent))"
    until = time.monotonic() + 10
    while not (rows := browser.run(code)):
        assert time.monotonic() < until, "the table stays empty"
    return rows


@pytest.mark.parametrize("kind", ["rank_map", "lines", "points", "forest"])
def test_every_kind_is_drawn_named_and_has_its_values_as_a_table(browser: Browser, kind: str) -> None:
    assert browser.run(f"{figure(kind)}.querySelectorAll('.drawing [role=img][aria-label] svg').length") >= 1
    head, *rows = values(browser, kind)
    assert len(rows) >= 1 and all(len(row) == len(head) for row in rows)


def test_every_tick_of_a_learning_rate_has_its_label(browser: Browser) -> None:
    labels = """[...document.querySelectorAll("figure[data-kind=lines] [aria-label='x-axis tick label']")].map(
        (axis) => [...axis.querySelectorAll("text")].map((text) => text.textContent))"""
    assert ["3e−4", "1e−3", "9e−3"] in browser.run(labels)


def test_the_slider_follows_the_keyboard_and_moves_the_map_and_its_table(browser: Browser) -> None:
    end = values(browser, "rank_map")
    loser = [row for row in end if row[0] == "ElaLoRA (paper)" and row[2] == "0"][0]
    assert loser[end[0].index("ffn in")] == "2"
    browser.run(f"{figure('rank_map')}.querySelector('input[type=range]').focus()")
    browser.press("Home")
    start = values(browser, "rank_map")
    assert {cell for row in start[1:] for cell in row[3:]} == {"4"}
    spoken = browser.run(f"{figure('rank_map')}.querySelector('input').getAttribute('aria-valuetext')")
    assert spoken == "step 0, start"
    browser.press("End")
    assert values(browser, "rank_map") == end


def test_a_single_seed_can_be_chosen(browser: Browser) -> None:
    browser.run(
        f"""(() => {{ const choice = {figure("rank_map")}.querySelector("select"); choice.value = "seed 1";
        choice.dispatchEvent(new Event("change")) }})()"""
    )
    assert {row[1] for row in values(browser, "rank_map") if row[0] == "ElaLoRA (paper)"} == {"seed 1"}


def test_the_pointer_shows_the_values_of_every_seed(browser: Browser) -> None:
    dot = f'{figure("forest")}.querySelector("circle")'
    browser.run(f'{dot}.scrollIntoView({{block: "center"}})')
    place = f"(at => [at.x + at.width / 2, at.y + at.height / 2])({dot}.getBoundingClientRect())"
    browser.point(*browser.run(place))
    shown = browser.run(f"{figure('forest')}.querySelector('[aria-label=tip]').textContent")
    assert "+1.17" in shown and "3 seeds" in shown and "+1.00 +2.00 +0.50" in " ".join(shown.split())


def test_an_arm_is_hidden_by_its_key(browser: Browser) -> None:
    lines = f"{figure('lines')}.querySelectorAll('.drawing g[aria-label=line]').length"
    before = browser.run(lines)
    browser.run(f"{figure('lines')}.querySelector('.key').click()")
    assert browser.run(lines) < before
    assert browser.run(f"{figure('lines')}.querySelector('.key').getAttribute('aria-pressed')") == "false"
    browser.run(f"{figure('lines')}.querySelector('.key').click()")


def test_print_shows_every_chart_in_light_colours_without_controls(browser: Browser) -> None:
    browser.emulate(1000, 900, "dark", media="print")
    assert browser.run("getComputedStyle(document.querySelector('.controls label')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('.controls .key')).display") != "none"  # the legend
    assert browser.run("document.scrollingElement.scrollWidth") <= 1000
    assert browser.run("drawings.every((f) => f.querySelector('.drawing svg').getBoundingClientRect().height > 60)")
    ink = browser.run("getComputedStyle(document.documentElement).color")
    assert max(int(part) for part in re.findall(r"\d+", ink)) < 60
    browser.emulate(1400, 900, "light")
    assert browser.complaints() == []


@pytest.mark.slow
def test_a_chart_of_many_runs_leaves_single_seeds_out_and_the_page_stays_small(tmp_path: Path) -> None:
    runs = build(tmp_path / "runs", range(16))
    page = report([tmp_path / "runs"], tmp_path / "out", quiet=True, with_figures=False)[0]
    assert runs == 1280 and page.stat().st_size < 1_700_000
    charts = [
        json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', page.read_text())
    ]
    maps = [chart for chart in charts if "arms" in chart]
    assert not any(chart["whole"] for chart in maps)
    assert {seed for chart in maps for arm in chart["arms"] for seed in arm["courses"]} == {"mean of 16 seeds"}
