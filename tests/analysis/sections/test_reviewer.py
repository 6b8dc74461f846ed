"""The table for reviewers, against values that were computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from analysis.output.writers import write
from analysis.reading.stored import read_stores
from analysis.sections.reviewer import sections
from experiments.standins.stored_runs import result, write_run

COST = {"step_seconds_median": 0.5, "eval_seconds": 5.0, "peak_memory_mib": 100.0, "adapter_bytes": 2048}
NEW = {"optimizer_bytes": 4096, "train_tokens": 30_000, "step_flops": 25_000_000_000}


def table(root: Path):
    (section,) = sections(read_stores([root]), None)
    return section.tables["reviewer"]


def tuned(root: Path, seed: int, lr: float, **cost: float) -> None:
    trainer = {"lr": lr, "max_steps": 100}
    whole = result("lora", seed, 70.0, protocol="tune", identity__trainer=trainer, cost=COST | cost)
    whole["readings"]["last"]["report"]["split"] = "validation"
    write_run(root, whole)


def test_every_cell_is_what_the_runs_recorded(tmp_path: Path):
    for seed, seconds in enumerate((50.0, 60.0, 100.0)):
        write_run(tmp_path, result("lora", seed, 80.0 + seed, cost=COST | NEW | {"train_seconds": seconds}))
    found = table(tmp_path)
    row = dict(zip(found.columns, found.rows[0], strict=True))
    # t interval of 80, 81, 82: 81 -+ 4.3027 / sqrt(3); tokens a second: the median of 600, 500, 300
    assert row["Score"] == "81.00 [78.52, 83.48]" and row["n"] == "3"
    assert row["Memory MiB"] == "100" and row["GFLOP a step"] == "25.00" and row["Training s"] == "60"
    assert row["Tokens/s"] == "500" and row["Optimizer KiB"] == "4" and row["Adapter KiB"] == "2"
    assert row["Tuning h"] == ""
    files = {path.suffix for path in write(found, tmp_path, "reviewer")}
    assert files == {".md", ".csv", ".tex"}


def test_hours_of_tuning_go_to_the_arm_that_they_tuned(tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path, result("lora", seed, 80.0, cost=COST | NEW | {"train_seconds": 50.0}))
        write_run(tmp_path, result("elalora", seed, 80.0, cost=COST | NEW | {"train_seconds": 50.0}))
    for seed, lr in ((7, 1e-3), (7, 3e-3), (8, 1e-3), (8, 3e-3)):
        tuned(tmp_path, seed, lr, train_seconds=895.0)  # 900 s with the evaluation
    hours = {row[4]: row[-1] for row in table(tmp_path).rows}
    assert hours == {"LoRA": "1.00", "ElaLoRA (paper)": ""}


def test_runs_of_before_the_record_show_gaps_and_no_zeros(tmp_path: Path):
    old = result("lora", 0, 80.0)
    for name in NEW:
        del old["cost"][name]
    write_run(tmp_path, old)
    found = table(tmp_path)
    row = dict(zip(found.columns, found.rows[0], strict=True))
    assert [row[name] for name in ("Memory MiB", "GFLOP a step", "Tokens/s", "Optimizer KiB")] == [""] * 4
    assert row["Score"] == "80.00" and row["Training s"] == "50" and math.isnan(found.frame["step_flops"][0])
    assert found.frame["adapter_bytes"][0] == pytest.approx(1_000_000)
