"""Tables and figures of the rank study, from a store with effects that were put in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.reading.stored import Stored, read_stores
from analysis.sections import rank_study
from analysis.sections.rank_study_frames import contributions
from experiments.standins.stored_runs import moved_run
from experiments.standins.study import LIKED, SEEDS


def first_seeds(study: Stored) -> Stored:
    return replace(study, runs=study.runs[study.runs["seed"] < 3])


def test_the_authors_logged_patterns_share_as_counted_by_hand(tmp_path: Path):
    path = tmp_path / "patterns.csv"
    path.write_text(
        "# a note\nrun,module,layer,rank,verified\n"
        "one--overwrite_output_dir,attention.self.query_proj,0,1,yes\n"
        "one--overwrite_output_dir,intermediate.dense,0,3,yes\n"
    )
    assert rank_study.logged_shares(path) == {"authors: one": {"query": 0.5, "ffn in": 1.5}}
    assert rank_study.logged_shares(tmp_path / "none.csv") == {}


def test_the_logged_patterns_of_the_reference_data_are_read(shared: Path):
    path = shared / "reference" / "published" / "elalora_githistory_rank_patterns.csv"
    found = rank_study.logged_shares(path)
    assert len(found) == 7
    for row in found.values():
        assert set(row) == {"query", "key", "value", "attn out", "ffn in", "ffn out"}
        assert sum(row.values()) == pytest.approx(6)


def test_transplants_of_all_seeds_are_one_arm(runs: pd.DataFrame):
    shown = runs["shown"].value_counts().to_dict()
    assert shown["SVD-LoRA transplant"] == shown["SVD-LoRA transplant shuffled"] == len(SEEDS)
    assert shown["ElaLoRA, random moves + D1 + D2 (paper)"] == len(SEEDS)
    assert len(shown) == 15


@pytest.mark.slow
def test_tables_read_the_store_as_it_was_made(runs: pd.DataFrame):
    arms = {name: arm for name, arm in runs.groupby("shown") if " + " not in str(name)}
    stable = rank_study.stability(arms, "here").frame.set_index("arm")
    assert stable.loc["ElaLoRA (paper)", "w"] > 0.8 and stable.loc["ElaLoRA (paper)", "p"] < 0.01
    assert stable.loc["ElaLoRA, random moves (paper)", "w"] < 0.4
    assert "SVD-LoRA" not in stable.index  # one rank everywhere has no pattern
    related = rank_study.relations(contributions(arms), "here").frame.set_index(["ranks_of", "contributions_in"])
    assert set(related["measure"]) == {"loss"}
    assert related.loc[("ElaLoRA (paper)", "SVD-LoRA"), "across_rho"] > 0.5
    assert set(related["matrices"]) == {12} and set(related["below"]) == {0}
    assert related.loc[("ElaLoRA, random moves (paper)",) * 2, "across_p"] > 0.05
    share = rank_study.shares(arms, "here").frame.set_index("arm").loc["ElaLoRA (paper)"]
    assert share["ffn in"] > 1.3 and share["ffn out"] < 0.7 and LIKED["intermediate.dense"] > LIKED["output.dense"]


def test_a_contribution_to_the_calibrated_loss_and_to_the_score_has_a_row_and_a_row_of_panels(tmp_path: Path):
    """Rises of the loss follow the ranks, falls of the score run against them."""
    for seed in range(3):
        folder = moved_run(tmp_path / "runs", seed, 80.0)
        ranks = json.loads((folder / "result.json").read_text())["ranks"]["final"]
        up = {name: rank + 0.01 * number for number, (name, rank) in enumerate(ranks.items())}
        facts = {"schema": 2, "rises": up, "calibrated_rises": up, "score_falls": {n: -v for n, v in up.items()}}
        (folder / "contributions.json").write_text(json.dumps(facts))
    [section] = rank_study.sections(read_stores([tmp_path / "runs"]), tmp_path)
    [table] = [t for name, t in section.tables.items() if name.startswith("contribution")]
    found = table.frame.set_index("measure")["across_rho"]
    assert found["loss"] == found["calibrated loss"] == -found["score"] > 0.5
    assert list(table.frame.set_index("measure").loc["score", ["below", "matrices"]]) == [12, 12]
    assert "contribution" in {path.name.split("_")[0] for path in section.figures}


@pytest.mark.slow
def test_ranks_that_were_given_are_no_agreement_of_seeds(study: Stored):
    [section] = rank_study.sections(first_seeds(study), None)
    for kind in ("stability", "shares"):
        [table] = [t for name, t in section.tables.items() if name.startswith(kind)]
        assert "ElaLoRA (paper)" in set(table.frame["arm"])
        assert not any("transplant" in name for name in table.frame["arm"])


@pytest.mark.full
def test_the_whole_study_is_drawn_with_every_picture(study: Stored, tmp_path: Path):
    [section] = rank_study.sections(first_seeds(study), tmp_path)
    assert [name.split("_")[0] for name in section.tables] == ["stability", "contribution", "transplant", "shares"]
    kinds = {path.name.split("_")[0] for path in section.figures}
    assert kinds == {"spread", "agreement", "rounds", "moves", "scores", "contribution"}
    for path in section.figures:
        assert path.suffix == ".svg" and path.stat().st_size > 1000 and path.with_suffix(".png").stat().st_size > 1000
