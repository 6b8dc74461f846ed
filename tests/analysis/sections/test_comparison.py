"""Tables and figures from stored runs, against numbers worked out by hand from a store written as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.output.figure import file_name
from analysis.output.writers import latex, print_table, to_csv, to_latex, to_markdown
from analysis.reading.rounds import load_rounds
from analysis.reading.runs import load_runs, select
from analysis.sections.comparison import comparison
from analysis.sections.papers import paper_tables
from analysis.sections.rank_maps import courses_of, draw_rank_maps, draw_trajectories, rank_map, trajectory
from elalora.errors import UserError
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import VADER, modules, moved_run, result, three_seeds, write_run

T_2 = 4.302652729911275  # 97.5 % point of Student's t with 2 degrees of freedom, from a printed table


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return three_seeds(tmp_path / "runs")


def row(root: Path, method: str, **changes: Any) -> dict[str, Any]:
    frame = comparison(load_runs(root), **changes).frame
    found = frame[frame["method"] == method]
    assert len(found) == 1
    return found.iloc[0].to_dict()


# -- the table's numbers -----------------------------------------------------------------------------------


def test_mean_and_spread_are_those_worked_out_by_hand(store: Path) -> None:
    lora, ela = row(store, "lora"), row(store, "elalora")
    assert (lora["n"], lora["score_mean"], lora["score_sd"]) == (3, 82.0, 2.0)
    assert ela["score_mean"] == pytest.approx(83.0) and ela["score_sd"] == pytest.approx(3**0.5)
    assert lora["score_low"] == pytest.approx(82 - T_2 * 2 / 3**0.5)


def test_the_paired_difference_is_that_of_the_common_seeds(store: Path) -> None:
    ela = row(store, "elalora")  # differences 1, 2, 0
    assert (ela["diff_n"], ela["diffs"]) == (3, "1.0000 2.0000 0.0000")
    assert ela["diff_mean"] == pytest.approx(1.0) and ela["diff_sd"] == pytest.approx(1.0)
    assert ela["diff_low"] == pytest.approx(1 - T_2 / 3**0.5)
    assert ela["diff_high"] == pytest.approx(1 + T_2 / 3**0.5)
    assert pd.isna(row(store, "lora")["diff_mean"])


def test_two_seeds_show_both_differences_and_no_interval(tmp_path: Path) -> None:
    for seed, (lora, ela) in enumerate(((80.0, 81.5), (82.0, 81.75))):
        write_run(tmp_path, result("lora", seed, lora))
        moved_run(tmp_path, seed, ela)
    table = comparison(load_runs(tmp_path))
    cells = dict(zip(table.columns, table.rows[-1], strict=True))
    assert cells["Δ to LoRA"] == "+1.50, −0.25"
    assert cells["Accuracy"] == "81.62 ± 0.18"  # sd of 81.5 and 81.75 is 0.25 / sqrt 2
    assert pd.isna(row(tmp_path, "elalora")["diff_low"])


def test_a_seed_without_counterpart_enters_the_mean_but_no_difference(store: Path) -> None:
    moved_run(store, 3, 99.0)
    ela = row(store, "elalora")
    assert (ela["n"], ela["diff_n"], ela["diff_mean"]) == (4, 3, pytest.approx(1.0))
    assert ela["score_mean"] == pytest.approx((81 + 84 + 84 + 99) / 4)
    table = comparison(load_runs(store))
    assert any(cell.endswith("(n=3)") for cell in table.rows[-1])
    assert any("1 seeds of ElaLoRA" in note for note in table.notes)


def test_a_collapsed_run_keeps_its_score_and_is_counted(store: Path) -> None:
    write_run(store, result("lora", 3, 50.0, flags=["collapsed"]))
    lora = row(store, "lora")
    assert (lora["collapsed"], lora["score_mean"]) == (1, pytest.approx((80 + 82 + 84 + 50) / 4))
    assert "collapsed 1/4" in to_markdown(comparison(load_runs(store)))


def test_the_constant_answer_has_a_row_of_its_own(store: Path) -> None:
    assert row(store, "majority")["score_mean"] == 50.6
    assert comparison(load_runs(store)).rows[0][:3] == ["Constant answer", "", "50.60"]


def test_costs_ranks_and_moves_are_in_the_row(store: Path) -> None:
    ela = row(store, "elalora")
    assert ela["rank_sum_final"] == 48
    assert ela["gross_share"] == pytest.approx(2 / 48)
    assert ela["step_seconds_median"] == 0.5
    assert ela["params_initial"] == 4 * 3 * (2 * 768 + 2 * 1920)


def test_a_peak_above_both_ends_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path, result("adalora", 0, 80.0, counts__initial__rank_sum=72, counts__peak__rank_sum=75))
    cells = comparison(load_runs(tmp_path)).rows[-1]
    assert "72 → 48 (peak 75)" in cells


@pytest.mark.parametrize(("factor", "flagged"), [(1.009, False), (1.011, True), (0.98, True)])
def test_arms_more_than_one_percent_apart_in_parameters_are_flagged(
    tmp_path: Path, factor: float, flagged: bool
) -> None:
    write_run(tmp_path, result("lora", 0, 80.0, counts__final__params=100_000))
    write_run(tmp_path, result("svd_lora", 0, 80.0, counts__final__params=round(100_000 * factor)))
    text = to_markdown(comparison(load_runs(tmp_path)))
    assert ("‡" in text) == flagged and ("final adapter parameters differ" in text) == flagged


def test_methods_without_a_budget_are_not_flagged_against_each_other(tmp_path: Path) -> None:
    write_run(tmp_path, result("full", 0, 80.0, budget=None, counts__final__params=0))
    write_run(tmp_path, result("bitfit", 0, 80.0, budget=None, counts__final__params=50))
    assert "‡" not in to_markdown(comparison(load_runs(tmp_path)))


# -- what must not be averaged -----------------------------------------------------------------------------


def test_runs_with_other_settings_get_rows_of_their_own_that_name_the_setting(store: Path) -> None:
    write_run(store, result("lora", 0, 70.0, identity__trainer__lr=0.01))
    table = comparison(load_runs(store))
    lora = [cells[0] for cells in table.rows if cells[0].startswith("LoRA")]
    assert lora == ["LoRA [trainer.lr=0.001]", "LoRA [trainer.lr=0.01]"]
    ela = table.frame[table.frame["method"] == "elalora"].iloc[0]
    assert ela["diff_mean"] == pytest.approx(1.0)  # paired with the arm trained alike
    assert any("trained alike" in note and "trainer.lr: 0.001, 0.01" in note for note in table.notes)


def test_arms_never_share_a_name_however_many_settings_it_takes(tmp_path: Path) -> None:
    knobs = [dict.fromkeys("abcdef", 0) | {"a": i, "b": i, "c": i, "d": i, "e": e} for i in (0, 1) for e in (0, 1)]
    for knob in knobs:
        write_run(tmp_path, result("lora", 0, 80.0, identity__method={"name": "lora", **knob}))
    names = comparison(load_runs(tmp_path)).frame["shown"].tolist()
    assert "LoRA [a=0, b=0, c=0, d=0, e=1]" in names and len(set(names)) == len(names) == 5


def test_a_cell_of_the_factorial_is_named_by_its_switches(tmp_path: Path) -> None:
    plain = {"name": "elalora", "variant": "paper", "importance": "sensitivity_uncertainty", "expansion": "pool"}
    for method in (plain, plain | {"D1": True}, plain | {"importance": "random", "expansion": "random", "D2": True}):
        write_run(tmp_path, result("elalora", 0, 80.0, identity__method=method))
    write_run(tmp_path, result("svd_lora", 0, 80.0, identity__method={"name": "svd_lora", "D1": True}))
    write_run(tmp_path, result("elalora", 0, 80.0, identity__method=plain | {"expansion": "random"}))
    write_run(tmp_path, result("elalora", 0, 80.0, identity__method=plain | {"importance": "random"}))
    assert set(comparison(load_runs(tmp_path)).frame["shown"]) - {"Constant answer"} == {
        "ElaLoRA (paper)", "ElaLoRA + D1 (paper)", "ElaLoRA, random moves + D2 (paper)", "SVD-LoRA + D1",
        "ElaLoRA, random moves (paper) [expansion=random]", "ElaLoRA, random moves (paper) [expansion=pool]",
    }  # fmt: skip


def test_protocols_stand_side_by_side_and_never_in_one_mean(store: Path) -> None:
    write_run(store, result("lora", 0, 90.0, protocol="paper_best", identity__protocol={"name": "paper_best"}))
    table = comparison(load_runs(store))
    assert "Protocol" in table.columns
    lora = table.frame[table.frame["method"] == "lora"].set_index("protocol")
    assert lora["score_mean"].to_dict() == {"clean": 82.0, "paper_best": 90.0}
    assert any(note.startswith("Protocol paper_best: as paper_last") for note in table.notes)


@pytest.mark.parametrize(("reading", "said"), [("last", "last checkpoint is shown"), ("best", "best evaluation on")])
def test_what_is_said_of_paper_best_depends_on_the_reading(tmp_path: Path, reading: str, said: str) -> None:
    whole = result("lora", 0, 90.0, task="rte", identity__task={"name": "rte"}, protocol="paper_best")
    last, count = whole["readings"]["last"], whole["counts"]["final"]
    whole["readings"]["best"] = {**last, "count": count, "ranks": whole["ranks"]["final"]}
    write_run(tmp_path, whole)
    runs = load_runs(tmp_path, reading=reading)
    tables = [comparison(runs), *paper_tables(runs).values()]
    assert len(tables) == 2
    for table in tables:
        (note,) = [note for note in table.notes if note.startswith("Protocol paper_best: ")]
        assert said in note and ("optimistic" in note) == (reading == "best")


def test_other_data_under_the_same_name_is_another_row_without_a_difference(store: Path) -> None:
    write_run(store, result("svd_lora", 0, 81.0, data__fingerprint="ffff"))
    table = comparison(load_runs(store))
    svd = table.frame[table.frame["method"] == "svd_lora"].iloc[0]
    assert pd.isna(svd["diff_mean"])
    assert any("different data" in note for note in table.notes)


def test_arms_of_other_length_have_no_difference_and_say_why(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0, identity__trainer__max_steps=40))
    moved_run(tmp_path, 0, 81.0)
    table = comparison(load_runs(tmp_path))
    assert not any(name.startswith("Δ") for name in table.columns)
    assert any("no baseline arm has the same data and settings" in note for note in table.notes)
    assert any("trainer.max_steps: " in note for note in table.notes)


def test_a_tuned_learning_rate_does_not_forbid_a_difference(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0, identity__trainer__lr=0.0005))
    moved_run(tmp_path, 0, 81.0)
    assert row(tmp_path, "elalora")["diff_mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("versions", {"torch": "2.4.0", "python": "3.11.7"}, "versions.torch: 2.13.0, 2.4.0"),
        ("commit", "fedcba9876543210", "commit: 0123456789, fedcba9876"),
        ("host", {"machine": "x86_64", "cpu": "a processor", "gpu": "a GPU"}, "host.gpu: null, a GPU"),
        ("host", {"machine": "x86_64", "cpu": "another one", "gpu": None}, "host.cpu: a processor, another one"),
        ("host", {"machine": "x86_64", "cpu": "a processor", "threads": 1}, "host.threads: 2, 1"),
        ("deterministic_algorithms", True, "deterministic_algorithms: false, true"),
        ("dirty", True, "1 of 2 runs came from a checkout with uncommitted changes"),
    ],
)
def test_other_versions_commits_and_hardware_are_noted(tmp_path: Path, part: str, value: Any, named: str) -> None:
    write_run(tmp_path, result("lora", 0, 80.0))
    write_run(tmp_path, result("svd_lora", 0, 80.0), **{part: value})
    assert any(named in note for note in comparison(load_runs(tmp_path)).notes)


def test_a_reconstruction_says_so_in_every_form(store: Path, tmp_path: Path) -> None:
    write_run(store, result("prilora", 0, 81.0))
    table = comparison(load_runs(store))
    assert "PRILoRA†" in to_markdown(table) and r"PRILoRA$\dagger$" in to_latex(table)
    assert "not checked against its authors' code" in to_markdown(table)
    assert "PRILoRA†" in to_csv(table)


def test_the_source_of_the_data_is_cited_in_every_form_and_no_method_called_better(store: Path) -> None:
    table = comparison(load_runs(store))
    for text in (to_markdown(table), to_csv(table), to_latex(table)):
        assert VADER in text
        assert "better" not in text.lower()


def test_transplants_of_several_seeds_are_one_arm_and_those_of_other_sources_another(store: Path) -> None:
    ids = {int(r["seed"]): r["id"] for r in load_runs(store).to_dict("records") if r["method"] == "elalora"}
    other = result("elalora", 0, 70.0, variant="official", identity__method__variant="official")
    write_run(store, other)
    for seed, source in [*ids.items(), (0, other["id"]), (7, "f" * 64)]:
        whole = result("svd_lora", seed, 80.0, label="SVD-LoRA transplant", identity__method__ranks_from=source)
        write_run(store, whole)
    frame = comparison(load_runs(store)).frame
    svd = frame[frame["method"] == "svd_lora"]
    assert sorted(svd["n"]) == [1, 1, 3]  # three seeds of one source, one of another, one whose source is not here
    assert any("variant=official" in name for name in svd["shown"])
    assert svd.set_index("n").loc[3, "diff_mean"] == pytest.approx(-2.0)  # 80 against LoRA's 80, 82, 84


def test_the_page_of_terms_says_which_runs_have_a_best_reading() -> None:
    from experiments.config.schema import TrainerConfig

    text = " ".join((CHECKOUT / "docs" / "concepts.md").read_text(encoding="utf-8").split())
    assert f"`trainer.evaluations=N` (default {TrainerConfig().evaluations})" in text


# -- the store ---------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        (DEEP, "recursion"),
        (json.dumps(result("lora", 9, 80.0) | {"schema": 0}), "schema 0, this version reads 1"),
        (json.dumps({"schema": 1}), "'readings' is missing"),
        (json.dumps(result("lora", 9, float("nan"))), "finite number, got nan"),
        (json.dumps(result("lora", 9, 80.0) | {"task": 3}), "text, got 3"),
    ],
)
def test_a_damaged_result_is_reported_and_the_others_are_read(store: Path, content: str, reason: str) -> None:
    folder = store / "vader_movies" / "lora-r4-s9-damaged"
    folder.mkdir()
    (folder / "result.json").write_text(content)
    runs = load_runs(store)
    assert len(runs) == 6
    (problem,) = runs.attrs["problems"]
    assert "lora-r4-s9-damaged" in problem and reason in problem


def test_a_run_in_two_stores_counts_once(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other)
    runs = load_runs(store, other)
    assert len(runs) == 6 and not runs.attrs["problems"]
    assert len(load_runs(store, store / "vader_movies")) == 6


def test_one_run_with_two_scores_is_reported(store: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", result("lora", 0, 12.0))
    runs = load_runs(store, tmp_path / "other")
    assert runs[(runs["method"] == "lora") & (runs["seed"] == 0)]["score"].tolist() == [80.0]
    assert "scored 80.0000, here 12.0000" in runs.attrs["problems"][0]


def test_a_run_without_a_result_is_listed_with_its_state(store: Path) -> None:
    folder = store / "vader_movies" / "lora-r4-s7-0000000000"
    folder.mkdir()
    (folder / "status.json").write_text(
        json.dumps({"state": "failed", "failure": "crash", "error": "RuntimeError: out of memory"})
    )
    runs = load_runs(store)
    assert len(runs) == 6
    assert [str(run) for run in runs.attrs["unfinished"]] == [f"{folder}: failed: RuntimeError: out of memory"]


def test_one_run_folder_and_one_task_folder_are_stores_too(store: Path) -> None:
    one = next((store / "vader_movies").glob("lora-r4-s0-*"))
    assert len(load_runs(one)) == 1 and len(load_runs(store / "vader_movies")) == 6


def test_a_missing_store_and_an_unknown_filter_are_one_clear_line(store: Path) -> None:
    with pytest.raises(UserError, match="folder of runs"):
        load_runs(store / "nowhere")
    with pytest.raises(UserError, match="--method loar is in no finished run; stored: elalora, lora"):
        select(load_runs(store), {"method": ["loar"]})


def test_filters_keep_what_they_name(store: Path) -> None:
    runs = load_runs(store)
    assert set(select(runs, {"method": ["lora"], "task": []})["method"]) == {"lora"}
    assert len(select(runs, {})) == 6


def test_rounds_are_read_and_a_half_written_last_line_is_dropped(store: Path) -> None:
    folder = next((store / "vader_movies").glob("elalora-r4-s0-*"))
    assert [entry["step"] for entry in load_rounds(folder)] == [-1, 20, 40]
    lines = (folder / "ranks.jsonl").read_text()
    (folder / "ranks.jsonl").write_text(lines + '{"step": 60, "ra')
    assert [entry["step"] for entry in load_rounds(folder)] == [-1, 20, 40]
    (folder / "ranks.jsonl").write_text("{\n" + lines)
    with pytest.raises(UserError, match="line 1 is damaged"):
        load_rounds(folder)


# -- writers -----------------------------------------------------------------------------------------------


def test_every_markdown_row_has_as_many_cells_as_the_header(store: Path) -> None:
    write_run(store, result("lora", 0, 70.0, label="a|b_c*", identity__method__alpha=1.0))
    lines = [line for line in to_markdown(comparison(load_runs(store))).splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert r"a\|b\_c\*" in "".join(lines)


def test_csv_holds_the_unrounded_numbers(store: Path) -> None:
    frame = pd.read_csv(StringIO(to_csv(comparison(load_runs(store)))))
    assert frame[frame["method"] == "elalora"]["score_sd"].item() == pytest.approx(3**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("81.62 ± 0.18", r"81.62 $\pm$ 0.18"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("[0.1]", "{[}0.1]"),
        ('say "x"', "say ''x''"),
        ("Dürr 日本 ≈", "Dürr ?? ?"),
    ],
)
def test_latex_is_escaped(plain: str, escaped: str) -> None:
    assert latex(plain) == escaped


def test_the_latex_table_compiles(store: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    write_run(store, result("prilora", 0, 81.0, label=r"[x] \input{y} ^~#$ *日本"))
    (tmp_path / "table.tex").write_text(to_latex(comparison(load_runs(store))))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


def test_the_terminal_shows_names_as_they_are(store: Path) -> None:
    from rich.console import Console

    write_run(store, result("svd_lora", 0, 81.0, label="[red]boo[/red]"))
    console = Console(file=StringIO(), width=140)
    print_table(comparison(load_runs(store)), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]boo[/red]" in shown and "82.00 ± 2.00" in shown and VADER in shown


# -- figures -----------------------------------------------------------------------------------------------


def test_the_rank_map_is_the_mean_over_seeds_in_reading_order(store: Path) -> None:
    runs = load_runs(store)
    ela = rank_map(runs[runs["method"] == "elalora"])
    assert list(ela.columns) == ["query", "value", "ffn in", "ffn out"] and list(ela.index) == [0, 1, 2]
    assert ela.loc[0, "ffn in"] == 2.0  # every seed lost two there
    # seeds 0, 1, 2 gained at the positions 5 and 8, 6 and 9, 7 and 10 of 4 types x 3 layers, once each
    assert ela.loc[1, "value"] == pytest.approx(4 + 1 / 3)
    assert ela.to_numpy().sum() == pytest.approx(48)


def test_matrices_that_share_a_place_keep_apart(store: Path) -> None:
    places = {"text.layers.0.fc": (0, "fc"), "image.layers.0.fc": (0, "fc"), "a": (0, "x"), "b": (0, "x")}
    runs = pd.DataFrame([{"ranks_final": dict(zip(places, (1, 2, 3, 4), strict=True)), "places": places}])
    assert rank_map(runs).loc[0].to_dict() == {"a": 3, "b": 4, "image.layers.*.fc": 2, "text.layers.*.fc": 1}


def test_the_trajectory_holds_start_every_round_and_end(store: Path) -> None:
    runs = load_runs(store)
    course = trajectory(runs[runs["method"] == "elalora"].iloc[0].to_dict())
    assert list(course.index) == [0, 20, 40, 100]
    assert course[("ffn in", 0)].tolist() == [4, 3, 2, 2]
    assert (course.sum(axis=1) == 4 * len(modules())).all()


def test_only_arms_that_moved_have_courses_and_many_seeds_are_averaged(store: Path) -> None:
    runs = load_runs(store)
    assert courses_of(runs[runs["method"] == "lora"]) == {}
    assert list(courses_of(runs[runs["method"] == "elalora"])) == ["seed 0", "seed 1", "seed 2"]
    moved_run(store, 3, 80.0)
    runs = load_runs(store)
    (name, course), *rest = courses_of(runs[runs["method"] == "elalora"]).items()
    assert name == "mean of 4 seeds" and not rest
    assert course[("ffn in", 0)].tolist() == [4, 3, 2, 2]


def test_nothing_of_a_figure_is_cut_off(store: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    runs = load_runs(store)
    ela = runs[runs["method"] == "elalora"]
    maps = {f"ElaLoRA (paper) [trainer.lr=0.00{i}, data.train_items=1600]": rank_map(ela) for i in range(4)}
    title = "A title that is as long as the names of a study, its model, its budget and its protocol make it " * 2
    draw_rank_maps(dict(list(maps.items())[:1]), 4.0, tmp_path / "one", title, VADER)
    draw_rank_maps(maps, 4.0, tmp_path / "many", title, VADER)
    draw_trajectories(courses_of(ela[:1]), tmp_path / "course", title, VADER)
    for name in ("one", "many", "course"):
        pixels = imread(tmp_path / f"{name}.png")[..., :3]  # (height, width, 3)
        assert pixels[5:-5, 5:-5].min() < 0.1
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert edge.min() == 1.0, f"ink at the edge of {name}"


def test_file_names_hold_nothing_but_harmless_characters() -> None:
    assert file_name(["../../etc", "a b/c", "", "r4"]) == "etc-a_b_c-r4"
    assert "/" not in file_name(["日本", "/"]) and file_name(["日本"]) == "x"
