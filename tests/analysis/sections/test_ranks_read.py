"""Scores by rank: what a run of DyLoRA stores, and the table that the report makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import make_tiny_model
from tiny_runs import quick

from analysis.reading.runs import load_runs
from analysis.reading.stored import read_stores
from analysis.sections.ranks_read import sections
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.standins.stored_runs import result, write_run
from experiments.store.finished import check_result


def test_a_run_stores_its_scores_at_every_rank_and_its_result_is_that_of_the_largest(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    plan = make_plan(quick(tmp_path / "model", tmp_path / "runs", "method=dylora", "budget=r3"))
    run(plan)
    whole = json.loads((plan.folder.path / "result.json").read_text())
    last = whole["readings"]["last"]
    assert list(last["by_rank"]) == ["1", "2", "3"] and last["by_rank"]["3"] == last["report"]["metrics"]
    assert whole["counts"]["final"]["rank_sum"] == 3 * len(whole["ranks"]["final"])
    row = load_runs(tmp_path / "runs").iloc[0]
    assert row["by_rank"] == {int(r): scores[row["metric"]] for r, scores in last["by_rank"].items()}


def test_the_table_has_the_mean_over_seeds_at_every_rank(tmp_path: Path) -> None:
    for seed, (low, high) in enumerate([(60.0, 80.0), (64.0, 82.0), (62.0, 84.0)]):
        scores = {"1": {"accuracy": low}, "4": {"accuracy": high}}
        write_run(tmp_path, result("dylora", seed, high, readings__last__by_rank=scores))
        write_run(tmp_path, result("lora", seed, 81.0))
    (section,) = sections(read_stores([tmp_path]), None)
    table = section.tables["scores_by_rank"]
    assert table.columns[-3:] == ["n", "r = 1", "r = 4"]
    assert [row[-4:] for row in table.rows] == [["DyLoRA", "3", "62.00 ± 2.00", "82.00 ± 2.00"]]


def test_without_such_runs_there_is_no_table(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 81.0))
    assert sections(read_stores([tmp_path]), None) == []


def test_an_impossible_score_at_a_rank_is_refused(tmp_path: Path) -> None:
    whole = result("dylora", 0, 80.0, readings__last__by_rank={"1": {"accuracy": 150.0}})
    write_run(tmp_path, whole)
    folder = next(tmp_path.rglob("result.json")).parent
    with pytest.raises(ValueError, match="its range is 0 to"):
        check_result(folder, json.loads((folder / "result.json").read_text()))
