"""A stranger's store is data: nothing in it is resolved, followed, waited for, or grown beyond reason."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from fuzzing import outcome
from pyarrow import parquet
from strangers import SECRET, Watch, plant, planted, stranger, watched, within

from analysis.__main__ import main as analyse
from analysis.reading.rounds import load_contributions, load_predictions, load_rounds
from analysis.reading.runs import load_runs
from elalora.errors import UserError
from experiments import contribution
from experiments.__main__ import main
from experiments.examples import examples
from experiments.reproduce_check import judge, ranges
from experiments.standins.stored_runs import failed, write_run
from experiments.standins.stored_runs import result as stored_result
from experiments.store.commands import plain_words
from experiments.store.compact import TEXTS, opened
from experiments.store.compaction import compact
from experiments.store.folder import RunFolder
from experiments.store.foreign import parse_yaml
from experiments.store.status import overview, read_store

INTERPOLATIONS = tuple(
    text.replace("SECRET", SECRET)
    for text in ("${oc.env:SECRET}", "x${oc.env:SECRET,y}", "${oc.decode:${oc.env:SECRET}}", "${seed}")
)
COLUMNS = ["idx", "label", "prediction", "score"]


def read_everything(store: Path, out: Path) -> Watch:
    """Runs every command over a store; each may refuse, and none may do anything else."""
    with watched() as watch:
        main(["status", str(store)])
        main(["status", str(store), "--json"])
        main(["verify", str(store)])
        main(["compact", str(store), "--out", str(out / "small")])
        for root, name in ((store, "whole"), (out / "small", "small")):
            analyse([str(root), "--out", str(out / name), "--no-figures"])
        for folder in store.glob("*/*"):
            main(["examples", str(folder)])
            plan: Any = SimpleNamespace(finished=lambda folder=folder: RunFolder(folder))
            expected = ranges()[:1]
            try:
                judge([SimpleNamespace(arm=expected[0].arm, task=expected[0].task, plan=plan)], expected)  # type: ignore[list-item]
            except UserError as error:
                print(error)
        contribution.main([str(store), "--items", "3"])
    return watch


@pytest.mark.parametrize("text", INTERPOLATIONS)
@pytest.mark.parametrize("whole", [True, False], ids=["replaced", "appended"])
def test_nothing_in_a_stored_run_is_resolved(
    text: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRET, "s3cr3t")
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "cache"))
    plant(stranger(tmp_path / "runs"), lambda value: text if whole else value + text)
    watch = read_everything(tmp_path / "runs", tmp_path / "out")
    assert SECRET not in watch.variables and not watch.network
    assert not [program for program in watch.programs if SECRET in program]
    said = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert "s3cr3t" not in said.out + said.err and b"s3cr3t" not in written
    assert "interpolation" in said.err


def loaded(*_: object) -> None:
    raise UserError("loads data")


def test_every_single_text_of_a_configuration_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "s3cr3t")
    monkeypatch.setattr("experiments.data.load_task", loaded)
    folder = stranger(tmp_path)
    whole = yaml.safe_load((folder / "config.yaml").read_text())
    count = len(json.dumps(planted(whole, lambda _: "@@@")).split("@@@")) - 1
    with watched() as watch:
        for chosen in range(count):
            numbers = iter(range(count))
            changed = planted(whole, lambda text: INTERPOLATIONS[0] if next(numbers) == chosen else text)  # noqa: B023
            (folder / "config.yaml").write_text(yaml.safe_dump(changed))
            with pytest.raises(UserError, match=r"config\.yaml holds the interpolation|loads data"):
                examples(folder, 1)  # it reads a part of the configuration only
            with pytest.raises(UserError, match=r"config\.yaml holds the interpolation"):
                contribution.measure(folder, 1)
    assert count > 20 and SECRET not in watch.variables and not watch.network


def hostile(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    elif kind == "folder":
        path.mkdir()


READERS = (
    lambda folder: RunFolder(folder).result(), load_rounds, load_predictions, load_contributions,
    lambda folder: examples(folder, 1), contribution.measured,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["fifo", "device", "huge", "folder"])
def test_what_is_no_regular_file_of_sane_size_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.data.load_task", loaded)
    names = [*TEXTS, "predictions.parquet"]
    store = tmp_path / "runs"
    good = stranger(store, 99)
    for seed, name in enumerate(names):
        hostile(stranger(store, seed) / name, kind)
    ended = write_run(store, stored_result("lora", 0, 80.0))
    (ended / "result.json").unlink()
    hostile(ended / "status.json", kind)
    with within(60):
        runs = read_store(store)
        assert len(runs) == len(names) + 2 and overview(runs)
        frame = load_runs(store)
        assert str(good) in set(frame["folder"]) and any("result.json" in line for line in frame.attrs["problems"])
        lines = compact([store], tmp_path / "small")
        assert not [line for line in lines if str(good) in line] and sum("left out" in line for line in lines) >= 8
        for folder in sorted(store.glob("*/elalora*")):
            for read in READERS:
                outcome(lambda: read(folder))  # noqa: B023


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_compact_store_that_is_no_file_is_one_line(kind: str, tmp_path: Path) -> None:
    hostile(tmp_path / "x.runs.parquet", kind)
    with within(10), pytest.raises(UserError, match=r"x\.runs\.parquet cannot be read"):
        opened(tmp_path)


def test_a_link_does_not_lead_a_private_file_into_a_compact_store(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text('{"step": 1, "password": "hunter2"}\n')
    folder = stranger(tmp_path / "runs")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(private)
    stranger(tmp_path / "runs", 1)
    with watched() as watch:
        lines = compact([tmp_path / "runs"], tmp_path / "small")
    assert "symbolic link" in lines[0] and folder.name in lines[0] and str(private) not in watch.files
    (tmp_path / "linked").symlink_to(tmp_path / "runs")  # folders may be links: stores lie on other disks
    frame = load_runs(tmp_path / "linked")
    assert len(frame) == 1 and "metrics.jsonl is a symbolic link" in frame.attrs["problems"][0]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
)


def test_an_alias_bomb_in_a_configuration_is_refused(tmp_path: Path) -> None:
    folder = stranger(tmp_path / "runs")
    inside = "overrides:\n- &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"- &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
    )
    for text in (BOMB, inside):
        (folder / "config.yaml").write_text(text)
        assert [run.overrides for run in read_store(tmp_path / "runs")] == [None]
        with pytest.raises(UserError, match=r"no finished run"):
            compact([tmp_path / "runs"], tmp_path / "small")
        with pytest.raises(UserError, match=r"config\.yaml.*alias"):
            examples(folder, 1)


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "[" * 100_000, "a: !!python/object/apply:os.system [x]", "!!int ''", "!!timestamp x", "a: !x 1",
     "? [a]\n: b", "!!float ''", "a: [", "\0", "!!bool x"],
)  # fmt: skip
def test_yaml_is_plain_values_or_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_yaml(text)


# -- parquet -------------------------------------------------------------------------------------------------


def table_of(**columns: Any) -> pa.Table:
    count = next(len(values) for values in columns.values())
    return pa.table({name: columns.get(name, np.zeros(count, np.int64)) for name in COLUMNS})


def bomb(kind: str) -> pa.Table:
    if kind == "rows":
        return table_of(idx=np.zeros(3_000_000, np.int64))
    text = "x" * (1 << 20)
    if kind == "texts":
        return table_of(label=pa.array([text] * 100))
    return table_of(label=pa.array([[text] * 10] * 10))


@pytest.mark.parametrize("kind", ["rows", "texts", "lists"])
def test_a_small_file_of_predictions_does_not_fill_the_memory(kind: str, tmp_path: Path) -> None:
    folder = stranger(tmp_path)
    parquet.write_table(bomb(kind), folder / "predictions.parquet", compression="zstd")
    assert (folder / "predictions.parquet").stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    for read in (lambda: load_predictions(folder), lambda: examples(folder, 1)):
        with pytest.raises(UserError, match="MiB are allowed"):
            read()
    assert pa.total_allocated_bytes() - before < 4 << 20
    assert "MiB are allowed" in compact_line(tmp_path)


def compact_line(store: Path) -> str:
    stranger(store, 50)
    return compact([store], store / "small")[0]


def test_many_real_predictions_are_read(tmp_path: Path) -> None:
    folder = stranger(tmp_path)
    draw = np.random.default_rng(0)
    count = 400_000
    label = pa.array([["a reference", "another"]] * count)
    table = table_of(idx=np.arange(count), label=label, score=draw.random(count))
    parquet.write_table(table, folder / "predictions.parquet")
    assert len(load_predictions(folder)) == count


def small_store(folder: Path, rows: int, **texts: str) -> Path:
    """A compact store written by hand, all of whose runs have these texts."""
    names = [f"lora-r4-s{number}-{number:010x}" for number in range(rows)]
    columns: dict[str, Any] = {"folder": names, **{name: pa.nulls(rows, pa.string()) for name in TEXTS}}
    columns |= {name.replace("_", "."): pa.array([text] * rows) for name, text in texts.items()}
    columns |= {name: pa.array([[]] * rows, pa.list_(pa.int64())) for name in COLUMNS}
    folder.mkdir()
    parquet.write_table(pa.table(columns), folder / "rte.runs.parquet", compression="zstd")
    return folder


@pytest.mark.parametrize(("rows", "size", "said"), [(200, 1 << 20, "MiB are allowed"), (30_000, 1, "30000 runs")])
def test_a_small_compact_store_does_not_fill_the_disk(
    rows: int, size: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "cache"))
    store = small_store(tmp_path / "small", rows, status_json='{"state": "failed"}', metrics_jsonl="x" * size)
    with pytest.raises(UserError, match=said):
        opened(store)
    assert not list((tmp_path / "cache").rglob("*.json"))


# -- commands ------------------------------------------------------------------------------------------------

DANGEROUS = [
    "store.root=/etc", "store.also=[/x]", "hydra.searchpath=[file:///tmp/x]", "hydra/launcher=evil", "data.root=/etc",
    "data.cache=/x", "init_from=/x/y", "init_from=../x", "init_from=..", "tracking.name=wandb", "tracking=wandb",
    "method=lora,elalora", "seed=0,1", "+x=1", "~method", "task=../../x", "model.path=/x", "trainer.lr=choice(1,2)",
    "task.hub_id=${oc.env:HOME}", "method.ranks_from='/x/y'", "launcher.partition=x", "task.name=`id`", "-m", "--help",
    "--config-dir=/x", "hydra.run.dir=x", "study.only=[x]", "+study=pilot", "method=lora\nseed=1", "model.name=$(id)",
    "store.root=x", "method.k=\u202ex", "threads=" + "9" * 900,
]  # fmt: skip


@pytest.mark.parametrize("word", DANGEROUS)
def test_a_word_that_could_reach_anywhere_is_no_part_of_a_shown_command(word: str, tmp_path: Path) -> None:
    assert plain_words([word]) == ([], [word])
    folder = stranger(tmp_path / "runs")
    (folder / "result.json").unlink()
    (folder / "status.json").write_text(json.dumps(failed("crash", "x")))
    words = "".join(f"- {json.dumps(other)}\n" for other in ("method=elalora", word, "budget=r4"))
    (folder / "config.yaml").write_text(f"overrides:\n{words}")
    text = overview(read_store(tmp_path / "runs"))
    assert all(line.isprintable() for line in text.splitlines())
    (command,) = [line for line in text.splitlines() if line.strip().startswith("python run.py")]
    assert shlex.split(command)[2:] == ["method=elalora", "budget=r4", f"store.root={tmp_path}/runs", "seed=0"]


def test_the_words_of_a_real_command_are_shown() -> None:
    words = [
        "method=elalora", "method.k=3", "task=rte", "trainer.lr=1e-3", "budget=r4", "budget.params=330000", "seed=3",
        "model.targets=[query,value]", "recipe=published", "protocol=tune", "data.train_items=100", "threads=2",
        "+method.options.a=1", 'method.ranks_from="elalora k=3"', "init_from='task=mnli'", "task.verify=false",
        f"method.ranks_from={'a' * 64}", "hydra/launcher=slurm", "trainer.max_grad_norm=null", "model.matrices=24",
    ]  # fmt: skip
    assert plain_words(words) == (words, [])
