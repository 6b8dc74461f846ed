"""What a run wrote round by round: ranks, events, scores and contributions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.reading.rounds import events, load_contributions, load_rounds, paired, patterns, scores, shares_of_types
from elalora.errors import UserError
from experiments.standins.stored_runs import modules, moved_run
from experiments.standins.study import SEEDS


def test_events_count_what_each_round_pruned_and_grew(tmp_path: Path):
    found = events(load_rounds(moved_run(tmp_path, 0, 81.0)))
    loser = "bert.encoder.layer.0.intermediate.dense"
    assert found[found["matrix"] == loser][["step", "pruned", "grown", "net"]].values.tolist() == [
        [20, 1, 0, -1],
        [40, 1, 0, -1],
    ]
    assert found["net"].sum() == 0


def test_a_direction_replaced_in_its_own_matrix_has_a_net_of_0():
    line = {"step": 5, "pruned": [["a", 1], ["b", 0]], "grown": ["a", "c"], "scores": {"a": [0.1, 0.2]}}
    found = events([line]).set_index("matrix")
    assert found.loc["a"].tolist() == [5, 1, 1, 0]
    assert (found.loc["b", "net"], found.loc["c", "net"]) == (-1, 1)
    assert scores([line]).values.tolist() == [[5, "a", 0, 0.1], [5, "a", 1, 0.2]]


def test_shares_are_mean_ranks_over_the_mean_of_all():
    found = shares_of_types({"q0": 2, "q1": 4, "f0": 6, "f1": 8}, {"q0": "q", "q1": "q", "f0": "f", "f1": "f"})
    assert found == {"q": pytest.approx(0.6), "f": pytest.approx(1.4)}


def test_patterns_of_different_matrices_are_refused(runs: pd.DataFrame):
    two = runs.iloc[:2].copy()
    first = dict(two.iloc[0]["ranks_final"])
    first.pop(next(iter(first)))
    two["ranks_final"] = [first, two.iloc[1]["ranks_final"]]
    with pytest.raises(ValueError, match="different matrices"):
        patterns(two)


def test_contributions_are_paired_by_seed(runs: pd.DataFrame):
    ela, svd = runs[runs["shown"] == "ElaLoRA (paper)"], runs[runs["shown"] == "SVD-LoRA"]
    ranks, rises, order, seeds = paired(ela, svd[svd["seed"] != 3])
    assert seeds == [s for s in SEEDS if s != 3] and ranks.shape == rises.shape == (8, len(modules()))
    run = ela[ela["seed"] == 5].iloc[0]
    stored = json.loads((Path(svd[svd["seed"] == 5].iloc[0]["folder"]) / "contributions.json").read_text())["rises"]
    row = seeds.index(5)
    assert dict(zip(order, ranks[row], strict=True)) == run["ranks_final"]
    assert dict(zip(order, rises[row], strict=True)) == pytest.approx(stored)


@pytest.mark.parametrize("text", ["{", '{"schema": 9}', '{"schema": 1, "rises": {"a": "much"}}'])
def test_a_damaged_contribution_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "contributions.json").write_text(text)
    with pytest.raises(UserError, match=r"experiments\.contribution"):
        load_contributions(tmp_path)
