"""Data are what the run was planned with: by digest when they are read, and by digest in every cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import image_lists, png, task_config, write_csv, write_parquet
from tiny_runs import quick

from elalora.errors import UserError
from experiments.config.task import DataConfig
from experiments.data import load_task, own
from experiments.data.text_items import tokenise
from experiments.runs.plan import Plan, make_plan
from experiments.runs.prepare import data_of

LOCAL = {"vtab": "cifar100", "summarization": "scitldr", "glue": "rte"}
TEXTS = {
    "glue": {"idx": [0, 1], "sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]},
    "summarization": {"document": ["a b", "c d"], "summary": ["a", "c"]},
}


def table(file: Path, word: str = "good") -> Path:
    return write_csv(file, [(f"{word} {i}" if i % 2 else f"bad {i}", i % 2) for i in range(20)])


def own_text(folder: Path, *more: str) -> Plan:
    words = ["task=own", "task.files.train=train.csv", "task.files.test=test.csv", f"data.root={folder}", *more]
    return make_plan(quick(folder, folder / "store", *words, "method=lora", "data.train_items=null"))


def own_images(folder: Path, name: str) -> Plan:
    words = ["task=own_images", f"task.files.train={name}", f"task.files.test={name}", "task.files.validation=null"]
    words += [
        "task.num_labels=2",
        "task.labels=null",
        "task.label=label",
        "task.text=[image]",
        f"data.root={folder}",
        "method=lora",
    ]
    return make_plan(quick(folder, folder / "store", *words, "data.train_items=null"))


def benchmark(folder: Path, source: str, *more: str) -> Plan:
    words = [f"task={LOCAL[source]}", f"data.root={folder}", "method=lora", *more]
    return make_plan(quick(folder, folder / "store", *words, "data.train_items=null"))


def benchmark_file(folder: Path, source: str) -> Path:
    """A small stand-in of a benchmark in data.root; returns a file that is read."""
    if source == "vtab":
        stems = {"train800": 4, "val200": 2, "test": 2}
        rows = {stem: [(f"images/{stem}{i}.png", i % 2) for i in range(count)] for stem, count in stems.items()}
        return image_lists(folder / "vtab-1k" / "cifar", rows) / "images" / "test0.png"
    place = folder / {"glue": "glue/rte", "summarization": "summarization/scitldr_a"}[source]
    for split in ("train", "validation", "test"):
        write_parquet(place / f"{split}.parquet", **TEXTS[source])
    return place / "train.parquet"


def changed(file: Path) -> None:
    """Another content of the same kind."""
    if file.suffix == ".png":
        file.write_bytes(png(99))
    else:
        columns = next(texts for name, texts in TEXTS.items() if name in str(file))
        first = next(name for name in columns if name != "idx")
        write_parquet(file, **(columns | {first: ["other", "words"]}))


# -- the user's own files --------------------------------------------------------------------------------------


def test_a_table_that_changed_in_the_middle_of_a_sweep_is_refused_when_it_is_read(tmp_path: Path) -> None:
    table(tmp_path / "train.csv"), table(tmp_path / "test.csv")
    plans = [own_text(tmp_path, f"seed={seed}") for seed in (0, 1)]
    table(tmp_path / "test.csv", "great")
    data_of.cache_clear()  # type: ignore[attr-defined]  # as in another worker
    for plan in plans:
        with pytest.raises(UserError, match="task own: the files of test changed after the run was planned") as caught:
            data_of(plan)
        assert "\n" not in str(caught.value)
    assert data_of(own_text(tmp_path)).splits["test"]["text"][1] == "great 1"


def test_a_table_that_is_removed_after_planning_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "train.csv"), table(tmp_path / "test.csv")
    plan = own_text(tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UserError, match="the files of test changed after"):
        data_of(plan)


def test_data_in_memory_are_those_of_their_plan(tmp_path: Path) -> None:
    table(tmp_path / "train.csv"), table(tmp_path / "test.csv")
    first = own_text(tmp_path)
    fingerprint = data_of(first).fingerprint
    table(tmp_path / "test.csv", "great")
    second = own_text(tmp_path)
    assert second.id != first.id and data_of(second).fingerprint != fingerprint
    assert data_of(first).fingerprint == fingerprint  # what was planned, though it no longer lies there


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "train.csv"), table(tmp_path / "test.csv")
    plan, check = own_text(tmp_path), own.check_rows

    def meanwhile(*args: Any) -> None:
        table(tmp_path / "train.csv", "great")
        check(*args)

    monkeypatch.setattr(own, "check_rows", meanwhile)
    with pytest.raises(UserError, match="task own: train.csv changed while it was being read"):
        data_of(plan)


@pytest.mark.parametrize("form", ["csv", "parquet", "struct", "folder"])
def test_images_are_part_of_the_id_wherever_they_are_named(form: str, tmp_path: Path) -> None:
    paths = [f"{'ab'[i % 2]}/{i}.png" for i in range(20)]
    for number, path in enumerate(paths):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(png(number))
    labels, name = [i % 2 for i in range(20)], "tree/rows.parquet"
    if form == "csv":
        name = "tree/rows.csv"
        write_csv(tmp_path / name, list(zip(paths, labels, strict=True)), header=("image", "label"))
    elif form == "folder":
        name = "tree"
    else:
        cells = [{"bytes": None, "path": path} for path in paths] if form == "struct" else paths
        write_parquet(tmp_path / name, image=cells, label=labels)
    plan = own_images(tmp_path, name)
    (tmp_path / "tree" / "README.md").write_text("read by nobody")
    assert own_images(tmp_path, name).id == plan.id
    data_of(plan)
    data_of.cache_clear()  # type: ignore[attr-defined]
    (tmp_path / "tree" / paths[3]).write_bytes(png(99))
    with pytest.raises(UserError, match="the files of train, test changed after the run was planned"):
        data_of(plan)
    assert own_images(tmp_path, name).id != plan.id


# -- benchmarks in data.root -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", LOCAL)
def test_a_benchmark_that_no_fingerprint_verifies_is_known_by_its_files(source: str, tmp_path: Path) -> None:
    file, words = benchmark_file(tmp_path, source), ["task.verify=false", "task.fingerprint=null"]
    plan = benchmark(tmp_path, source, *words)
    data_of(plan)
    data_of.cache_clear()  # type: ignore[attr-defined]
    changed(file)
    with pytest.raises(UserError, match=f"task {LOCAL[source]}: the files of t.* changed after the run was planned"):
        data_of(plan)
    assert benchmark(tmp_path, source, *words).id != plan.id
    shutil.rmtree(next(path for path in tmp_path.iterdir() if path.is_dir()))
    with pytest.raises(UserError, match="changed after the run was planned"):
        data_of(plan)  # and is not read from the hub instead


@pytest.mark.parametrize("source", ["glue", "summarization"])
def test_a_benchmark_with_a_fingerprint_is_the_same_from_every_source(source: str, tmp_path: Path) -> None:
    benchmark_file(tmp_path, source)
    assert benchmark(tmp_path, source).identity["task"]["files"] == {}
    assert benchmark(tmp_path, source).id == benchmark(tmp_path, source, "data.root=null").id


def test_planning_a_sweep_reads_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark_file(tmp_path, "vtab")
    digest, reads = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: reads.append(file.name) or digest(file, kind))
    plans = [benchmark(tmp_path, "vtab", "task.verify=false", f"seed={seed}") for seed in range(3)]
    images = [name for name in reads if name.endswith(".png")]
    assert len(images) == len(set(images)) == 8 and len({plan.id for plan in plans}) == 3
    (tmp_path / "vtab-1k" / "cifar" / "images" / "test1.png").unlink()
    assert benchmark(tmp_path, "vtab", "task.verify=false").id not in {plan.id for plan in plans}


# -- token ids -------------------------------------------------------------------------------------------------


def test_cached_token_ids_belong_to_the_settings_of_their_tokenizer(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    table(tmp_path / "train.csv", "good [SEP] film")
    task = task_config("own", files=dict.fromkeys(("train", "test"), "train.csv"))
    rows = load_task(task, DataConfig(root=str(tmp_path))).splits["train"]
    cached = []
    for change in ({}, {}, {"split_special_tokens": True}):
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | change
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        cached.append(tokenise(rows, AutoTokenizer.from_pretrained(folder), task, str(tmp_path / "cache")))
    assert [items.cached for items in cached] == [False, True, False]
    assert cached[2].lengths.sum() > cached[0].lengths.sum()
