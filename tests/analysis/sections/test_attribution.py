"""Attribution: the effects put into a made-up store are read out, and nothing is said beyond the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.reading.runs import load_runs
from analysis.reading.settings import cell_of
from analysis.reading.stored import Stored, read_stores
from analysis.sections.attribution import factorials, paragraph, sections
from analysis.stats.factorial import Factorial, contrasts, effects
from experiments.standins.stored_runs import moved_run, result, write_run
from experiments.standins.study import EFFECTS, SEEDS


def test_effects_that_were_put_in_are_read_out(runs: pd.DataFrame):
    [factorial], gaps = factorials(runs)
    assert not gaps and factorial.seeds == list(SEEDS)
    found = {e.name: e for e in effects(factorial.scores)}
    scored = EFFECTS["scored"] + EFFECTS["scored x D1"] / 2
    for name, truth in {
        "scores": scored, "moving": scored / 2, "D1": EFFECTS["D1"] + EFFECTS["scored x D1"] / 3,
        "D2": EFFECTS["D2"], "scores x D1": EFFECTS["scored x D1"], "moving x D1": EFFECTS["scored x D1"] / 2,
    }.items():  # fmt: skip
        assert abs(found[name].mean - truth) < 0.2 and found[name].corrected <= 0.05, name
    for name in ("moving x D2", "scores x D2", "D1 x D2", "moving x D1 x D2", "scores x D1 x D2"):
        assert found[name].corrected > 0.05, name


def test_the_paragraph_says_what_the_tests_say_and_no_more(runs: pd.DataFrame):
    [factorial], _ = factorials(runs)
    text = paragraph(factorial)
    assert "Choosing by scores against choosing at random raised the score by 2.0" in text
    assert "Dropping the optimizer's moments at every round lowered the score by 0.6" in text
    assert "scores x D1 +1.3" in text and "better" not in text
    few = Factorial(factorial.scores[:5], [0, 1, 2, 3, 4], factorial.tasks, "here", "made up")
    text = paragraph(few)
    assert "raised" not in text and "lowered" not in text and "it takes 9" in text
    noise = np.random.default_rng(0).normal(size=(9, 3, 2, 2))
    text = paragraph(Factorial(noise, list(range(9)), ["a"], "here", "made up"))
    assert text.count("not told apart from no effect") == 4 and "No interaction is told apart from 0" in text


def test_some_arms_of_the_factorial_on_another_task_neither_enter_it_nor_stop_it(study_root: Path, tmp_path: Path):
    other = {"task": "vader_tweets", "identity__task": {"name": "vader_tweets"}}
    for seed in SEEDS:
        for method in ({"name": "svd_lora"}, {"name": "elalora", "variant": "paper"}):
            write_run(tmp_path, result(method["name"], seed, 99.0, identity__method=method, **other))
    [alone], _ = factorials(load_runs(study_root))
    [both], gaps = factorials(load_runs(study_root, tmp_path))
    assert both.tasks == ["vader_movies"] and not gaps
    assert np.array_equal(both.scores, alone.scores)


def test_a_factorial_with_a_hole_says_what_is_missing(runs: pd.DataFrame):
    cells = [cell_of(s) for s in runs["settings"]]
    without = runs[[cell != (1, 1, 0) for cell in cells]]
    found, gaps = factorials(without)
    assert not found and gaps == ["minilm, r4, clean, matched: the factorial lacks random + D1"]
    one_seed = runs[[not (cell == (2, 0, 0) and seed == 4) for cell, seed in zip(cells, runs["seed"], strict=True)]]
    [factorial], gaps = factorials(one_seed)
    assert 4 not in factorial.seeds and gaps == ["minilm, r4, clean, matched: 1 seeds lack a cell and are left out"]


@pytest.mark.parametrize(
    ("method", "cell"),
    [
        ({"name": "svd_lora", "D1": True, "D2": False, "D4": "off", "ranks_from": None}, (0, 1, 0)),
        ({"name": "svd_lora", "ranks_from": "0123"}, None),
        ({"name": "elalora", "variant": "paper", "importance": "random", "D2": True}, (1, 0, 1)),
        ({"name": "elalora", "variant": "paper", "importance": "sensitivity_uncertainty"}, (2, 0, 0)),
        ({"name": "elalora", "variant": "paper", "importance": "magnitude"}, None),
        ({"name": "elalora", "variant": "official"}, None),
        ({"name": "elalora", "variant": "paper", "D8": True}, None),
        ({"name": "lora"}, None),
    ],
)
def test_a_run_stands_in_its_cell_or_in_none(method: dict, cell: tuple | None):
    assert cell_of({"method": method}) == cell


def test_the_attribution_has_a_paragraph_a_table_and_a_figure(study: Stored, tmp_path: Path):
    [section] = sections(study, tmp_path)
    (name, table), (plain_name, plain) = section.tables.items()
    assert plain_name == "attribution_plain_minilm_r4_clean_matched" and len(plain.rows) == 3
    assert name == "attribution_minilm_r4_clean_matched" and table.frame["name"].tolist() == list(contrasts())
    assert "made-up numbers" in " ".join(table.notes) and section.lines[0].startswith("In 9 paired seeds")
    [figure] = section.figures
    assert figure.with_suffix(".png").stat().st_size > 1000


def test_cells_with_rates_of_their_own_are_a_factorial_only_when_asked_for(runs: pd.DataFrame):
    tuned = runs.copy()
    tuned["settings"] = [
        {**s, "trainer": {**s["trainer"], "lr": 0.01 if s["method"]["name"] == "svd_lora" else 0.003}}
        for s in runs["settings"]
    ]
    assert factorials(tuned)[0] == []
    [one], gaps = factorials(tuned, tuned=True)
    assert not gaps and one.scores.shape == (9, 3, 2, 2)


def test_a_store_without_these_studies_says_nothing(tmp_path: Path):
    moved_run(tmp_path, 0, 81.0)
    assert sections(read_stores([tmp_path]), tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": "published (script)"}, "recipe published (script) is not matched"),
        ({"verified": False}, "the data is not the official one"),
    ],
)
def test_runs_that_support_no_claim_raise_and_lower_nothing(runs: pd.DataFrame, changes: dict, reason: str):
    [factorial], _ = factorials(runs.assign(**changes))
    text = paragraph(factorial)
    assert f"No effect is claimed, because {reason}." in text
    assert "raised" not in text and "lowered" not in text


def test_an_equivalence_that_the_averages_hide_is_read_from_the_plain_arms(runs: pd.DataFrame):
    [factorial], _ = factorials(runs)
    scored, random, _ = factorial.plain
    assert scored.name == "scored - fixed" and abs(scored.mean - EFFECTS["scored"]) < 0.25
    assert random.name == "random - fixed" and abs(random.mean) < 0.2 and random.margin < 0.3
    assert f"equivalent within {scored.margin:.2f} points" in paragraph(factorial)


def test_max_t_stands_beside_holm_in_the_table_and_never_above_it_by_much(runs: pd.DataFrame):
    [factorial], _ = factorials(runs)
    assert all(e.p <= e.max_t <= 1 for e in factorial.effects)
    assert sum(e.max_t for e in factorial.effects) < sum(e.corrected for e in factorial.effects)
