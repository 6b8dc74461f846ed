"""The index of a store: a copy that is never trusted over the run folders, and that may be lost at any time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from analysis.reading import index
from analysis.reading.index import INDEX
from analysis.reading.runs import load_runs
from experiments.standins.stored_runs import moved_run, result, write_run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 runs, enough for an index."""
    root = tmp_path / "runs"
    for seed in range(60):
        write_run(root, result("lora", seed, 80.0 + seed / 100))
        moved_run(root, seed, 81.0, flags=["collapsed"] if seed == 3 else [])
    return root


def from_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    with monkeypatch.context() as patch:
        patch.setattr(index, "LEAST_RUNS", 10**9)
        return load_runs(root)


def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run folders that are read from now on."""
    read: list[str] = []
    rows_of = index.rows_of

    def noted(folder: Path) -> dict:
        read.append(folder.name)
        return rows_of(folder)

    monkeypatch.setattr(index, "rows_of", noted)
    return read


def test_the_index_gives_what_the_folders_give_in_every_cell(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = from_folders(store, monkeypatch)
    assert not (store / INDEX).exists()
    first = load_runs(store)
    assert (store / INDEX).is_file()
    read = files_read(monkeypatch)
    second = load_runs(store)
    assert not read and len(wanted) == 120
    for name in wanted:
        assert wanted[name].tolist() == first[name].tolist() == second[name].tolist() or wanted[name].isna().all(), name
    assert [type(v) for v in wanted.iloc[0]] == [type(v) for v in second.iloc[0]]


def test_only_what_is_new_or_changed_is_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_runs(store)
    changed = next((store / "vader_movies").glob("lora-r4-s7-*"))
    whole = json.loads((changed / "result.json").read_text())
    whole["readings"]["last"]["report"]["metrics"]["accuracy"] = 12.5
    (changed / "result.json").write_text(json.dumps(whole))
    dirty = next((store / "vader_movies").glob("lora-r4-s8-*"))
    (dirty / "manifest.json").write_text(json.dumps({"commit": "other"}))
    gone = next((store / "vader_movies").glob("lora-r4-s9-*"))
    shutil.rmtree(gone)
    new = write_run(store, result("lora", 60, 70.0))
    read = files_read(monkeypatch)
    runs = load_runs(store).set_index("folder")
    assert sorted(read) == sorted([changed.name, dirty.name, new.name])
    assert runs.loc[str(changed), "score"] == 12.5 and runs.loc[str(new), "score"] == 70.0
    assert runs.loc[str(dirty), "manifest"]["commit"] == "other"
    assert str(gone) not in runs.index and len(runs) == 120


def replaced(table: pyarrow.Table, name: str, value: object) -> pyarrow.Table:
    at = table.schema.get_field_index(name)
    column = pyarrow.array([value] * len(table), table.schema.field(name).type)
    return table.set_column(at, table.schema.field(name), column)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"PAR1 no such thing"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: parquet.write_table(parquet.read_table(path).drop_columns(["score"]), path),
        lambda path: parquet.write_table(
            parquet.read_table(path).replace_schema_metadata({"elalora_index": "0"}), path
        ),
        lambda path: parquet.write_table(replaced(parquet.read_table(path), "score", None), path),
        lambda path: parquet.write_table(replaced(parquet.read_table(path), "score", float("inf")), path),
        lambda path: parquet.write_table(replaced(parquet.read_table(path), "ranks_final", '{"a": "many"}'), path),
        lambda path: parquet.write_table(replaced(parquet.read_table(path), "settings", "{"), path),
        lambda path: parquet.write_table(replaced(parquet.read_table(path), "flags", '[["nested"]]'), path),
    ],
)
def test_a_damaged_or_foreign_index_is_made_anew(store: Path, damage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_runs(store)
    damage(store / INDEX)
    read = files_read(monkeypatch)
    after = load_runs(store)
    assert len(read) == 120 and after["score"].tolist() == before["score"].tolist()
    read.clear()
    assert len(load_runs(store)) == 120 and not read


def test_an_index_that_cannot_be_written_is_done_without(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(parquet, "write_table", refuse)
    assert len(load_runs(store)) == 120
    assert [p.name for p in store.iterdir()] == ["vader_movies"]


def test_a_moved_store_keeps_its_index(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_runs(store)
    moved = store.rename(tmp_path / "elsewhere")
    read = files_read(monkeypatch)
    runs = load_runs(moved)
    assert not read and all(folder.startswith(str(moved)) for folder in runs["folder"])


def test_a_reading_that_runs_do_not_have_is_a_problem_with_the_index_too(store: Path) -> None:
    best = {"step": 75, "report": {"split": "test", "metrics": {"accuracy": 90.0}}, "select": None}
    write_run(store, result("lora", 99, 80.0, readings__best=best))
    for _ in range(2):
        runs = load_runs(store, reading="best")
        assert runs["score"].tolist() == [90.0]
        assert len(runs.attrs["problems"]) == 120 and "no reading 'best'" in runs.attrs["problems"][0]


def test_a_damaged_result_is_named_on_every_reading(store: Path) -> None:
    folder = next((store / "vader_movies").glob("lora-r4-s0-*"))
    (folder / "result.json").write_text("{")
    for _ in range(2):
        runs = load_runs(store)
        assert len(runs) == 119 and len(runs.attrs["problems"]) == 1
