"""Whatever the bytes of a data file: rows that can be trained on, or one line that says what is wrong."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
from datasets_on_disk import own, png, task_config
from fuzzing import DEEP, NUMBERS, SCALARS, WORDS, as_json, damaged, fuzzed, outcome, trees
from hypothesis import example
from hypothesis import strategies as st
from PIL import Image

from experiments.data.checks import IMAGE_FORMATS, check_image, check_rows
from experiments.data.content import content_hash, make_split
from experiments.data.image_files import read_images, read_list

KINDS: dict[str, dict[str, Any]] = {
    "classification": {},
    "names": {"labels": ["no", "yes"]},
    "two texts": {"text": ["text", "other"]},
    "regression": {"kind": "regression", "num_labels": 1, "metrics": ["pearson"]},
    "summarization": {"kind": "summarization", "num_labels": 1, "text": ["text"], "metrics": ["rouge1"]},
    "image": {"name": "own_images", "num_labels": 2},
}
COLUMNS = ("text", "label", "idx", "other", "image", "references", "bytes", "path")
kinds = st.sampled_from(sorted(KINDS))


def read(name: str, content: bytes, kind: str) -> None:
    """Loads a file as train and as test; what is loaded can be read back whole."""
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        data = outcome(lambda: own(Path(folder), name, name, **dict(KINDS[kind])))
    for rows in data.splits.values() if data is not None else ():
        for row in rows:
            label = row["label"]
            assert isinstance(label, str) or math.isfinite(label)


cell = st.one_of(st.sampled_from(["a", "b", "0", "1", "yes", "x.png"]), WORDS, NUMBERS.map(str))


def delimited(separator: str) -> st.SearchStrategy[bytes]:
    header = st.permutations(COLUMNS[:4]).map(separator.join)
    row = st.lists(cell, min_size=4, max_size=4).map(separator.join)
    texts = st.tuples(header, st.lists(row, min_size=1, max_size=12)).map(
        lambda parts: "\n".join([parts[0], *parts[1]])
    )
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


whole_rows = [{"text": f"a{i}", "other": "b", "label": i % 2} for i in range(12)]
json_rows = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS), SCALARS | trees(*COLUMNS), max_size=6)
    | st.sampled_from(whole_rows)
    | st.tuples(st.sampled_from(COLUMNS), SCALARS).map(lambda pair: {**whole_rows[0], pair[0]: pair[1]}),
    min_size=1,
    max_size=14,
)


def lines(rows: list[Any]) -> bytes:
    return "\n".join(map(as_json, rows)).encode()


@fuzzed(60, content=delimited(",") | damaged(b"text,other,label\n" + b"a,b,0\nc,d,1\n" * 6), kind=kinds)
@example(b"text,label\n" + b"9" * 5000 + b"," + b"9" * 5000, "classification")
@example(b"text,label,idx\na,0,--1\n", "classification")
@example(b"image,label\na\0b.png,0\n", "image")
def test_a_csv_file_is_rows_or_one_line(content: bytes, kind: str) -> None:
    read("train.csv", content, kind)


@fuzzed(20, content=delimited("\t") | st.binary(max_size=60), kind=kinds)
def test_a_tsv_file_is_rows_or_one_line(content: bytes, kind: str) -> None:
    read("train.tsv", content, kind)


@fuzzed(80, content=json_rows.map(lines) | damaged(lines(whole_rows)), kind=kinds)
@example(DEEP.encode(), "classification")
@example(lines([*whole_rows, {"text": "\ud800", "label": 0}]), "classification")
@example(lines([{"text": "a", "label": 10**400}]), "regression")
@example(lines([{"text": "a", "label": 1e300}] * 12), "regression")
@example(lines([{"text": "a", "label": 0, "idx": 2**63}]), "classification")
@example(b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "regression")
@example(lines([{"image": "\ud800.png", "label": 0}]), "image")
@example(lines([{"text": "a", "label": "s", "references": ["\ud800"]}]), "summarization")
def test_a_json_lines_file_is_rows_or_one_line(content: bytes, kind: str) -> None:
    read("train.jsonl", content, kind)


@fuzzed(40, content=json_rows.map(as_json).map(str.encode) | damaged(as_json(whole_rows).encode()), kind=kinds)
@example(b"[", "classification")
@example(b'[{"text": "a", "label": 0},', "classification")
@example(b"[" + DEEP.encode(), "classification")
def test_a_list_of_json_is_rows_or_one_line(content: bytes, kind: str) -> None:
    read("train.json", content, kind)


@fuzzed(20, content=damaged(gzip.compress(b"text,other,label\n" + b"a,b,0\nc,d,1\n" * 6)), kind=kinds)
def test_a_compressed_file_is_rows_or_one_line(content: bytes, kind: str) -> None:
    read("train.csv.gz", content, kind)


def columns(**values: Any) -> bytes:
    """A parquet file."""
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(values), buffer)
    return buffer.getvalue()


TYPED = {
    "whole": pyarrow.array([i % 2 for i in range(12)]),
    "bytes": pyarrow.array([i % 2 for i in range(12)], pyarrow.uint8()),
    "unsigned": pyarrow.array([2**64 - 1 - i for i in range(12)], pyarrow.uint64()),
    "negative": pyarrow.array([-i for i in range(12)], pyarrow.int8()),
    "reals": pyarrow.array([float(i) for i in range(12)]),
    "large reals": pyarrow.array([1e300] * 12),
    "not numbers": pyarrow.array([float("nan")] * 12, pyarrow.float32()),
    "decimals": pyarrow.array([1] * 12).cast(pyarrow.decimal128(30, 2)),
    "truths": pyarrow.array([True, False] * 6),
    "nothing": pyarrow.nulls(12),
    "texts": pyarrow.array(["a", "b"] * 6),
    "categories": pyarrow.array(["a", "b"] * 6).dictionary_encode(),
    "binary": pyarrow.array([b"a", b"\xff"] * 6),
    "no UTF-8": pyarrow.Array.from_buffers(pyarrow.string(), 12, pyarrow.array([b"\xff"] * 12).buffers()),
    "images": pyarrow.array([png()] * 12),
    "stored images": pyarrow.array([{"bytes": png(), "path": "x"}] * 12),
    "no images": pyarrow.array([{"bytes": None, "path": "\0"}] * 12),
    "lists": pyarrow.array([["a"], []] * 6),
    "lists with nothing": pyarrow.array([["a", None], None] * 6),
    "far times": pyarrow.array([2**62] * 12, pyarrow.timestamp("ms")),
    "no zone": pyarrow.array([0] * 12, pyarrow.timestamp("ns", "Nowhere/None")),
    "fine times": pyarrow.array([1] * 12, pyarrow.timestamp("ns")),
    "long times": pyarrow.array([2**62] * 12, pyarrow.duration("us")),
    "far days": pyarrow.array([10**6] * 12, pyarrow.date32()),
    "clock times": pyarrow.array([5] * 12, pyarrow.time64("ns")),
    "maps": pyarrow.array([[("k", 1)]] * 12, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
}
whole_table = columns(text=[f"a{i}" for i in range(12)], other=["b"] * 12, label=[i % 2 for i in range(12)])


@fuzzed(
    80,
    given=st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(sorted(TYPED)), min_size=1) | damaged(whole_table),
    kind=kinds,
)
@example({"text": "far times", "label": "whole"}, "classification")
@example({"text": "no UTF-8", "label": "whole"}, "classification")
def test_a_parquet_file_is_rows_or_one_line(given: Any, kind: str) -> None:
    content = given if isinstance(given, bytes) else columns(**{name: TYPED[type_] for name, type_ in given.items()})
    read("train.parquet", content, kind)


def images() -> list[bytes]:
    files = []
    for form in IMAGE_FORMATS:
        buffer = io.BytesIO()
        Image.new("RGB", (3, 2)).save(buffer, format=form)
        files.append(buffer.getvalue())
    return files


@fuzzed(200, content=st.sampled_from(images()).flatmap(damaged))
def test_an_image_is_readable_or_one_line(content: bytes) -> None:
    outcome(lambda: check_image("train: row 1", content))


LIST = b"images/a.png 0\nimages/b.png 1\n"


@fuzzed(
    150,
    content=st.lists(st.tuples(cell, cell).map(" ".join), max_size=4).map(
        lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")
    )
    | damaged(LIST),
)
@example(b"images/a.png " + b"9" * 5000)
@example(b"images/a\0.png 0")
def test_a_list_of_images_is_names_and_labels_or_one_line(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "train800.txt"
        file.write_bytes(content)
        entries = outcome(lambda: read_list(file, "train800.txt"))
        for path, label in entries or ():
            assert (Path(folder) / path).resolve().is_relative_to(Path(folder).resolve()) and 0 <= label < 2**63
        outcome(lambda: read_images(Path(folder), [path for path, _ in entries or ()], "train800.txt"))


@fuzzed(
    60,
    kind=kinds,
    idx=st.lists(NUMBERS | WORDS, max_size=3),
    cells=st.lists(SCALARS | st.lists(SCALARS, max_size=2), min_size=9, max_size=9),
)
@example("classification", [2**63], ["a"] * 9)
@example("regression", [0], ["a", "a", "a", 10**400, 1, 1, "a", "a", "a"])
def test_rows_that_pass_the_checks_become_a_data_set(kind: str, idx: list[Any], cells: list[Any]) -> None:
    change, count = dict(KINDS[kind]), len(idx)
    task = task_config(change.pop("name", "own"), **change)
    names = ("text", "label", "references")
    rows = {name: cells[3 * i : 3 * i + count] for i, name in enumerate(names)} | {"idx": idx}
    rows |= {"image": rows["text"], "other": rows["text"]}
    if outcome(lambda: [check_rows(task, "train", rows)]):
        content_hash({"train": make_split(task, rows)}, task)
