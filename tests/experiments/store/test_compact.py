"""A compact store: the same tables and the same runs from a few small files, and nothing of the machine in them."""

from __future__ import annotations

import getpass
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from golden_tables import build
from made_up import believed
from pyarrow import parquet
from tiny_runs import quick

from analysis.reading.rounds import load_predictions, load_rounds
from analysis.reading.runs import load_runs
from analysis.report import report
from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import moved_run, result, write_run
from experiments.store.compact import TEXTS, opened
from experiments.store.compaction import compact
from experiments.store.find import find
from experiments.store.status import read_store


@pytest.fixture(autouse=True, scope="module")
def made_up_files() -> Iterator[None]:
    with believed():
        yield


CONFIG = {
    "data": {"root": "/nfs/lovelace/data", "cache": "~/cache", "train_items": 1600},
    "store": {"root": "/fast/lovelace/runs", "also": ["/fast/old"], "checkpoint_every": 200},
    "model": {"path": "/nfs/lovelace/models/bert", "targets": ["paper"]},
    "overrides": [
        "method=lora",
        "data.root=/nfs/lovelace/data",
        "store.root=../x",
        "model.path='/nfs/lovelace/models/bert'",
    ],
}


def complete(folder: Path, seed: int = 0) -> Path:
    """Adds what `write_run` leaves out."""
    draw = random.Random(seed)
    items = {
        "idx": range(40),
        "label": [i % 2 for i in range(40)],
        "prediction": [draw.randrange(2) for _ in range(40)],
    }
    pd.DataFrame({**items, "score": [draw.random() for _ in range(40)]}).to_parquet(folder / "predictions.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "metrics.jsonl").write_text('{"step": 10, "split": "train", "metric": "loss", "value": 0.5}\n')
    return folder


def store(root: Path, seeds: Any = range(4)) -> Path:
    for seed in seeds:
        complete(write_run(root, result("lora", seed, 80.0 + seed)), seed)
        complete(moved_run(root, seed, 81.0 + seed), 10 + seed)
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_every_table_is_the_same_from_the_compact_store(tmp_path: Path) -> None:
    build(tmp_path / "runs")
    for path in (tmp_path / "runs").glob("*/*/status.json"):
        if json.loads(path.read_text())["state"] not in ("done", "failed"):
            shutil.rmtree(path.parent)  # neither a result nor a failure
    for number, path in enumerate((tmp_path / "runs").glob("*/*/result.json")):
        complete(path.parent, number)
    compact([tmp_path / "runs"], tmp_path / "small")
    for name in ("runs", "small"):
        report([tmp_path / name], tmp_path / "tables" / name, with_figures=False, quiet=True)
    whole, small = (files_of(tmp_path / "tables" / name) for name in ("runs", "small"))
    assert {n: whole.pop(n) for n in ("index.html",)} and small.pop("index.html")
    assert whole == small and len(whole) > 10


def test_a_run_is_there_in_all_its_files(tmp_path: Path) -> None:
    (folder,) = (complete(moved_run(tmp_path / "runs", 0, 81.0)),)
    compact([tmp_path / "runs"], tmp_path / "small")
    there = opened(tmp_path / "small") / folder.parent.name / folder.name
    for name in set(TEXTS) - {"config.yaml", "status.json", "timing.jsonl", "contributions.json"}:
        assert (there / name).read_bytes() == (folder / name).read_bytes(), name
    assert not (there / "timing.jsonl").exists()  # the run has none
    pd.testing.assert_frame_equal(load_predictions(there), load_predictions(folder))
    assert load_rounds(there) == load_rounds(folder)


def test_the_same_runs_give_the_same_bytes_in_whatever_order_they_came(tmp_path: Path) -> None:
    compact([store(tmp_path / "all")], tmp_path / "once")
    for part in ([3, 1], [0], [1, 2]):
        compact([store(tmp_path / f"part{part}", part)], tmp_path / "parts")
    assert files_of(tmp_path / "once") == files_of(tmp_path / "parts")
    lines = compact([tmp_path / "all", tmp_path / "once"], tmp_path / "parts")
    assert lines[-1] == "8 runs, 0 of them new"
    assert files_of(tmp_path / "once") == files_of(tmp_path / "parts")


def test_no_folder_of_the_machine_is_kept_and_the_rest_of_the_configuration_is(tmp_path: Path) -> None:
    compact([store(tmp_path / "runs", [0])], tmp_path / "small")
    texts = [path.read_text() for path in opened(tmp_path / "small").rglob("*.*") if path.suffix != ".parquet"]
    for word in ("/nfs", "/fast", "lovelace", str(tmp_path), "~"):
        assert not any(word in text for text in texts), word
    config = yaml.safe_load(next(opened(tmp_path / "small").rglob("config.yaml")).read_text())
    assert config["overrides"] == ["method=lora", "model.path=bert"]
    assert config["model"] == {"path": "bert", "targets": ["paper"]}
    assert config["data"] == {"root": None, "cache": None, "train_items": 1600}
    assert config["store"] == {"root": "runs", "also": [], "checkpoint_every": 200}


def test_a_real_run_counts_where_its_compact_store_is_named(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("method=elalora", "trainer.max_steps=25", "method.t_initial=2", "method.t_final=5", "method.interval=5")
    source = make_plan(quick(tiny_model_dir, tmp_path / "runs", *words))
    done = run(source)
    compact([tmp_path / "runs"], tmp_path / "small")
    raw = b"".join(files_of(opened(tmp_path / "small") / "vader_movies" / source.folder.path.name).values())
    assert str(tmp_path).encode() not in raw
    assert getpass.getuser() == "root" or getpass.getuser().encode() not in raw
    also = f'store.also=["{tmp_path / "small"}"]'
    again = make_plan(quick(tiny_model_dir, tmp_path / "elsewhere", *words, also))
    assert run(again) | {"files": done["files"]} == done and "done before" in capsys.readouterr().out
    assert make_plan(quick(tiny_model_dir, tmp_path / "elsewhere", *words)).finished() is None
    transplant = make_plan(
        quick(tiny_model_dir, tmp_path / "elsewhere", "method=svd_lora", f"method.ranks_from={done['id']}", also)
    )
    assert transplant.source("method.ranks_from").finished().result()["ranks"] == done["ranks"]
    taken = make_plan(
        quick(tiny_model_dir, tmp_path / "elsewhere", *words, f"init_from={done['id']}", "trainer.lr=1e-4", also)
    )
    with pytest.raises(UserError, match="adapter"):
        run(taken)


def test_status_analysis_and_find_read_a_compact_store(tmp_path: Path) -> None:
    compact([store(tmp_path / "runs")], tmp_path / "small")
    assert [run.state for run in read_store(tmp_path / "small")] == ["done"] * 8
    runs = load_runs(tmp_path / "small")
    whole = load_runs(tmp_path / "runs")
    pd.testing.assert_frame_equal(runs.drop(columns="folder"), whole.drop(columns="folder"))
    wanted = whole["id"][0]
    found = find([str(tmp_path / "small")], wanted)
    assert found is not None and found.result()["id"] == wanted
    assert find([str(tmp_path / "small")], "0" * 64) is None


def test_contributions_measured_later_are_taken_over(tmp_path: Path) -> None:
    store(tmp_path / "runs", [0])
    compact([tmp_path / "runs"], tmp_path / "small")
    (folder,) = (tmp_path / "runs" / "vader_movies").glob("elalora*")
    (folder / "contributions.json").write_text('{"schema": 1}')
    lines = compact([tmp_path / "runs"], tmp_path / "small")
    assert lines[-1] == "2 runs, 0 of them new"
    (there,) = opened(tmp_path / "small").rglob("contributions.json")
    assert there.parent.name == folder.name and there.read_text() == '{"schema": 1}'


def test_a_repetition_with_the_same_scores_lends_its_contributions_and_nothing_else(tmp_path: Path) -> None:
    store(tmp_path / "runs", [0])
    compact([tmp_path / "runs"], tmp_path / "small")
    path = next((tmp_path / "runs").rglob("lora*/result.json"))
    first = json.loads(path.read_text())
    slower = {**first, "commit": "f" * 40, "cost": {**first["cost"], "train_seconds": 1e6}}
    path.write_text(json.dumps(slower))
    (path.parent / "contributions.json").write_text('{"schema": 1}')
    assert not [line for line in compact([tmp_path / "runs"], tmp_path / "small") if "left out" in line]
    (there,) = opened(tmp_path / "small").rglob("contributions.json")
    assert json.loads((there.parent / "result.json").read_text()) == first


def test_a_run_with_another_result_does_not_replace_the_stored_one(tmp_path: Path) -> None:
    store(tmp_path / "runs", [0])
    compact([tmp_path / "runs"], tmp_path / "small")
    before = files_of(tmp_path / "small")
    path = next((tmp_path / "runs").rglob("lora*/result.json"))
    changed = json.loads(path.read_text())
    changed["readings"]["last"]["report"]["metrics"]["accuracy"] += 1
    path.write_text(json.dumps(changed))
    assert "another result of this run" in compact([tmp_path / "runs"], tmp_path / "small")[0]
    assert files_of(tmp_path / "small") == before


def test_a_damaged_run_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    store(tmp_path / "runs", [0])
    next((tmp_path / "runs").rglob("lora*/predictions.parquet")).unlink()
    lines = compact([tmp_path / "runs"], tmp_path / "small")
    assert "lora-r4-s0" in lines[0] and "left out" in lines[0] and lines[-1] == "1 runs, 1 of them new"


def test_a_failed_run_is_kept_without_its_traceback_until_it_has_a_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", result("lora", 0, 80.0))
    whole = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    error = "NotFinite: loss is nan in /nfs/lovelace/x.py"
    status = {"state": "failed", "failure": "nan", "error": error, "traceback": "File /nfs/lovelace", "pid": 7}
    (folder / "status.json").write_text(json.dumps(status))
    compact([tmp_path / "runs"], tmp_path / "small")
    (kept,) = load_runs(tmp_path / "small").attrs["unfinished"]
    assert (kept.arm, kept.ending, kept.error) == ("lora-r4", "NaN", "NotFinite: loss is nan in x.py")
    assert (read_store(tmp_path / "small")[0].state, read_store(tmp_path / "small")[0].failure) == ("failed", "nan")
    (folder / "status.json").write_text('{"state": "preempted"}')
    assert compact([tmp_path / "runs"], tmp_path / "small")[-1] == "1 runs, 0 of them new"
    (folder / "result.json").write_text(whole)
    complete(folder)
    compact([tmp_path / "runs"], tmp_path / "small")
    assert len(load_runs(tmp_path / "small")) == 1 and not load_runs(tmp_path / "small").attrs["unfinished"]


@pytest.mark.parametrize("name", ["../lora-r4-s0-0123456789", "/tmp/lora-r4-s0-0123456789", "lora", ".", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    compact([store(tmp_path / "runs", [0])], tmp_path / "small")
    (file,) = (tmp_path / "small").iterdir()
    table = parquet.read_table(file)
    names = pa.array([name, *table["folder"].to_pylist()[1:]], pa.string())
    parquet.write_table(table.set_column(table.schema.get_field_index("folder"), "folder", names), file)
    with pytest.raises(UserError, match="invalid run name"):
        opened(tmp_path / "small")
    assert not [path for path in tmp_path.rglob("*") if "0123456789" in path.name]


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "rte.runs.parquet").write_bytes(content)
    assert main(["status", str(tmp_path / "small")]) == 2
    assert "compact the runs again" in capsys.readouterr().err
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "small" / "rte.runs.parquet")
    with pytest.raises(UserError, match="compact the runs again"):
        load_runs(tmp_path / "small")


def test_the_command_adds_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "runs", [0])
    words = ["compact", str(tmp_path / "runs"), "--out", str(tmp_path / "small")]
    assert main(words) == 0 and "vader_movies.runs.parquet: 2 runs" in capsys.readouterr().out
    assert main(["compact", str(tmp_path / "none"), "--out", str(tmp_path / "small")]) == 2
    assert "folder of runs" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["compact", str(tmp_path / "empty"), "--out", str(tmp_path / "other")]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_the_measured_runs_have_checksums_and_nothing_contradicts_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(CHECKOUT / "analysis" / "measured")]) == 0
    files = (CHECKOUT / "analysis" / "measured").glob("*.parquet")
    count = sum(parquet.read_metadata(file).num_rows for file in files)
    assert f"{count} finished runs, 0 with problems" in capsys.readouterr().out
