"""Reading a store: what is read, what is left out, and the names of arms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.reading.folders import scan
from analysis.reading.runs import load_runs
from experiments.standins.stored_runs import result, write_run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for seed in range(3):
        write_run(root, result("lora", seed, 80.0 + seed / 100))
    return root


def test_a_run_without_the_wanted_reading_is_a_problem(store: Path) -> None:
    best = {"step": 75, "report": {"split": "test", "metrics": {"accuracy": 90.0}}, "select": None}
    write_run(store, result("lora", 99, 80.0, readings__best=best))
    runs = load_runs(store, reading="best")
    assert runs["score"].tolist() == [90.0]
    assert len(runs.attrs["problems"]) == 3 and "no reading 'best'" in runs.attrs["problems"][0]


def test_a_store_is_read_as_it_is_now(store: Path) -> None:
    load_runs(store)
    folder = next((store / "vader_movies").glob("lora-r4-s0-*"))
    (folder / "result.json").write_text("{")
    runs = load_runs(store)
    assert len(runs) == 2 and str(folder) in runs.attrs["problems"][0]
    assert [path.name for path in store.iterdir()] == ["vader_movies"]  # reading writes nothing


def test_hidden_folders_and_deeper_ones_hold_no_runs(store: Path) -> None:
    write_run(store / ".trash", result("lora", 8, 80.0))
    write_run(store / "a" / "b", result("lora", 9, 80.0))
    assert len(scan(store).finished) == 3


def test_a_group_of_settings_that_is_no_mapping_is_a_problem(store: Path) -> None:
    for seed, group in enumerate((None, 3, ["lora"]), start=4):
        write_run(store, result("lora", seed, 80.0, identity__trainer=group))
    runs = load_runs(store)
    assert len(runs) == 3 and all("settings of trainer" in line for line in runs.attrs["problems"])


def test_names_tell_settings_apart_only_where_two_arms_share_a_cell(store: Path) -> None:
    assert set(load_runs(store)["shown"]) == {"LoRA"}
    write_run(store, result("lora", 0, 81.0, identity__trainer__lr=0.01))
    tweets = {"task": "vader_tweets", "identity__task__name": "vader_tweets"}
    write_run(store, result("lora", 0, 81.0, identity__trainer__lr=0.01, **tweets))
    runs = load_runs(store)
    movies = runs[runs["task"] == "vader_movies"]
    assert set(movies["shown"]) == {"LoRA [trainer.lr=0.001]", "LoRA [trainer.lr=0.01]"}
    assert runs.loc[runs["task"] == "vader_tweets", "shown"].tolist() == ["LoRA"]


def test_a_mark_of_a_stored_run_goes_when_its_method_was_checked_later(store: Path) -> None:
    for method, variant in (("elalora", "paper"), ("sora", "paper")):
        write_run(store, result(method, 0, 81.0, variant=variant, reconstructed=True))
    marked = load_runs(store).set_index("method")["reconstructed"]
    assert not marked["elalora"] and marked["sora"]


def test_a_deeply_nested_setting_is_a_problem(store: Path) -> None:
    nested = json.loads("[" * 700 + "]" * 700)
    write_run(store, result("lora", 5, 80.0, identity__trainer={"lr": nested}))
    runs = load_runs(store)
    assert len(runs) == 3 and "nested" in runs.attrs["problems"][0]
