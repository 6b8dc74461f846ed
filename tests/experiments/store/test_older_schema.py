"""A result of another schema is named in one line by every command that reads it, and never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import quick

from analysis.reading.runs import load_runs
from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs.plan import Plan, make_plan
from experiments.runs.run import run
from experiments.standins.stored_runs import result, write_run
from experiments.store.folder import SCHEMA

OLDER = SCHEMA - 1


@pytest.fixture
def older(tiny_model_dir: Path, tmp_path: Path) -> tuple[Plan, Path]:
    """A plan whose run an older version has done, and a run of this version beside it."""
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))
    made = write_run(tmp_path / "other", result("lora", 0, 80.0, schema=OLDER))
    plan.folder.path.parent.mkdir(parents=True)
    made.rename(plan.folder.path)
    write_run(tmp_path, result("lora", 7, 81.0))
    return plan, plan.folder.path / "result.json"


def test_a_run_is_refused_in_one_line_and_leaves_the_result(older: tuple[Plan, Path]) -> None:
    plan, path = older
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"schema {OLDER}.*schema {SCHEMA}") as refused:
        run(plan)
    assert len(str(refused.value).splitlines()) == 1 and str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_the_analysis_leaves_it_out_in_one_line(older: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, _ = older
    runs = load_runs(tmp_path)
    assert runs["seed"].tolist() == [7]
    [line] = runs.attrs["problems"]
    assert str(plan.folder.path) in line and f"schema {OLDER}" in line and len(line.splitlines()) == 1


def test_status_lists_it_beside_the_others(
    older: tuple[Plan, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert sorted(run["seed"] for run in json.loads(said.out)) == [0, 7] and "Traceback" not in said.err
