"""Tables and figures from stored runs, against numbers worked out by hand from a store written as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.output.writers import to_csv, to_latex, to_markdown
from analysis.reading.runs import load_runs
from analysis.sections.comparison import comparison
from analysis.sections.cost import cost_table
from analysis.sections.papers import paper_tables
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import VADER, moved_run, result, three_seeds, write_run

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


def test_arms_read_on_different_splits_are_not_subtracted(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0, readings__last__report__split="test"))
    write_run(tmp_path, result("elalora", 0, 81.0, readings__last__report__split="validation"))
    table = comparison(load_runs(tmp_path))
    frame = table.frame.set_index("method")
    assert "diff_n" not in frame or pd.isna(frame.loc["elalora", "diff_n"])
    assert any("not trained alike (data.split: " in note for note in table.notes)


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


def test_jpeg_copies_are_a_note_on_their_data_set_and_no_flag_of_an_arm(tmp_path: Path) -> None:
    for seed, flags in enumerate((["JPEG copies"], ["JPEG copies", "unverified data"], [])):
        write_run(tmp_path, result("lora", seed, 80.0) | {"flags": flags})
    table = comparison(load_runs(tmp_path))
    (note,) = [note for note in table.notes if "JPEG" in note]
    assert note.endswith("2 of 3 runs read JPEG copies of images that were published without loss.")
    assert dict(zip(table.columns, table.rows[-1], strict=True))["Flags"] == "unverified data"


@pytest.mark.parametrize(("started", "shown"), [("2026-11-24T20:00:00+00:00", True), ("2026-11-25T16:00:00", False)])
def test_step_times_of_different_sessions_do_not_stand_in_one_column(tmp_path: Path, started: str, shown: bool) -> None:
    for seed in range(2):
        write_run(tmp_path, result("lora", seed, 80.0), started=f"2026-11-24T19:3{seed}:00+00:00")
        write_run(tmp_path, result("svd_lora", seed, 81.0), started=started)
    table = comparison(load_runs(tmp_path))
    assert ("Step ms" in table.columns) == shown
    assert any("were timed in different sessions" in note for note in table.notes) != shown
    assert table.frame["step_seconds_median"].notna().any() == shown


def test_arms_that_were_all_timed_in_both_sessions_keep_their_times(tmp_path: Path) -> None:
    for seed, day in enumerate((24, 25)):
        for method in ("lora", "svd_lora"):
            write_run(tmp_path, result(method, seed, 80.0), started=f"2026-11-{day}T19:30:00+00:00")
    assert "Step ms" in comparison(load_runs(tmp_path)).columns


def test_what_trained_at_once_stands_behind_the_sum_of_all_pieces(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, result("lora", seed, 80.0))
        whole = result("rac_lora", seed, 81.0, counts__final={"rank_sum": 144, "params": 64_000})
        whole["counts"]["trained"] = {"rank_sum": 48, "params": 9_000}
        write_run(tmp_path, whole)
    table = comparison(load_runs(tmp_path))
    ours = dict(zip(table.columns, table.rows[-1], strict=True))
    assert ours["Rank sum"].endswith(" → 144 (48 at once)") and "→ 64,000 (9,000 at once)" in ours["Parameters"]
    assert sum("at once" in cell for row in table.rows for cell in row) == 2
    assert sum(note.startswith("(… at once): the largest piece") for note in table.notes) == 1
    costs = cost_table(table)
    assert any("(48 at once)" in row for row in costs.rows[-1]) and costs.notes[-1].startswith("(… at once)")
