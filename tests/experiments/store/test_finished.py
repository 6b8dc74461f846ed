"""What a finished run says is checked wherever it is read: before it is skipped, in tables, and by `verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_runs import METHODS, WORDS, words_of
from pyarrow import parquet
from tiny_runs import quick

from analysis.reading.runs import load_runs
from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs.plan import Plan, make_plan
from experiments.runs.run import run
from experiments.store.compact import opened
from experiments.store.compaction import compact
from experiments.store.finished import id_of
from experiments.store.folder import RunFolder
from experiments.training.metrics import compute
from experiments.verify import scores_again


@pytest.fixture(scope="module")
def done(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = make_plan(quick(tiny_model_dir, tmp_path_factory.mktemp("runs"), "method=lora", "trainer.log_every=5"))
    run(plan)
    return plan


@pytest.fixture
def copy(done: Plan, tmp_path: Path) -> Path:
    """A copy of the store; gives the folder of its run."""
    folder = tmp_path / "runs" / done.config.task.name / done.folder.path.name
    shutil.copytree(done.folder.path, folder)
    return folder


def edit(folder: Path, **values: Any) -> None:
    """Sets values of result.json by dotted keys, written with double underscores."""
    result = json.loads((folder / "result.json").read_text())
    for key, value in values.items():
        *path, last = key.split("__")
        tree = result
        for part in path:
            tree = tree[part]
        tree[last] = value
    (folder / "result.json").write_text(json.dumps(result))


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def flip(name: str) -> Callable[[Path], None]:
    """Changes one byte and no size."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name(folder.name[:-10] + "0123456789"))


SEEN_BY_ALL = {
    "half an adapter": (cut("adapter/adapter_model.safetensors"), "adapter/adapter_model.safetensors has"),
    "half the predictions": (cut("predictions.parquet"), "predictions.parquet has"),
    "half the metrics": (cut("metrics.jsonl"), "metrics.jsonl has"),
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "a name too long for a disk": (
        lambda folder: edit(folder, files={f"adapter/{'x' * 300}": {"size": 1, "sha256": ""}}), "File name too long"),
    "another id": (lambda folder: edit(folder, id="0" * 64), "hash of its identity"),
    "another seed": (lambda folder: edit(folder, identity__seed=7), "hash of its identity"),
    "another name": (renamed, "name ends in 0123456789"),
    "150 points": (lambda folder: edit(folder, readings__last__report__metrics__accuracy=150.0), "its range is 0 to"),
    "1e308 points": (lambda folder: edit(folder, readings__last__report__metrics__accuracy=1e308), "its range is 0 to"),
    "negative parameters": (lambda folder: edit(folder, counts__final__params=-5), "counts.final.params is -5"),
    "negative seconds": (lambda folder: edit(folder, cost__train_seconds=-1.0), "cost.train_seconds is -1.0"),
    "negative steps": (lambda folder: edit(folder, steps=-1), "steps is -1, not a number from 0"),
    "a share of 1e308": (lambda folder: edit(folder, moves__gross_share=1e308), "moves.gross_share is 1e+308"),
    "a net share above 1": (lambda folder: edit(folder, moves__net_share=1.5), "not a number from 0 to 1"),
    "a constant answer of 1e308": (lambda folder: edit(folder, data__majority={"accuracy": 1e308}), "its range is 0"),
    "a seed that it did not train": (lambda folder: edit(folder, seed=7), "its seed is 7, its identity has 0"),
    "another method's name": (lambda folder: edit(folder, method="elalora"), "its identity has lora"),
    "another task's name": (lambda folder: edit(folder, task="rte"), "its identity has vader_movies"),
    "another model's name": (lambda folder: edit(folder, model="roberta_base"), "its model is roberta_base"),
    "another budget": (lambda folder: edit(folder, budget="r8"), "its identity has r4"),
    "another protocol": (lambda folder: edit(folder, protocol="paper_best"), "its protocol is paper_best"),
    "fewer ranks than it started with": (lambda folder: edit(folder, counts__initial__rank_sum=7), "its ranks sum to"),
    "more ranks at the start than at the peak": (
        lambda folder: edit(folder, counts__initial__rank_sum=10**6), "its ranks sum to"
    ),
    "another rank sum": (lambda folder: edit(folder, counts__final__rank_sum=7), "its ranks sum to"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN_BY_ALL)
def test_no_reader_believes_a_changed_run(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, why = SEEN_BY_ALL[name]
    assert len(load_runs(copy.parents[1])) == 1
    change(copy)
    [folder] = copy.parent.iterdir()
    with pytest.raises(UserError, match="move the folder away") as refused:
        RunFolder(folder).result()
    [line] = load_runs(copy.parents[1]).attrs["problems"]
    assert why in str(refused.value) and why in line
    assert main(["verify", str(copy.parents[1])]) == 1
    assert why in capsys.readouterr().out


@pytest.mark.parametrize(
    "method", [n if n == "increlora" else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_tables_believe_a_run_of_every_method(method: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """IncreLoRA counts directions at the start that are not yet among its ranks."""
    run(make_plan(quick(tiny_model_dir, tmp_path, *WORDS, *words_of(method).split())))
    found = load_runs(tmp_path)
    assert (len(found), found.attrs["problems"]) == (1, [])


def test_a_changed_run_is_not_skipped_as_done(done: Plan, tiny_model_dir: Path, copy: Path) -> None:
    again = make_plan(quick(tiny_model_dir, copy.parents[1], "method=lora", "trainer.log_every=5"))
    assert run(again)["id"] == done.id
    cut("adapter/adapter_model.safetensors")(copy)
    with pytest.raises(UserError, match="adapter_model.safetensors has .* bytes, .* when the run was done"):
        run(again)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("without", [{}, {"files": None}, {"files": {}}], ids=["checksums", "none", "empty"])
def test_a_score_that_its_predictions_contradict_enters_no_table(
    metric: str, without: dict[str, Any], copy: Path
) -> None:
    edit(copy, **{f"readings__last__report__metrics__{metric}": 99.0}, **without)
    [line] = load_runs(copy.parents[1]).attrs["problems"]
    assert f"its {metric} is 99.00, its predictions give" in line


def test_a_best_score_that_its_lines_contradict_is_not_read(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "trainer.evaluations=3"))
    best = run(plan)["readings"]["best"]["report"]["metrics"]["accuracy"]
    assert main(["verify", str(tmp_path)]) == 0
    [row] = load_runs(tmp_path, reading="best").to_dict("records")
    assert row["score"] == best
    edit(plan.folder.path, readings__best__report__metrics__accuracy=best + 5)
    [line] = load_runs(tmp_path, reading="best").attrs["problems"]
    assert main(["verify", str(tmp_path)]) == 1
    for text in (line, capsys.readouterr().out):
        assert f"its best accuracy is {best + 5}, metrics.jsonl has {best} at that step" in text


def test_an_adapter_is_readable_by_whom_its_result_is(done: Plan) -> None:
    modes = {path.name: path.stat().st_mode for path in done.folder.path.rglob("*") if path.is_file()}
    assert modes["adapter_model.safetensors"] == modes["result.json"] == modes["predictions.parquet"]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1), st.integers(0, 1))
@settings(deadline=None)
def test_scores_computed_again_are_those_of_training(items: list[tuple[int, int]], shift: int) -> None:
    labels, predictions = (np.array(column) + shift for column in zip(*items, strict=True))
    names = ["accuracy", "mcc"] if shift else ["accuracy", "f1", "mcc"]  # F1 is that of class 1 of two
    again, first = scores_again(names, labels, predictions), compute(names, labels, predictions)[0]
    assert again == pytest.approx(first, rel=1e-9, abs=1e-9) and again.keys() == first.keys()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "timing.jsonl", "config.yaml"])
def test_verify_sees_one_changed_bit(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(copy.parents[1])
    assert main(["verify", store]) == 0 and "1 finished run, 0 with problems" in capsys.readouterr().out
    flip(name)(copy)
    assert main(["verify", store]) == 1
    assert f"{copy}: {name} was changed after the run was done" in capsys.readouterr().out


def test_an_adapter_may_be_deleted_as_a_whole(copy: Path) -> None:
    shutil.rmtree(copy / "adapter")
    assert RunFolder(copy).result() and len(load_runs(copy.parents[1])) == 1
    assert main(["verify", str(copy.parents[1])]) == 0


@pytest.mark.parametrize("checksums", [True, False])
def test_one_run_under_four_seeds_counts_once(checksums: bool, copy: Path) -> None:
    if not checksums:
        edit(copy, files=None)
    for seed in (7, 8, 9):
        other = copy.with_name("other")
        shutil.copytree(copy, other)
        edit(other, identity__seed=seed, seed=seed)
        result = json.loads((other / "result.json").read_text())
        result["id"] = id_of(result["identity"])
        (other / "result.json").write_text(json.dumps(result))
        other.rename(copy.with_name(f"lora-r4-s{seed}-{result['id'][:10]}"))
    runs = load_runs(copy.parents[1])
    assert len(runs) == 1 and len(runs.attrs["problems"]) == 3
    assert all(f"its metrics.jsonl is that of {copy}" in line for line in runs.attrs["problems"])


def test_a_compact_store_keeps_the_checksums_of_the_files_that_it_keeps(copy: Path, tmp_path: Path) -> None:
    compact([copy.parents[1]], tmp_path / "small")
    assert main(["verify", str(tmp_path / "small")]) == 0
    [path] = opened(tmp_path / "small").glob("*/*/result.json")
    assert set(json.loads(path.read_text())["files"]) == {
        "manifest.json",
        "metrics.jsonl",
        "timing.jsonl",
        "ranks.jsonl",
    }
    flip("metrics.jsonl")(path.parent)
    assert main(["verify", str(path.parents[2])]) == 1


def test_predictions_of_another_number_of_items_are_refused(copy: Path) -> None:
    table = parquet.read_table(copy / "predictions.parquet")
    parquet.write_table(pa.concat_tables([table, table]), copy / "predictions.parquet")
    edit(copy, **{"files__predictions.parquet": {"size": (copy / "predictions.parquet").stat().st_size, "sha256": ""}})
    [line] = load_runs(copy.parents[1]).attrs["problems"]
    assert "predictions.parquet has" in line and "items" in line
