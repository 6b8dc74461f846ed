"""The table of single items, from stored predictions worked out by hand, and that it supports no claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.output.writers import to_markdown
from analysis.reading.runs import load_runs
from analysis.report import report
from analysis.sections import items as module
from analysis.sections.items import item_tests
from experiments.standins.stored_runs import result, write_run

ITEMS = 40


def run(root: Path, method: str, seed: int, wrong: set[int], **changes: Any) -> Path:
    """A run that gets the given items wrong."""
    score = 100 * (1 - len(wrong) / ITEMS)
    folder = write_run(root, result(method, seed, score, **changes))
    label = np.arange(ITEMS) % 2
    prediction = [1 - y if i in wrong else y for i, y in enumerate(label)]
    items = pd.DataFrame({"idx": range(ITEMS), "label": label, "prediction": prediction, "score": 0.5})
    items.sample(frac=1, random_state=seed).to_parquet(folder / "predictions.parquet")  # the order is no matter
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two seeds: LoRA errs on 0..9 alone and then on 0..3, ElaLoRA on 10, 11 and then on 0..5; PRILoRA as LoRA."""
    root = tmp_path / "runs"
    for seed, (lora, ela) in enumerate(((range(10), (10, 11)), (range(4), range(6)))):
        run(root, "lora", seed, set(lora))
        run(root, "elalora", seed, set(ela))
        run(root, "prilora", seed, set(lora))
    return root


def test_the_counts_are_those_of_the_stored_predictions(store: Path) -> None:
    table, lines = item_tests(load_runs(store))
    assert table is not None and lines == []
    rows = table.frame.set_index("shown")
    ela = rows.loc["ElaLoRA (paper)"]
    assert (ela["seeds"], ela["items"]) == (2, ITEMS)
    # seed 0: 10 items only by ElaLoRA, 2 only by LoRA, p = 2 * sum(C(12, k), k <= 2) / 2**12 = 0.0386
    # seed 1: none and 2, p = 0.5
    assert (ela["only_it"], ela["only_base"], ela["higher"], ela["lower"]) == (5, 2, 1, 0)
    assert ela["diff"] == pytest.approx(100 * (8 - 2) / (2 * ITEMS)) and ela["low"] < ela["diff"] < ela["high"]
    same = rows.loc["PRILoRA†", ["diff", "low", "high", "only_it", "higher"]]
    assert same.tolist() == [0, 0, 0, 0, 0]


def test_the_table_says_that_it_supports_no_claim(store: Path, tmp_path: Path) -> None:
    files = [path.name for path in report([store], tmp_path / "out", with_figures=False, quiet=True)]
    assert {"items.md", "items.csv", "items.tex"} <= set(files)
    text = (tmp_path / "out" / "items.md").read_text()
    assert "These tests alone support no claim." in text and "better" not in text and "worse" not in text
    assert "These tests alone support no claim." in (tmp_path / "out" / "index.html").read_text()


def test_one_seed_has_counts_and_no_interval(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, {1})
    run(tmp_path, "sora", 0, {2, 3})
    table, _ = item_tests(load_runs(tmp_path))
    assert table is not None and np.isnan(table.frame["low"]).all()
    assert table.rows == [["vader_movies", "SoRA", "1", "40", "−2.50", "1", "2", "0 of 1", "0 of 1"]]


def test_tasks_without_classes_are_named_and_left_out(store: Path) -> None:
    for method in ("lora", "sora"):
        task = {"task": "stsb", "identity__task": {"name": "stsb", "kind": "regression"}}
        write_run(store, result(method, 0, 80.0, **task))
    table, _ = item_tests(load_runs(store))
    assert table is not None and set(table.frame["task"]) == {"vader_movies"}
    assert "Not right or wrong by item, so left out: stsb." in to_markdown(table)


@pytest.mark.parametrize("damage", ["missing", "text", "other items", "garbage"])
def test_a_run_whose_predictions_do_not_fit_is_left_out_and_named(store: Path, damage: str) -> None:
    runs = load_runs(store)
    path = Path(runs[(runs["method"] == "elalora") & (runs["seed"] == 0)]["folder"].iloc[0]) / "predictions.parquet"
    items = pd.read_parquet(path)
    if damage == "text":
        items.assign(prediction="x").to_parquet(path)
    elif damage == "other items":
        items.assign(label=1 - items["label"]).to_parquet(path)
    elif damage == "garbage":
        path.write_bytes(b"PAR1 no parquet")
    else:
        path.unlink()
    table, _ = item_tests(load_runs(store))
    assert table is not None
    left = table.frame.set_index("shown")["seeds"]
    assert left["PRILoRA†"] == 2 and left["ElaLoRA (paper)"] == 1
    assert "Left out: " in table.notes[-1]


def test_a_store_too_large_for_it_says_how_to_choose(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 5)
    table, lines = item_tests(load_runs(store))
    assert table is None and "would read the predictions of 6 runs, more than 5; choose with --task" in lines[0]


def test_arms_on_other_data_are_not_compared(store: Path) -> None:
    for path in store.rglob("result.json"):
        whole = json.loads(path.read_text())
        if whole["method"] == "prilora":
            path.write_text(json.dumps(whole | {"data": whole["data"] | {"fingerprint": "another"}}))
    table, _ = item_tests(load_runs(store))
    assert table is not None and table.frame["shown"].tolist() == ["ElaLoRA (paper)"]
