"""Reading stores: damaged, repeated and unfinished runs, and filters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.reading.rounds import load_rounds
from analysis.reading.runs import load_runs, select
from elalora.errors import UserError
from experiments.standins.stored_runs import result, three_seeds, write_run
from experiments.store.folder import SCHEMA

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return three_seeds(tmp_path / "runs")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        (DEEP, "recursion"),
        (json.dumps(result("lora", 9, 80.0) | {"schema": 0}), "schema 0, this version reads"),
        (json.dumps({"schema": SCHEMA}), "id is missing"),
        (json.dumps(result("lora", 9, float("nan"))), "NaN is not JSON"),
        (json.dumps(result("lora", 9, 80.0) | {"label": 3}), "text, got 3"),
    ],
)
def test_a_damaged_result_is_reported_and_the_others_are_read(store: Path, content: str, reason: str) -> None:
    folder = store / "vader_movies" / "lora-r4-s9-damaged"
    folder.mkdir()
    (folder / "result.json").write_text(content)
    runs = load_runs(store)
    assert len(runs) == 6
    (problem,) = runs.attrs["problems"]
    assert "lora-r4-s9-damaged" in problem and reason in problem


def test_a_run_in_two_stores_counts_once(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other)
    runs = load_runs(store, other)
    assert len(runs) == 6 and not runs.attrs["problems"]
    assert len(load_runs(store, store / "vader_movies")) == 6


def test_one_run_with_two_scores_is_reported(store: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", result("lora", 0, 12.0))
    runs = load_runs(store, tmp_path / "other")
    assert runs[(runs["method"] == "lora") & (runs["seed"] == 0)]["score"].tolist() == [80.0]
    assert "scored 80.0000, here 12.0000" in runs.attrs["problems"][0]


def test_a_run_without_a_result_is_listed_with_its_state(store: Path) -> None:
    folder = store / "vader_movies" / "lora-r4-s7-0000000000"
    folder.mkdir()
    (folder / "status.json").write_text(
        json.dumps({"state": "failed", "failure": "crash", "error": "RuntimeError: out of memory"})
    )
    runs = load_runs(store)
    assert len(runs) == 6
    assert [str(run) for run in runs.attrs["unfinished"]] == [f"{folder}: failed: RuntimeError: out of memory"]


def test_one_run_folder_and_one_task_folder_are_stores_too(store: Path) -> None:
    one = next((store / "vader_movies").glob("lora-r4-s0-*"))
    assert len(load_runs(one)) == 1 and len(load_runs(store / "vader_movies")) == 6


def test_a_missing_store_and_an_unknown_filter_are_one_clear_line(store: Path) -> None:
    with pytest.raises(UserError, match="folder of runs"):
        load_runs(store / "nowhere")
    with pytest.raises(UserError, match="--method loar is in no finished run; stored: elalora, lora"):
        select(load_runs(store), {"method": ["loar"]})


def test_filters_keep_what_they_name(store: Path) -> None:
    runs = load_runs(store)
    assert set(select(runs, {"method": ["lora"], "task": []})["method"]) == {"lora"}
    assert len(select(runs, {})) == 6


def test_rounds_are_read_and_a_half_written_last_line_is_dropped(store: Path) -> None:
    folder = next((store / "vader_movies").glob("elalora-r4-s0-*"))
    assert [entry["step"] for entry in load_rounds(folder)] == [-1, 20, 40]
    lines = (folder / "ranks.jsonl").read_text()
    (folder / "ranks.jsonl").write_text(lines + '{"step": 60, "ra')
    assert [entry["step"] for entry in load_rounds(folder)] == [-1, 20, 40]
    (folder / "ranks.jsonl").write_text("{\n" + lines)
    with pytest.raises(UserError, match="line 1 is damaged"):
        load_rounds(folder)
