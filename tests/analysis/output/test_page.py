"""The report page: whole by itself, harmless with a stranger's store, and working in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Browser, installed
from drawn import catch, cut_off
from PIL import Image

from analysis.reading.runs import load_runs
from analysis.report import report
from analysis.sections import cost_figures
from analysis.sections.comparison import comparison
from analysis.sections.cost import cost_table, points_of, suite_points
from analysis.sections.cost_figures import draw_pareto, pareto_front
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


def test_the_page_loads_nothing_and_runs_only_its_own_script(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    tags = Tags(text).found
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "form", "base")]
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "src" not in attributes or str(attributes["src"]).startswith("data:image/svg+xml;base64,")
        assert re.fullmatch(r"#s\d+|[\w.+-]+\.(md|csv|tex|svg|png)", attributes.get("href") or "#s0")
    (policy,) = [str(a["content"]) for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:") and "script-src 'sha256-" in policy


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
    assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 100)")
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


# -- cost --------------------------------------------------------------------------------------------------


def test_the_pareto_front_is_what_no_point_beats() -> None:
    cost, score = [1, 2, 2, 3, 4, 4], [5, 7, 6, 7, 9, 9]
    assert pareto_front(cost, score).tolist() == [True, True, False, False, True, True]
    assert pareto_front([], []).tolist() == []
    with pytest.raises(ValueError, match="are needed twice"):
        pareto_front([1], [1, 2])


def test_the_cost_table_holds_start_peak_and_end_and_leaves_the_unknown_empty(tmp_path: Path) -> None:
    write_run(tmp_path, result("adalora", 0, 80.0, counts__initial__rank_sum=72, counts__peak__rank_sum=75))
    table = cost_table(comparison(load_runs(tmp_path)))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["Rank sum"], row["Parameters"]) == ("72 → 48 (peak 75)", "64,512")
    assert list(table.frame.loc[0, ["rank_sum_initial", "rank_sum_peak", "rank_sum_final"]]) == [72, 75, 48]
    assert (row["Step ms"], row["Memory MiB"], row["Adapter KiB"], row["Head"]) == ("500", "", "977", "148,610")


def test_a_pareto_figure_is_drawn_once_per_task_and_nothing_is_cut_off(tmp_path: Path) -> None:
    from matplotlib.image import imread

    for number, method in enumerate(("lora", "svd_lora", "adalora", "sora")):
        for seed in (0, 1):
            changes = {"counts__final__params": 1000 * (number + 1), "cost__peak_memory_mib": 100.0 + number}
            write_run(
                tmp_path, result(method, seed, 80.0 + number + seed, label="a long name of an arm " * 2, **changes)
            )
    (place, arms), *rest = points_of(comparison(load_runs(tmp_path)))
    assert place["task"] == "vader_movies" and not rest and len(arms) == 4
    paths = draw_pareto(arms, tmp_path / "pareto", "a title " * 30, "a source")
    pixels = imread(paths[0])[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert edge.min() == 1.0


def test_fifteen_arms_fit_a_pareto_figure_and_an_arm_looks_alike_in_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, cost_figures)
    names = [f"ElaLoRA, random moves + D1 + D2 (paper) [trainer.lr=0.{i:03}]" for i in range(15)]
    rows = [{"shown": n, "budget": "r4", "metric": "accuracy", "score_mean": 80.0 + i} for i, n in enumerate(names)]
    arms = pd.DataFrame(rows).assign(score_sd=1.0, peak_memory_mib=None, adapter_bytes=None, step_seconds_median=None)
    arms["params_final"] = range(1000, 1015)
    looks = cost_figures.styles(names)
    for number, some in enumerate((arms, arms.iloc[::-1].iloc[:3])):
        draw_pareto(some, tmp_path / str(number), "a title", "a source", looks)
    found = []
    for figure in made:
        assert cut_off(figure) == []
        (legend,) = figure.legends
        legend_box = legend.get_window_extent()
        assert legend_box.y1 <= figure.bbox.height and legend_box.y0 >= 0
        handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
        found.append({" ".join(text.get_text().split()): (h.get_color(), h.get_marker()) for text, h in handles})
    assert all(found[0][name] == look for name, look in found[1].items())
    assert len(set(found[0].values())) == 17  # the arms, the budget and the line


def test_a_suite_s_points_are_means_over_the_tasks_and_seeds_that_every_arm_has(tmp_path: Path) -> None:
    for task, level, step in (("rte", 60.0, 0.2), ("cola", 50.0, 0.4), ("mrpc", 90.0, 9.0)):
        for seed in (0, 1):
            for method, budget, gain in (("lora", "r2", 0.0), ("lora", "r4", 2.0), ("sora", "r2", 1.0)):
                if (method, task) == ("sora", "mrpc"):
                    continue
                cost = {"cost__step_seconds_median": step, "counts__final__params": 1000 * int(budget[1])}
                named = {"task": task, "identity__task": {"name": task}, "budget": budget, "identity__budget": budget}
                write_run(tmp_path, result(method, seed, level + gain + 4 * seed, **named, **cost))
    alone = {"task": "rte", "identity__task": {"name": "rte"}, "budget": "r2", "identity__budget": "r2"}
    write_run(tmp_path, result("lora", 2, 10.0, **alone))
    write_run(tmp_path, result("lora", 0, 10.0))  # of another suite
    for flags, task in ((["off budget"], "rte"), ([], "cola")):
        named = {"task": task, "identity__task": {"name": task}, "budget": "r4", "identity__budget": "r4"}
        write_run(tmp_path, result("sora", 0, 99.0, flags=flags, **named))
    [(place, arms, tasks, off)] = suite_points(load_runs(tmp_path))
    assert (place["suite"], tasks, off) == ("glue", ["cola", "rte"], ["SoRA at r4"])
    shown = arms.set_index(["shown", "budget"]).sort_index()
    assert shown["score_mean"].to_dict() == {("LoRA", "r2"): 57.0, ("LoRA", "r4"): 59.0, ("SoRA", "r2"): 58.0}
    assert shown["score_sd"].tolist() == pytest.approx([8**0.5] * 3)  # seeds 2 above and 2 below, each over both tasks
    assert shown["step_seconds_median"].tolist() == pytest.approx([0.3] * 3)
    assert shown["params_final"].tolist() == [2000, 4000, 2000] and set(shown["n"]) == {2}
    paths = draw_pareto(arms, tmp_path / "pareto")
    text = paths[1].read_text()
    assert "Mean score over 2 tasks (points)" in text and "budget r2" in text and "budget r4" in text
