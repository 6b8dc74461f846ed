"""The user's own files: every format, split and image form, and what a run is known by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from datasets_on_disk import image_lists, load, own, png, task_config, write_csv, write_jsonl, write_parquet
from tiny_runs import config, quick

from experiments.data.digests import digests
from experiments.runs.plan import make_plan

ROWS = [("good film", "yes"), ('she said "no", twice', "no"), ("line\none", "yes"), ("naïve", "no")]


# -- formats -----------------------------------------------------------------------------------------------------


def test_csv_jsonl_and_parquet_with_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    texts, labels = zip(*ROWS, strict=True)
    write_csv(tmp_path / "rows.csv", ROWS)
    write_jsonl(tmp_path / "rows.jsonl", [{"text": t, "label": y, "more": 1} for t, y in ROWS])
    write_parquet(tmp_path / "rows.parquet", text=list(texts), label=list(labels))
    loaded = [
        own(tmp_path, f"rows.{suffix}", None, files={"validation": f"rows.{suffix}"})
        for suffix in ("csv", "jsonl", "parquet")
    ]
    assert len({data.fingerprint for data in loaded}) == 1
    rows = loaded[0].splits["train"][:]
    assert rows == {"idx": [0, 1, 2, 3], "text": list(texts), "label": [1, 0, 1, 0]}  # sorted: no, yes
    assert list(loaded[0].splits) == ["train", "validation"]
    assert loaded[0].splits["validation"]["idx"][:] == [4, 5, 6, 7]


def test_a_tsv_takes_quotation_marks_as_they_are_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes('\ufefftext\tlabel\n"so\t1\nit ends"\t0\n'.encode())
    data = own(tmp_path, "a.tsv", None, files={"validation": "a.tsv"})
    assert data.splits["train"]["text"][:] == ['"so', 'it ends"']


def test_two_text_columns_a_label_column_and_own_numbers_are_taken_by_name(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "stars": 2, "idx": 10}, {"a": "z", "b": "", "stars": 0, "idx": 5}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    data = own(tmp_path, "a.jsonl", None, files={"validation": "a.jsonl"}, text=["a", "b"], label="stars", num_labels=3)
    assert data.splits["train"][:] == {"idx": [10, 5], "a": ["x", "z"], "b": ["y", ""], "label": [2, 0]}


def test_named_classes_have_the_ids_of_the_list_even_where_the_files_lack_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "low"), ("b", "high")])
    write_csv(tmp_path / "test.csv", [("c", "high")])
    data = own(
        tmp_path, "train.csv", None, files={"validation": "test.csv"}, labels=["low", "middle", "high"], num_labels=3
    )
    assert data.splits["train"]["label"][:] == [0, 2] and data.splits["validation"]["label"][:] == [2]


def test_class_names_that_are_numbers_go_by_the_list_of_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "5"), ("b", "1")])
    data = own(tmp_path, test="train.csv", files={"validation": "train.csv"}, labels=["1", "5"])
    assert data.splits["train"]["label"][:] == [1, 0]


def test_regression_reads_numbers_from_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "1.5"), ("b", "-2e-1")])
    data = own(tmp_path, files={"validation": "train.csv"}, kind="regression", num_labels=1, metrics=["pearson"])
    assert data.splits["test"]["label"][:] == pytest.approx([1.5, -0.2])


def test_summaries_have_their_references_or_else_the_one_summary(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"body": "long", "tldr": "s", "references": ["s", "t"]}])
    write_csv(tmp_path / "b.csv", [("long", "s")], header=("body", "tldr"))
    change = {"kind": "summarization", "num_labels": 1, "text": ["body"], "label": "tldr", "metrics": ["rouge1"]}
    data = own(tmp_path, "b.csv", "a.jsonl", files={"validation": "b.csv"}, **change)
    assert data.splits["test"][:] == {"idx": [2], "body": ["long"], "label": ["s"], "references": [["s", "t"]]}
    assert data.splits["train"]["references"][:] == [["s"]]


def test_cifar_10_is_a_task_by_its_config_alone(shared: Path) -> None:
    import pyarrow.parquet as parquet

    data = load("own_images", shared / "data")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 800, "validation": 200, "test": 10000}
    table = parquet.read_table(shared / "data" / "images" / "cifar10" / "val200.parquet").to_pydict()
    assert data.splits["validation"]["image"][:] == table["image"]
    assert data.splits["validation"]["label"][:] == table["label"]
    assert Counter(data.splits["train"]["label"][:]) == dict.fromkeys(range(10), 80)


def test_images_are_bytes_paths_structs_or_class_folders_and_all_the_same_data(tmp_path: Path) -> None:
    files = [png(1), png(2)]
    for folder, content in zip(("ants", "bees"), files, strict=True):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        (tmp_path / "tree" / folder / "0.png").write_bytes(content)
    write_parquet(tmp_path / "bytes.parquet", image=files, label=["ants", "bees"])
    structs = [{"bytes": b, "path": None} for b in files]
    write_parquet(tmp_path / "structs.parquet", image=structs, label=["ants", "bees"])
    write_csv(tmp_path / "p.csv", [("tree/ants/0.png", "ants"), ("tree/bees/0.png", "bees")], header=("image", "label"))
    change = {"name": "own_images", "num_labels": 2}
    prints = {
        own(tmp_path, given, None, files={"validation": given}, **change).fingerprint
        for given in ("bytes.parquet", "structs.parquet", "p.csv", "tree")
    }
    assert len(prints) == 1


def test_another_name_of_the_image_column_is_read_as_image(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", img=[png(1), png(2)], label=[0, 1])
    data = own(tmp_path, "a.parquet", None, "own_images", files={"validation": "a.parquet"}, text=["img"], num_labels=2)
    assert data.splits["train"].column_names == ["idx", "image", "label"]


# -- splits ------------------------------------------------------------------------------------------------------


def test_validation_is_a_tenth_of_train_drawn_by_hash_with_equal_shares(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"text {i}", "ab"[i % 4 == 0]) for i in range(200)])
    write_csv(tmp_path / "test.csv", [("other", "a")])
    data = own(tmp_path, test="test.csv")
    train, validation = data.splits["train"][:], data.splits["validation"][:]
    assert sorted(train["idx"] + validation["idx"]) == list(range(200))
    assert Counter(validation["label"]) == {0: 15, 1: 5}
    # Of each class those whose hash comes first; the number of a row decides, nothing else.
    for label in (0, 1):
        members = [i for i in range(200) if (i % 4 == 0) == (label == 1)]
        ranked = sorted(members, key=lambda i: hashlib.sha256(f"own/validation/{i}".encode()).digest())
        found = [i for i, y in zip(validation["idx"], validation["label"], strict=True) if y == label]
        assert found == sorted(ranked[: 15 if label == 0 else 5])
    assert own(tmp_path, test="test.csv").fingerprint == data.fingerprint


def test_three_given_splits_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_csv(tmp_path / f"{name}.csv", [(name, 0), (name, 1)])
    data = own(tmp_path, test="test.csv", files={"validation": "validation.csv"})
    assert {name: set(rows["text"][:]) for name, rows in data.splits.items()} == {
        name: {name} for name in ("train", "validation", "test")
    }


def test_paths_begin_in_the_data_folder_or_are_absolute(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", 0), ("b", 1)])
    absolute = str(tmp_path / "train.csv")
    inside = own(tmp_path, files={"validation": "train.csv"})
    assert (
        load("own", None, files=dict.fromkeys(("train", "validation", "test"), absolute)).splits["train"][:]
        == (inside.splits["train"][:])
    )


# -- a run and its identity --------------------------------------------------------------------------------------------


def test_a_limit_of_training_items_is_the_tasks_that_declared_it() -> None:
    """trainer=quick trains on 1,600 items of a benchmark, and on all of the user's own."""
    own_task = ["task=own", "task.files.train=a.csv", "task.files.test=b.csv"]
    assert make_plan(config(*own_task)).config.data.train_items is None
    assert make_plan(config("task=own_images")).config.data.train_items is None
    plan = make_plan(config("task=rte"))
    assert plan.config.data.train_items == 1600 == plan.identity["data"]["train_items"]
    assert "quick_items" not in plan.identity["task"]
    assert make_plan(config("task=rte", "trainer=standard")).config.data.train_items is None


def test_own_text_trains_from_a_csv_by_settings_alone(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.launch.choose import run_all

    rows = [("a good film" if i % 2 else "a bad film", "yes" if i % 2 else "no") for i in range(40)]
    write_csv(tmp_path / "train.csv", rows, header=("review", "liked"))
    write_csv(tmp_path / "test.csv", rows[:10], header=("review", "liked"))
    words = ["task=own", "task.name=films", "task.files.train=train.csv", "task.files.test=test.csv", "method=lora"]
    words += ["task.text=[review]", "task.label=liked", f"data.root={tmp_path}", "data.train_items=null"]
    assert run_all([quick(tiny_model_dir, tmp_path / "store", *words, "trainer.max_steps=2")]) == 0
    said = capsys.readouterr()
    assert "36 of 36 training items" in said.out and "36 of 36 training items" in said.err
    (result,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "films").glob("*/result.json"))
    assert result["readings"]["last"]["report"]["split"] == "test" and result["data"]["source"] == "own files"
    assert (result["data"]["train_items"], result["data"]["report_items"]) == (36, 10)
    assert result["data"]["verified"] and "unverified data" not in result["flags"]


def test_a_table_with_another_delimiter_is_read_by_task_sep(tmp_path: Path) -> None:
    for sep, character in ((";", ";"), ("tab", "\t"), ("|", "|")):
        (tmp_path / "train.csv").write_text(f"text{character}label\na, b{character}0\nc{character}1\n")
        data = own(tmp_path, files={"validation": "train.csv"}, sep=sep)
        assert data.splits["train"]["text"][:] == ["a, b", "c"] and data.splits["train"]["label"][:] == [0, 1]


def test_a_delimiter_belongs_to_a_runs_identity_and_its_default_does_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", 0)])
    words = ["task=own", "task.files.train=train.csv", "task.files.test=train.csv", f"data.root={tmp_path}"]
    plain, tab = make_plan(config(*words)), make_plan(config(*words, "task.sep=tab"))
    assert "sep" not in plain.identity["task"] and tab.identity["task"]["sep"] == "tab" and plain.id != tab.id


def test_own_files_are_known_by_their_content_and_not_by_their_path(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "train.csv", [("a", 0)])

    def run_id(folder: str) -> str:
        words = ["task=own", "task.files.train=train.csv", "task.files.test=train.csv"]
        return make_plan(config(*words, f"data.root={tmp_path / folder}")).id

    first = run_id("a")
    assert first == run_id("b")
    write_csv(tmp_path / "b" / "train.csv", [("b", 0)])
    assert first != run_id("b")


def test_a_folder_is_known_by_its_names_and_contents(tmp_path: Path) -> None:
    image_lists(tmp_path / "tree", {"list": [("x/0.png", 0)]})
    task = task_config("own_images", files={"train": "tree", "test": None, "validation": "absent"})
    first = digests(task, str(tmp_path))
    assert first["test"] is None and first["validation"] == "absent" and len(str(first["train"])) == 64
    (tmp_path / "tree" / "x" / "0.png").rename(tmp_path / "tree" / "x" / "1.png")
    assert digests(task, str(tmp_path))["train"] != first["train"]
