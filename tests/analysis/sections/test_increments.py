"""Sequences in the report, from run folders whose readings were put in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.reading.curves import load_curve
from analysis.reading.stored import read_stores
from analysis.sections.evidence import Runs
from analysis.sections.increments import published_costs, sections
from experiments.standins.stored_runs import modules, result, write_run

ENDS = [40, 80, 100]


def parts(shift: float = 0.0, count: int = 3, **more) -> dict:
    """Readings of a sequence; the forgetting is 10 and the anytime accuracy 80, each plus or minus the shift."""
    matrix = [[90.0 + shift - 5 * t if j <= t else None for j in range(count)] for t in range(count)]
    return {
        "kind": "classes", "groups": [[2 * t, 2 * t + 1] for t in range(count)], "ends": ENDS[:count],
        "train_items": [10] * count, "report_items": [10] * count, "matrix": matrix,
        "seen": [90.0 + shift - 5 * t for t in range(count)], "anytime_accuracy": 80.0 + shift,
        "forgetting": 10.0 - shift, "forward_transfer": None, **more,
    }  # fmt: skip


def store(root: Path, task: str = "vader_movies") -> Path:
    identity = {"name": task, "metrics": ["accuracy"]}
    for seed in range(3):
        for method, shift in (("lora", 0.0), ("sd_lora", 2.0)):
            sequence = {"increments": parts(shift + seed), "identity__task": identity}
            write_run(root, result(method, seed, 80.0 + shift + seed, **sequence))
        write_run(root, result("lora", seed, 95.0 + seed, identity__task=identity, identity__trainer={"lr": 0.1}))
    return root


def test_every_arm_has_its_measures_and_the_runs_on_all_classes_are_the_bound(tmp_path: Path):
    (section,) = sections(read_stores([store(tmp_path)]), None)
    (table,) = section.tables.values()
    frame = table.frame.set_index("arm")
    assert "in 3 parts" in section.title
    assert frame["final"].to_dict() == pytest.approx({"LoRA": 81.0, "SD-LoRA": 83.0, "LoRA, all classes at once": 96.0})
    assert frame.loc["SD-LoRA", "forgetting"] == pytest.approx(7.0)
    assert frame.loc["LoRA", "anytime_accuracy"] == pytest.approx(81.0) and frame.loc["LoRA", "seeds"] == 3
    assert frame["forward_transfer"].isna().all() and "Forward transfer" not in table.columns
    half = 4.302653 / np.sqrt(3)  # Student's quantile for 3 seeds whose standard deviation is 1
    assert frame.loc["LoRA", "final_low"] == pytest.approx(81.0 - half, abs=1e-4)


def test_runs_of_a_sequence_and_of_the_ordinary_task_are_in_no_common_cell(tmp_path: Path):
    stored = read_stores([store(tmp_path)])
    assert set(stored.runs["task"]) == {"vader_movies", "vader_movies in 3 parts"}


def test_a_sequence_of_one_part_is_an_ordinary_run_of_its_task(tmp_path: Path):
    write_run(tmp_path, result("lora", 0, 80.0, increments=parts(count=1)))
    stored = read_stores([tmp_path])
    assert set(stored.runs["task"]) == {"vader_movies"} and sections(stored, None) == []


@pytest.mark.parametrize("damage", [{"matrix": [[90.0]]}, {"seen": [1.0]}, {"ends": ["x"] * 3}, {"forgetting": "much"}])
def test_a_result_with_damaged_readings_is_left_out_and_named(damage: dict, tmp_path: Path):
    write_run(tmp_path, result("lora", 0, 80.0, increments=parts(**damage)))
    write_run(tmp_path, result("lora", 1, 80.0))
    stored = read_stores([tmp_path])
    assert len(stored.runs) == 1 and len(stored.left_out) == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("imagenet_r", ["SD-LoRA, published", "", "5", "79.15", "83.01"]),
        ("imagenet_r", ["W0 + alpha*single AB, published", "", "5", "73.24", "78.80"]),
        ("cifar100_full", ["SD-LoRA, second-hand", "", "5", "88.01", "92.54"]),
        ("vader_movies", None),
    ],
)
def test_published_numbers_stand_beside_their_benchmark_only(name: str, row: list[str] | None, tmp_path: Path):
    for seed in range(2):
        sequence = parts(count=3)
        sequence |= {"groups": [[t] for t in range(5)], "ends": [20, 40, 60, 80, 100], "seen": [90.0] * 5}
        sequence["matrix"] = [[90.0 if j <= t else None for j in range(5)] for t in range(5)]
        identity = {"name": name, "metrics": ["accuracy"]}
        write_run(tmp_path, result("sd_lora", seed, 80.0, increments=sequence, identity__task=identity))
    (section,) = sections(read_stores([tmp_path]), None)
    (table,) = section.tables.values()
    rows = [cells[:5] for cells in table.rows if cells[1:3] == ["", "5"]]
    assert bool(rows) == (row is not None) == any("2501.13198" in note for note in table.notes)
    assert row is None or row in rows


@pytest.mark.parametrize(
    ("name", "count", "shown"), [("imagenet_r", 20, True), ("imagenet_r", 5, False), ("x", 20, False)]
)
def test_published_costs_stand_beside_the_sequence_that_they_were_measured_on(name: str, count: int, shown: bool):
    cell = pd.DataFrame([{"settings": {"task": {"name": name}}, "increments": {"ends": list(range(count))}}])
    assert any("SD-LoRA-RR 35.12, 0.23, 0.00" in note for note in published_costs(cell)) == shown


def test_figures_are_drawn_for_accuracy_matrix_and_ranks_that_change(tmp_path: Path):
    ranks = {name: 4 for name in modules()}
    grown = {name: 8 for name in modules()}
    rounds = [{"step": 39, "ranks": grown, "pruned": [], "grown": list(ranks) * 4}]
    changes = {"ranks__final": grown, "counts__final__rank_sum": 8 * len(ranks)}
    write_run(tmp_path / "a", result("sd_lora", 0, 80.0, increments=parts(), **changes), rounds)
    (section,) = sections(read_stores([tmp_path / "a"]), tmp_path)
    assert len(section.figures) == 3 and all(path.is_file() for path in section.figures)
    write_run(tmp_path / "b", result("lora", 0, 80.0, increments=parts()))
    (section,) = sections(read_stores([tmp_path / "b"]), tmp_path)
    assert len(section.figures) == 2


def test_a_study_names_its_tasks_without_parts_and_still_finds_their_constant_answer():
    run = {"task": "imagenet_r in 10 parts", "majority": 3.0, "score": 50.0}
    present = {("sd_lora", "imagenet_r", 0): run, ("lora", "imagenet_r", 0): run}
    one = Runs("sd_lora", "lora", "r10", ["imagenet_r"], [0], present, {}, [])
    assert one.constant() == {"imagenet_r": 3.0}


def test_the_learning_curve_of_a_sequence_is_that_of_all_parts_seen(tmp_path: Path):
    folder = write_run(tmp_path, result("lora", 0, 80.0, increments=parts()))
    lines = [
        {"step": step, "split": split, "metric": "accuracy", "value": value}
        for step, value in ((39, 90.0), (79, 70.0))
        for split, value in (("increment 1", 10.0), ("test seen", value))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_stores([tmp_path]).runs.to_dict("records")
    assert load_curve(run).scores == [(39, 90.0), (79, 70.0)]
