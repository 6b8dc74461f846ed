"""What is measured of commands over many runs; nothing here looks at seconds."""

from __future__ import annotations

from pathlib import Path

from analysis.reading.runs import load_runs
from experiments.bench.waiting import many_runs, waiting_lines


def test_the_runs_of_the_made_store_are_all_believed_and_all_distinct(tmp_path: Path) -> None:
    many_runs(tmp_path, 300)
    runs = load_runs(tmp_path)
    assert len(runs) == 300 and not runs.attrs["problems"]
    assert {task[-1] for task in runs["task"]} == {"0", "1"}


def test_the_table_has_a_verdict_where_there_is_a_target() -> None:
    measured = {
        "plan": {"seconds": 14.0, "target": 15.0}, "status": {"seconds": 9.0, "target": None}, "machine": {},
        "tables": {"seconds": 5.0, "target": 4.0},
    }  # fmt: skip
    rows = waiting_lines(measured)[2:]
    assert rows == ["| plan | 14.0 | ≤ 15 | met |", "| status | 9.0 |  |  |", "| tables | 5.0 | ≤ 4 | missed |"]
