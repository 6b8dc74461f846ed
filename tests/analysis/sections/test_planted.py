"""Ranks against those of a planted teacher, from run folders with ranks that were put in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from analysis.reading.stored import read_stores
from analysis.sections.planted import sections, teacher_ranks
from experiments.standins.stored_runs import modules, result, write_run

TEACHER = {"pattern": "layer1:1 rest:0", "rank": 4, "strength": 4.0, "seed": 0}
TASK = {"name": "vader_movies", "metrics": ["accuracy"], "teacher": TEACHER}


def store(root: Path, **arms: list[dict[str, int]]) -> Path:
    """Runs of methods, one for each pattern of ranks by matrix."""
    for method, patterns in arms.items():
        for seed, ranks in enumerate(patterns):
            write_run(root, result(method, seed, 80.0 + seed, identity__task=TASK, ranks__final=ranks))
    return root


def ranks(layer: int, high: int = 10, low: int = 1) -> dict[str, int]:
    return {name: high if place[0] == layer else low for name, place in modules().items()}


def test_the_teachers_ranks_are_its_pattern_at_its_mean_rank():
    found = teacher_ranks(TEACHER, list(modules()))
    assert found.tolist() == [12.0 if place[0] == 1 else 0.0 for place in modules().values()]


def test_an_arm_that_found_the_planted_layer_agrees_and_one_that_avoided_it_does_not(tmp_path: Path):
    evenly = {name: 4 for name in modules()}
    root = store(tmp_path, elalora=[ranks(1)] * 3, lora=[evenly] * 3, adalora=[ranks(0), ranks(1), ranks(2)])
    (section,) = sections(read_stores([root]), None)
    ((name, table),) = section.tables.items()
    assert re.fullmatch(r"[\w.-]+", name), "the name of its files"
    frame = table.frame.set_index("arm")
    found = frame.loc["ElaLoRA (paper)"]
    assert (found["tau"], found["share"]) == pytest.approx((1.0, 40 / 48))
    assert frame.loc["LoRA", "share"] == pytest.approx(1 / 3) and frame["tau"].isna()["LoRA"]
    planted = [int(place[0] == 1) for place in modules().values()]
    by_seed = [kendalltau(list(ranks(layer).values()), planted).statistic for layer in range(3)]
    mixed = frame.loc[[name for name in frame.index if name.startswith("AdaLoRA")][0]]
    assert mixed["tau"] == pytest.approx(sum(by_seed) / 3)
    assert mixed["share"] == pytest.approx((40 + 4 + 4) / 48 / 3)
    assert mixed["tau_low"] < mixed["tau"] < mixed["tau_high"]


def test_a_task_without_a_teacher_has_no_such_table(tmp_path: Path):
    write_run(tmp_path, result("lora", 0, 80.0))
    assert sections(read_stores([tmp_path]), None) == []
