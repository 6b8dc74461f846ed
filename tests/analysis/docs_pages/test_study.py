"""docs/study.md and the README say what the stored runs say."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from analysis.__main__ import parser
from analysis.docs_pages.methods_text import methods
from analysis.docs_pages.study import (
    CONTROL,
    FIELD,
    IMAGES,
    LAYOUTS,
    PAGE,
    RATES,
    SECOND,
    STORE,
    STUDIES,
    TABLES,
    TEMPLATES,
    Material,
    fill,
    main,
)
from analysis.docs_pages.study_facts import arms
from analysis.reading.stored import read_stores
from analysis.report import sections_of
from elalora.errors import UserError
from experiments.config.study import Correction, FamilyConfig
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import result, write_run


@pytest.fixture(autouse=True, scope="module")
def made_up_files() -> None:
    """These runs are not made up: their files are read and checked."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material([CHECKOUT / STORE], None)


@pytest.mark.slow
@pytest.mark.parametrize("page", TEMPLATES)
def test_the_page_is_what_the_runs_make_of_the_template(page: str, material: Material) -> None:
    made = fill((CHECKOUT / TEMPLATES[page]).read_text(encoding="utf-8"), material, page=page)
    assert made == (CHECKOUT / page).read_text(encoding="utf-8"), "type python -m analysis.docs_pages.study"


def test_every_figure_of_the_page_is_there(material: Material) -> None:
    texts = [(CHECKOUT / page).read_text(encoding="utf-8") for page in TEMPLATES]
    named = re.findall(rf"\((?:\.\./)?{IMAGES}/([\w.-]+)\)", "\n".join(texts))
    assert named and {path.name for path in (CHECKOUT / "docs" / IMAGES).iterdir()} == set(named)


def test_the_learning_rates_on_the_page_of_studies_are_those_of_the_study() -> None:
    page = (CHECKOUT / TABLES).read_text(encoding="utf-8")
    header = re.search(r"^\| Task \| Arm \|(.+)\|$", page, re.M)
    assert header
    rates = [float(rate) for rate in header[1].split("|")]
    tuned: dict[tuple[str, str, float], float] = {}
    for task, arm, cells in re.findall(r"^\| (vader\S+) \| (\S+) \|((?:[ *.\d]*\|)+)$", page, re.M):
        for rate, cell in zip(rates, cells.split("|")[:-1], strict=True):
            if cell.strip():
                tuned[task.replace("\\", ""), arm.replace("\\", ""), rate] = float(cell.strip(" *"))
    studies = (CHECKOUT / "docs" / "studies.md").read_text(encoding="utf-8")
    arms, compared = ("lora", "svd_lora", "elalora", "adalora"), 0
    for rate, cells in re.findall(r"^\| ([\d.]+e-\d) \|(.+)\|$", studies, re.M):
        near = min(rates, key=lambda other: abs(other - float(rate)))
        for arm, cell in zip(arms, cells.split("|"), strict=True):
            scores = re.findall(r"\d+\.\d", cell)
            for task, score in zip(("vader_movies", "vader_tweets_binary"), scores, strict=False):
                assert abs(tuned[task, arm, near] - float(score)) <= 0.0501, (task, arm, rate)
                compared += 1
    assert compared == 2 * (4 + 4 + 3 + 1)


def test_the_lead_that_the_readme_names_is_the_page_s() -> None:
    page, readme = (" ".join((CHECKOUT / path).read_text(encoding="utf-8").split()) for path in (PAGE, "README.md"))
    lead = re.search(r"\| SVD-LoRA \| 10 \| \+([\d.]+) \\\[\+([\d.]+), \+([\d.]+)\\\]", page)
    assert lead and f"by {lead[1]} points (95 % interval {lead[2]} to {lead[3]})" in readme


def test_the_control_that_the_readme_names_is_the_page_s() -> None:
    page, readme = (" ".join((CHECKOUT / path).read_text(encoding="utf-8").split()) for path in (CONTROL, "README.md"))
    row = re.search(
        r"\| uniform \| params \| 8 \| −([\d.]+) \\\[−([\d.]+), −([\d.]+)\\\] \|[^|]*\|[^|]*\| ([\d.]+)\\\* \|", page
    )
    assert row
    points, high, low = (f"{float(number):.1f}" for number in row.groups()[:3])
    assert f"uniform ranks scored {points} points lower (95 % interval {low} to {high}, corrected p {row[4]})" in readme


def test_the_commands_under_tracing_a_number_make_the_tables_of_the_page() -> None:
    """The main study's tables are against ElaLoRA, which is not the default of the command."""
    pages = (PAGE, CONTROL, RATES, LAYOUTS, FIELD, SECOND)
    texts = [(CHECKOUT / page).read_text(encoding="utf-8").split("## Tracing a number")[1] for page in pages]
    lines = [line for text in texts for line in text.splitlines() if "-m analysis analysis" in line]
    words = [shlex.split(line.split("#")[0])[3:] for line in lines]
    given = {args.study: args.baseline for args in map(parser().parse_args, words)}
    assert given == {name: wanted.baseline for name, wanted in STUDIES.items() if not wanted.together} and all(
        parser().parse_args(w).stores == [STORE] for w in words
    )


def test_the_page_says_what_its_losses_and_rates_allow() -> None:
    page = " ".join((CHECKOUT / PAGE).read_text(encoding="utf-8").split())
    for claim in ("form and stability", "inside the noise of two tuning seeds", "This part is exploratory"):
        assert claim in page
    tables = (CHECKOUT / TABLES).read_text(encoding="utf-8")
    row = re.search(r"\| vader\\_movies \| ElaLoRA \(paper\) \| 0.009 \| 0.693 \|.*?16 of 27 \|", tables)
    assert row, "the moves that were decided while the loss was above guessing"


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_the_template_has_no_number_of_a_result(template: str) -> None:
    """A score, a p-value or an interval has decimals; prose may count seeds and name settings (5.2e-3)."""
    lines = (CHECKOUT / template).read_text(encoding="utf-8").splitlines()
    prose = [line for line in lines if not line.startswith("{")]
    decimals = re.findall(r"(?<![\w.])\d+\.\d+(?!\d|e-\d)", "\n".join(prose))
    assert set(decimals) <= {"0.05", "0.5"}, decimals


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        # these two make a whole report
        pytest.param(
            "{table offline_main nothing}", "has no table nothing; it has confirmatory", marks=pytest.mark.slow
        ),
        pytest.param("{lines offline_main nothing}", "has no section 'nothing'", marks=pytest.mark.slow),
        ("{score offline_main x}", "allowed: table, rows, notes, lines"),
        ("{runs pilot}", "study pilot is not on the page"),
    ],
)
def test_a_mark_that_names_nothing_is_told(material: Material, mark: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fill(f"above\n{mark}\nbelow", material)


@pytest.mark.slow
def test_a_store_without_the_study_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").mkdir()
    assert main([str(tmp_path / "store")]) == 2
    assert "no finished run of study offline_main" in capsys.readouterr().err


SVD = ["svd_lora", "elalora", "adalora"]


def rates(runs: pd.DataFrame, warmup: float) -> tuple[pd.Series, pd.Series]:
    """Mean score and number of unstable runs by task, method and learning rate, with a warm-up of this length."""
    runs = runs.assign(rate=[float(tree["trainer"]["lr"]) for tree in runs["settings"]])
    runs = runs[[float(tree["trainer"]["warmup"]) == warmup for tree in runs["settings"]]]
    groups = runs.assign(wild=["unstable" in flags for flags in runs["flags"]]).groupby(["task", "method", "rate"])
    return groups["score"].mean(), groups["wild"].sum()


def leads(mean: pd.Series) -> list[float]:
    """Points by which LoRA at its best rate is above each form with singular values at its own, task by task."""
    return [
        mean[task, "lora"].max() - mean[task, method].max()
        for task in ("vader_movies", "vader_tweets_binary") for method in SVD
    ]  # fmt: skip


@pytest.mark.slow
def test_the_rates_page_says_what_the_runs_say(material: Material) -> None:
    mean, wild = rates(material.stored("lr_curve").runs, 0.06)
    for task in ("vader_movies", "vader_tweets_binary"):
        lora = mean[task, "lora"]
        assert lora.idxmax() == 1e-3 and lora[5.2e-3] < 70
        for method in SVD:
            forms = mean[task, method]
            assert forms.idxmax() in (5.2e-3, 9e-3)
            assert not wild[task, method][[3e-3, 5.2e-3]].any()
            assert 0.9 <= forms.max() - forms[3e-3] <= 1.6
        for rate in (3e-3, 5.2e-3, 9e-3):
            assert max(mean[task, m, rate] for m in SVD) - min(mean[task, m, rate] for m in SVD) < 1
    assert all(wild["vader_movies", method, 9e-3] > 1 for method in SVD)
    assert 1.5 <= min(leads(mean)) and max(leads(mean)) <= 2.5
    longer, calm = rates(material.stored("lr_curve").runs, 48.0)
    for task in ("vader_movies", "vader_tweets_binary"):
        assert longer[task, "lora"][5.2e-3] < 70
        for method in ("lora", *SVD):
            assert longer[task, method].max() - mean[task, method].max() < 1 / 3
        for rate in (3e-3, 5.2e-3, 9e-3):
            assert max(longer[task, m, rate] for m in SVD) - min(longer[task, m, rate] for m in SVD) < 1.5
    assert not any(calm["vader_movies", method, 9e-3] for method in SVD)
    assert 0.3 < min(leads(longer)) < 0.5 and 2 < max(leads(longer)) <= 2.5
    assert 0.9 < mean["vader_tweets_binary", "lora"].max() - longer["vader_tweets_binary", "lora"].max() < 1.1
    readme = " ".join((CHECKOUT / "README.md").read_text(encoding="utf-8").split())
    short, long = (f"{min(found):.1f} to {max(found):.1f}" for found in (leads(mean), leads(longer)))
    assert f"all of them by {short} points at each form's own best learning rate ({long} with a long" in readme


def test_the_layouts_page_says_what_its_table_says() -> None:
    page = (CHECKOUT / LAYOUTS).read_text(encoding="utf-8")
    row = r"^\| vader\\_movies \| (\S+) \| 5 \| ([\d.]+) ± ([\d.]+) \| ([+−][\d.]+) \\\[([+−][\d.]+), ([+−][\d.]+)\\\]"
    found = {
        match[1].replace("\\", ""): [float(match[i].replace("−", "-")) for i in range(2, 7)]
        for match in re.finditer(row, page, re.M)
    }
    assert len(found) == 13
    assert (
        max(found, key=lambda arm: found[arm][0]) == "bottom_heavy"
        and 0.5 < found["bottom_heavy"][3] < found["bottom_heavy"][4]
    )
    assert {arm for arm, (*_, low, high) in found.items() if low > 0 or high < 0} == {"bottom_heavy", "attention_heavy"}
    assert found["attention_heavy"][3] < 0.1
    assert found["gelora"] == found["gelora_layout"]
    assert min(found, key=lambda arm: found[arm][0]) == "eva" and found["elalora"][0] < found["elalora_layout"][0]


def cells_of(text: str, first: str) -> list[list[str]]:
    """The rows of the tables whose first cell is this, without the marks of Markdown."""
    rows = [line.strip()[1:-1].split("|") for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip().replace("\\", "").replace("−", "-") for cell in row] for row in rows]


def interval(cell: str) -> tuple[float, float, float]:
    """-0.39 [-1.13, +0.36] as three numbers."""
    mean, low, high = map(float, re.findall(r"[+-]\d+\.\d+", cell))
    return mean, low, high


def test_the_second_study_says_what_its_tables_say() -> None:
    page = (CHECKOUT / SECOND).read_text(encoding="utf-8")
    arms = [row for row in cells_of(page, "digits") if len(row) == 7 and row[1] in ("r2", "r4", "r8")]
    gaps = {(row[1], row[2]): interval(row[5]) for row in arms if row[5]}
    assert len(gaps) == 8
    for mean, low, high in gaps.values():  # within about half a point, and neither different nor equal
        assert abs(mean) < 0.6 and low < 0 < high and max(-low, high) > 0.5
    lengths = [row for row in cells_of(page, "digits") if len(row) == 12 and row[2] == "clean"]
    centre = [row for row in lengths if row[3] == "r4"]
    assert [row[5] for row in centre] == ["160", "800", "4,000"]
    for column in (7, 8):  # both score higher the longer they train
        assert [row[column] for row in centre] == sorted(row[column] for row in centre)
    widths = [high - low for _, low, high in [*gaps.values(), *(interval(row[9]) for row in lengths)]]
    assert all(low < 0 < high for _, low, high in (interval(row[9]) for row in lengths))
    assert 1 < min(widths) and max(widths) < 4
    for method, most in (("AdaLoRA (peft)", 0.001), ("ElaLoRA (paper)", 0.001), ("FlexLoRA (paper)†", 1.0)):
        (row,) = [row for row in cells_of(page.split("\nOn movies:\n")[0], method) if row[1] == "12"]
        assert (row[4] == "< 0.001") == (most == 0.001)
    own, fixed = (
        [row for row in cells_of(page, "ElaLoRA (paper)") if row[1] == where]
        for where in ("ElaLoRA (paper)", "SVD-LoRA")
    )
    assert [row[2] for row in own] == [row[2] for row in fixed] == ["loss", "calibrated loss", "score"]
    assert all(0.4 < interval(row[4])[0] < 0.6 and row[5] == "< 0.001" for row in own + fixed)
    rates = {row[4]: row[10] for row in cells_of(page, "digits") if row[1] == "tune"}
    assert rates["LoRA"].startswith("0.0052:")
    assert all(best.startswith("0.027:") for method, best in rates.items() if method != "LoRA") and len(rates) == 5
    movies = {row[4]: row[10] for row in cells_of(page, r"vader\_movies") if row[1] == "tune"}
    assert movies["LoRA"].startswith("0.001:") and len(movies) == 5
    assert all(best.startswith("0.0052:") for method, best in movies.items() if method != "LoRA")
    pairs = {row[4]: float(row[10].split(":")[0]) for row in cells_of(page, "stsb") if row[1] == "tune"}
    steps = {method: pairs[method] / float(best.split(":")[0]) for method, best in movies.items()}
    assert len(steps) == 5 and all(1.7 < ratio < 1.8 or method == "AdaLoRA (peft)" for method, ratio in steps.items())
    assert steps["AdaLoRA (peft)"] == 1


def test_the_second_study_says_of_movies_what_its_tables_say() -> None:
    page = " ".join((CHECKOUT / SECOND).read_text(encoding="utf-8").split())
    arms = [row for row in cells_of((CHECKOUT / SECOND).read_text(encoding="utf-8"), r"vader\_movies") if len(row) == 7]
    assert {row[3] for row in arms} == {"12"}
    at = {(row[2], row[1]): interval(row[5]) for row in arms if row[5]}
    for arm in (("elalora", "r2"), ("elalora", "r4"), ("elalora", "r8"), ("flexlora", "r4")):
        assert -0.5 < at[arm][1] < 0 < at[arm][2] < 0.5
    gaps = {arm: gap for (arm, budget), gap in at.items() if budget == "r4"}
    assert -0.7 < gaps["adalora"][1] < -0.5 and 0 < gaps["adalora"][2] < 0.5
    assert gaps["lora"][1] > 0.5
    check_agreement(page.split("On movies: ")[1], ada=(0.5, 0.7))


def check_agreement(text: str, ada: tuple[float, float]) -> None:
    """The first table of agreement in a text: AdaLoRA's seeds and ElaLoRA's agree, FlexLoRA's were not shown to."""
    for method, least, most in (("AdaLoRA (peft)", *ada), ("ElaLoRA (paper)", 0.3, 0.5), ("FlexLoRA (paper)†", 0, 0.2)):
        found = re.search(rf"\| {re.escape(method)} \| 12 \| ([\d.]+) \S+ \S+ \|[^|]*\| (\S+ ?\S*) \|", text)
        assert found and least < float(found[1]) < most
        assert (found[2] == r"\< 0.001") == (least > 0)


def test_the_second_study_says_of_pairs_of_sentences_what_its_tables_say() -> None:
    text = (CHECKOUT / SECOND).read_text(encoding="utf-8")
    arms = [row for row in cells_of(text, "stsb") if len(row) == 7 and row[1] == "r4"]
    gaps = {row[2]: interval(row[5]) for row in arms if row[5]}
    assert len(gaps) == 6 and all(low < 0 < high for _, low, high in gaps.values())
    widths = [high - low for _, low, high in gaps.values()]
    assert 0.99 < min(widths) and max(widths) < 2.5
    check_agreement(" ".join(text.split()).split("On STS-B: ")[1], ada=(0.4, 0.5))


def test_the_verdict_on_three_kinds_of_task_is_that_of_the_page_and_of_the_readme() -> None:
    text, readme = ((CHECKOUT / path).read_text(encoding="utf-8") for path in (SECOND, "README.md"))
    verdict = text.split("## The verdict on three kinds of task")[1].split("\n## ")[0]
    assert verdict.count("- No difference between ") == 6
    assert verdict.count("Equivalence within 0.5 points was not shown") == 6
    rows = [cells_of(verdict, contrast)[0] for contrast in re.findall(r"^\| (\w+ - [\w\\]+) \|", verdict, re.M)]
    assert len(rows) == 6 and rows[0][0] == "elalora - svd_lora"
    mean, low, high = interval(rows[0][3])
    assert -0.5 < low < mean < 0 < high < 0.5
    stated = f"{-mean:.2f} points over twelve seeds, 95 % interval −{-low:.2f} to {high:.2f}"
    assert f"(ElaLoRA −{stated}, corrected p {float(rows[0][5]):.2f})" in " ".join(readme.split())
    settle = [int(row[8].split()[0]) for row in rows]
    assert f"would take {min(settle)} to {max(settle)} seeds, by comparison" in " ".join(text.split())
    layout, lora = ([float(cell) for cell in row[11:14]] for row in (rows[1], rows[3]))  # digits, stsb, movies
    assert rows[1][0] == "elalora - transplant" and layout[1] > 0 > max(layout[0], layout[2])
    assert rows[3][0] == "elalora - lora" and interval(rows[3][3])[2] < 0 and max(lora) < 0


def test_the_page_of_the_field_names_the_arms_at_the_edge_of_their_grids() -> None:
    page = (CHECKOUT / FIELD).read_text(encoding="utf-8")
    rates = cells_of(page, "Task")[0][2:]
    edges = set()
    for _, arm, *scores in (row for row in cells_of(page, r"vader\_movies") if len(row) == 2 + len(rates)):
        tried = [i for i, score in enumerate(scores) if score]
        best = next(i for i in tried if scores[i].startswith("**"))
        assert len(tried) == 3
        edges |= {arm} if best in (tried[0], tried[-1]) else set()
    (named,) = re.findall(r"at the edge of its grid: ([^.]+)\.", " ".join(page.split()))
    assert set(re.findall(r"`(\w+)`", named)) == edges


def test_the_page_of_the_field_says_what_its_table_says() -> None:
    page = (CHECKOUT / PAGE).read_text(encoding="utf-8").split("## How do the other methods")[1].split("\n## ")[0]
    rows = {row[1]: row for row in cells_of(page, r"vader\_movies")}
    assert len(rows) == 12 and {row[2] for row in rows.values()} == {"3"}
    gaps = {arm: interval(row[4]) for arm, row in rows.items() if row[4]}
    means = {arm: mean for arm, (mean, *_) in gaps.items()}
    assert not any(low > 0 for _, low, _ in gaps.values())
    assert all(abs(means[arm]) < 1 for arm in ("prilora", "beamlora", "sora"))
    svd = [means[arm] for arm in ("svd_lora", "elalora", "adalora", "flexlora", "increlora")]
    assert -2 < min(svd) and max(svd) < -1 and max(svd) - min(svd) < 0.5
    lowest = sorted(means, key=lambda arm: means[arm])[:3]
    assert set(lowest) == {"l1ra", "dora_dynamic", "dylora"} and all(-3.1 < means[arm] < -2.5 for arm in lowest)
    assert float(rows["l1ra"][3].split(" ± ")[1]) > 2 * max(
        float(row[3].split(" ± ")[1]) for arm, row in rows.items() if arm != "l1ra"
    )
    widths = sorted(high - low for _, low, high in gaps.values())
    assert widths[0] > 0.5 and widths[len(widths) // 2] > 2


def test_the_verdict_on_digits_is_that_of_the_pages_and_of_the_readme() -> None:
    page, readme = (" ".join((CHECKOUT / path).read_text(encoding="utf-8").split()) for path in (SECOND, "README.md"))
    for other in ("SVD-LoRA", "LoRA"):
        found = re.search(
            rf"No difference between ElaLoRA \(paper\) and {other} was shown at r4: (\S+) points, mean over 1 task of "
            r"the paired difference, 95 % t interval \[(\S+), (\S+)\] over seeds .*?, 96 seeds, .*? Equivalence within "
            r"0.5 points was not shown",
            page,
        )
        assert found, other
        mean, low, high = (float(number.replace("−", "-")) for number in found.groups())
        assert low < 0 < mean < 0.5 < high < 0.6  # the intervals end near half a point
        if other == "SVD-LoRA":
            assert f"(+{mean:.2f} points, 95 % interval −{-low:.2f} to {high:.2f})" in readme


def test_every_arm_of_a_study_stands_beside_the_one_that_is_named() -> None:
    scores = {"plain": [80.0, 81.0, 82.0], "heavy": [81.0, 81.0, 85.0]}
    rows = [(f"{arm}{seed}", arm, seed, score) for arm, of_arm in scores.items() for seed, score in enumerate(of_arm)]
    runs = pd.DataFrame(rows, columns=["id", "arm", "seed", "score"]).drop(columns="arm")
    runs = runs.assign(task="movies", params_final=100.0, budget="r4")
    cells = pd.DataFrame({"part": "main", "arm": [row[1] for row in rows], "id": [row[0] for row in rows]})
    stored: Any = SimpleNamespace(runs=runs, declared=SimpleNamespace(cells=cells))
    low, high = t.interval(0.95, 2, loc=4 / 3, scale=np.std([1, 0, 3], ddof=1) / np.sqrt(3))
    text = arms(stored, "plain")
    assert "| movies | plain | 3 | 81.00 ± 1.00 |  | 100 |" in text
    assert f"| movies | heavy | 3 | 82.33 ± 2.31 | +1.33 \\[−{-low:.2f}, +{high:.2f}\\] | 100 |" in text
    with pytest.raises(UserError, match="the study has no run of even; it has heavy, plain"):
        arms(stored, "even")
    more = runs[runs["id"] != "heavy0"].assign(id=lambda frame: "b" + frame["id"], budget="r16")
    stored.runs = pd.concat([runs, more])
    stored.declared.cells = pd.concat([cells, cells.assign(id="b" + cells["id"])])
    text = arms(stored, "plain")
    assert text.index("| movies | r4 | heavy | 3 |") < text.index("| movies | r16 | heavy | 2 |")


def test_the_sections_that_a_page_takes_are_sections_of_the_report(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0))
    stored = read_stores([tmp_path])
    titles = {name: [s.title for s in sections_of(stored, None, [name])] for name in ("rank_maps", "run_list")}
    assert titles["run_list"] == ["Single runs"] and not set(titles["run_list"]) & set(titles["rank_maps"])
    for name in {name for wanted in STUDIES.values() for name in wanted.sections}:
        assert callable(import_module(f"analysis.sections.{name}").sections)


def test_the_paragraph_for_a_paper_says_what_was_declared_and_what_ran() -> None:
    def stored(family: FamilyConfig | None, ids: list[str]) -> Any:
        rows = [
            row | {"settings": {"trainer": {"lr": rate, "batch_size": 16, "batches": "random", "schedule": "linear"}}}
            for row, rate in zip(RUNS, (1e-3, 1e-3, 3e-3, 3e-3), strict=True)
        ]
        tried = [{"id": f"t{rate}", "seed": 2, "settings": {"trainer": {"lr": rate}}} for rate in (1e-3, 3e-3, 9e-3)]
        cells = pd.DataFrame({"part": "main", "id": ids, "arm": ["plain", "plain", "heavy", "heavy"], "task": "movies"})
        tuned = pd.DataFrame({"part": "tuning", "id": [run["id"] for run in tried], "arm": "heavy", "task": "movies"})
        study = SimpleNamespace(name="made", family=family, cells=pd.concat([cells, tuned]))
        runs, tuning = pd.DataFrame(rows), pd.DataFrame(tried)
        return SimpleNamespace(declared=study, runs=runs, tuning=tuning, known=pd.concat([runs, tuning]))

    family = FamilyConfig("main", ["heavy - plain"], ["r4"], m=1, correction=Correction.maxt, margin=0.5)
    text = methods(stored(family, list("abcd")))
    for part in (
        "We compare Heavy and LoRA at the rank budget r4 (100 to 120 adapter parameters)",
        "on movies (1,000 training and 200 reported items, accuracy; minilm)",
        "160 steps of 16 items, drawn at random,",
        "tuned task by task on held-out training items with 1 other seed;",
        "of those tried: heavy 0.003 of 0.001 to 0.009; plain 0.001.",
        "There are 2 seeds (0 to 1);",
        "the differences heavy - plain:",
        "step-down maxT over 1 comparison at 0.05.",
        "lies within 0.5 points.",
    ):
        assert part in text
    with pytest.raises(UserError, match="declares no comparisons"):
        methods(stored(None, list("abcd")))
    with pytest.raises(UserError, match="has no run of part main yet"):
        methods(stored(family, [""] * 4))


SIDES = (("a", "lora", 0, 100), ("b", "lora", 1, 100), ("c", "Heavy", 0, 120), ("d", "Heavy", 1, 120))
RUNS = [
    {
        "id": run, "method": "lora", "label": label, "variant": "", "reconstructed": False, "task": "movies",
        "seed": seed, "model": "minilm", "budget": "r4", "metric": "accuracy", "steps": 160, "train_items": 1000,
        "report_items": 200, "params_final": size,
    }
    for run, label, seed, size in SIDES
]  # fmt: skip
