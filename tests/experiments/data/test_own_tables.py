"""Own tables as people have them: every format and ending, shards, labels, numbers and missing cells."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import own, png, task_config, write_csv, write_jsonl, write_parquet
from tiny_runs import config

from elalora.errors import UserError
from experiments.data.digests import digests
from experiments.data.tables import read_table
from experiments.runs.plan import make_plan

ROWS = [("good film", "yes"), ('she said "no", twice', "no"), ("line\none", "yes"), ("naïve", "no")]
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
REAL = {"kind": "regression", "num_labels": 1, "metrics": ["pearson"]}
SUMMARY = {"kind": "summarization", "num_labels": 1, "metrics": ["rouge1"]}


def both(root: Path, file: str, **change: Any) -> Any:
    """The training rows of a file that is train and validation."""
    return own(root, file, None, files={"validation": file}, **change).splits["train"][:]


# -- formats -----------------------------------------------------------------------------------------------------

CSV = 'text,label\ngood film,yes\n"she said ""no"", twice",no\n"line\none",yes\nnaïve,no\n'
LINES = "".join(json.dumps(row) + "\n" for row in OBJECTS)
INDENTED = json.dumps(OBJECTS, indent=2)
FILES: dict[str, bytes] = {
    "train.csv": CSV.encode(),
    "train.CSV": CSV.encode(),
    "train.csv.gz": gzip.compress(CSV.encode()),
    "Train.CSV.GZ": gzip.compress(CSV.encode()),
    "train.csv.bz2": bz2.compress(CSV.encode()),
    "train.csv.xz": lzma.compress(CSV.encode()),
    "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "bom.csv.gz": gzip.compress(b"\xef\xbb\xbf" + CSV.encode()),
    "blank.csv": CSV.replace("yes\n", "yes\n\n").encode(),
    "lines.jsonl": LINES.encode(),
    "LINES.JSONL": LINES.encode(),
    "lines.ndjson": LINES.encode(),
    "lines.json": LINES.encode(),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "cr.jsonl": LINES.replace("\n", "\r").encode(),
    "blank.jsonl": ("\n" + LINES.replace("\n", "\n \n")).encode(),
    "array.json": json.dumps(OBJECTS).encode(),
    "indented.json": INDENTED.encode(),
    "tabs.json": json.dumps(OBJECTS, indent="\t").encode(),
    "crlf.json": INDENTED.replace("\n", "\r\n").encode(),
    "array.jsonl": ("\n\n" + INDENTED + "\n").encode(),
    "bom.json": b"\xef\xbb\xbf" + INDENTED.encode(),
    "array.json.gz": gzip.compress(INDENTED.encode()),
    "one a line.json": ("[" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]").encode(),
    "as it is.json": json.dumps(OBJECTS, ensure_ascii=False).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_are_the_same_data_under_every_ending(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    rows = both(tmp_path, name)
    assert list(zip(rows["text"], rows["label"], strict=True)) == [(t, int(y == "yes")) for t, y in ROWS]


@pytest.mark.parametrize("name", ["a.tsv", "A.TSV", "a.tsv.gz", "cr.tsv", "crlf.tsv", "sep.csv"])
def test_tab_separated_rows_are_read_under_every_ending(name: str, tmp_path: Path) -> None:
    end = {"cr": "\r", "crlf": "\r\n"}.get(name.partition(".")[0], "\n")
    content = end.join(["text\tlabel", 'a "b\t0', "NA\t1", ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = both(tmp_path, name, sep="tab" if name == "sep.csv" else None)
    assert rows["text"] == ['a "b', "NA"] and rows["label"] == [0, 1]


@pytest.mark.parametrize("ending", [".parquet", ".Parquet", ".PARQUET"])
def test_a_parquet_file_may_end_in_capitals(ending: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / f"a{ending}", text=["a", "b"], label=[0, 1])
    assert both(tmp_path, f"a{ending}")["text"] == ["a", "b"]
    write_parquet(tmp_path / f"i{ending}", image=[png(1), png(2)], label=[0, 1])
    assert both(tmp_path, f"i{ending}", name="own_images", num_labels=2)["label"] == [0, 1]


def test_na_null_and_none_are_texts_and_classes_like_any_other(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("NA", "NA"), ("null", "None"), ("nan", "NA")])
    assert both(tmp_path, "a.csv")["text"] == ["NA", "null", "nan"]
    assert both(tmp_path, "a.csv")["label"] == [0, 1, 0]


def test_quoted_fields_may_hold_delimiters_quotes_and_every_line_end(tmp_path: Path) -> None:
    texts = ["a,b", 'say ""hi""', "one\r\ntwo", "one\rtwo", "", " padded "]
    content = "text,other,label\r\n" + "".join(f'"{t}",x,{i % 2}\r\n' for i, t in enumerate(texts))
    (tmp_path / "a.csv").write_bytes(content.encode())
    rows = both(tmp_path, "a.csv", text=["text", "other"])
    assert rows["text"] == [t.replace('""', '"') for t in texts]


BAD_JSON = {
    "open list": ('[{"text": "a", "label": 0},\n{"text": "b", "label": 1}', "line 2 is not JSON: expected ',' or ']'"),
    "no comma": ('[{"text": "a", "label": 0}\n\n{"text": "b"}]', "line 3 is not JSON: expected ',' or ']'"),
    "last comma": ('[\n{"text": "a", "label": 0},\n]', "line 3 is not JSON: Expecting value"),
    "element": ('[{"text": "a", "label": 0},\n 7]', "line 2 is int; expected one object"),
    "broken element": ('[\n{"text": "a", "label": 0},\n{"text": }]', "line 3 is not JSON: Expecting value"),
    "two lists": (
        '[{"text": "a", "label": 0}]\n[{"text": "b", "label": 1}]',
        "line 2 is not JSON: the list has ended before",
    ),
    "half a pair": ('[{"text": "\\ud800", "label": 0}]', "line 1 is not JSON"),
    "empty list": ("[ ]", "has no rows; give it at least one"),
}


@pytest.mark.parametrize(("content", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_a_damaged_list_of_json_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        own(tmp_path, "train.json", "train.json")


def test_a_damaged_archive_and_an_unknown_one_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(CSV.encode() * 1000)
    for name, content in {
        "short": whole[:-30],
        "wrong": whole[:40] + b"\0" * 40 + whole[80:],
        "plain": b"text",
    }.items():
        (tmp_path / f"{name}.csv.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.csv.gz cannot be read"):
            own(tmp_path, f"{name}.csv.gz", f"{name}.csv.gz")
    for name in ("a.parquet.gz", "a.csv.zip", "a.gz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=f"{name} is not a supported table; .*all but parquet also with .gz"):
            own(tmp_path, name, name)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\na,0\n\xe9,1\n"))
    with pytest.raises(UserError, match=r"a.csv.gz: line 3 is not UTF-8 text"):
        own(tmp_path, "a.csv.gz", "a.csv.gz")
    damaged = (  # decodes to other bytes, which are not UTF-8, and the checksum does not fit
        b"\x1f\x8b\x08\x00X\xcf\nk\x02\xff+8\xad(\xd1\xc9/\xc9H-\xd2\xc9ILJ\xcd\xe1J\xd4I\xd21\xe0J\xd6I\xd11\xa4"
        b"\x88\r\x00\xfc\xe3\xec\x05Y\x00\x00\x00"
    )
    (tmp_path / "b.csv.gz").write_bytes(damaged)
    with pytest.raises(UserError, match="b.csv.gz cannot be read"):
        own(tmp_path, "b.csv.gz", "b.csv.gz")


def test_a_tsv_with_quoted_fields_is_refused_with_the_way_to_read_them(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one\ttwo"\t0\n')
    with pytest.raises(UserError, match=r"a.tsv: line 2 has 3 fields.*name it \*.csv and type task.sep=tab"):
        own(tmp_path, "a.tsv", "a.tsv")


# -- shards ------------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], Any]] = {
    "parquet": lambda file, rows: write_parquet(file, text=[t for t, _ in rows], label=[y for _, y in rows]),
    "csv": write_csv,
    "jsonl": lambda file, rows: write_jsonl(file, [{"text": t, "label": y} for t, y in rows]),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_shards_are_read_by_a_pattern_and_by_their_folder_as_the_one_table_they_were(
    ending: str, tmp_path: Path
) -> None:
    WRITERS[ending](tmp_path / f"whole.{ending}", ROWS)
    whole = own(tmp_path, f"whole.{ending}", f"whole.{ending}", files={"validation": f"whole.{ending}"})
    (tmp_path / "train").mkdir()
    for number, rows in enumerate((ROWS[:3], ROWS[3:])):
        WRITERS[ending](tmp_path / "train" / f"train-{number:05}-of-00002.{ending}", rows)
    (tmp_path / "train" / "README.md").write_text("about")
    (tmp_path / "train" / f".hidden.{ending}").write_text("x")
    for name in (
        f"train/train-*.{ending}",
        "train",
        "train/",
        f"**/train-0000?-of-*.{ending}",
        str(tmp_path / "train"),
    ):
        parts = own(tmp_path, name, f"whole.{ending}", files={"validation": f"whole.{ending}"})
        assert parts.fingerprint == whole.fingerprint, name


def test_parts_without_numbers_of_a_set_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in (("part-00001-x.csv", "b"), ("part-00000-x.csv", "a"), ("part-00002-x.csv", "c")):
        write_csv(tmp_path / name, [(text, 0), (text, 1)])
    (tmp_path / "_SUCCESS").write_text("")
    assert both(tmp_path, "part-*")["text"] == ["a", "a", "b", "b", "c", "c"]


def test_shards_that_do_not_belong_together_or_miss_one_are_refused(tmp_path: Path) -> None:
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001"):
        write_csv(tmp_path / f"{name}.csv", [("a", 0), ("b", 1)])
    with pytest.raises(UserError, match=r"train-\*: 1 of 3 shards are missing, the first is number 1"):
        own(tmp_path, "train-*", "test-*")
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / "data" / name, [("a", 0), ("b", 1)])
    with pytest.raises(UserError, match=r"data has tables of several names \('test', 'train'\); type a pattern"):
        own(tmp_path, "data", "test-*")
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(UserError, match=r"data/train\* has tables of several formats \('.csv', '.jsonl'\)"):
        own(tmp_path, "data/train*", "test-*")
    with pytest.raises(UserError, match=r"dev-\* matches no table"):
        own(tmp_path, "dev-*", "test-*")


def test_one_shard_by_its_name_is_read_alone_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "train-00000-of-00002.csv", [("a", 0), ("b", 1)])
    assert both(tmp_path, "train-00000-of-00002.csv")["text"] == ["a", "b"]
    assert "train-00000-of-00002.csv is one of 2 shards; train-* reads all" in capsys.readouterr().err


def test_a_file_whose_name_has_the_signs_of_a_pattern_is_that_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "a[1].csv", [("a", 0), ("b", 1)])
    assert both(tmp_path, "a[1].csv")["text"] == ["a", "b"]


def test_image_shards_are_read_and_a_table_beside_class_folders_is_no_shard(tmp_path: Path) -> None:
    for number in range(2):
        write_parquet(tmp_path / "t" / f"train-{number}-of-2.parquet", image=[png(number), png(9)], label=[0, 1])
    rows = both(tmp_path, "t", name="own_images", num_labels=2)
    assert rows["image"] == [png(0), png(9), png(1), png(9)] and rows["label"] == [0, 1, 0, 1]
    for name in ("ants", "bees"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "0.png").write_bytes(png())
    write_csv(tmp_path / "tree" / "list.csv", [("x", 0)])
    assert both(tmp_path, "tree", name="own_images", num_labels=2)["label"] == [0, 1]


def test_a_run_is_known_by_the_content_of_all_shards(tmp_path: Path) -> None:
    for number in range(2):
        write_csv(tmp_path / f"train-{number}-of-2.csv", [(f"a{number}", 0), ("b", 1)])
    task = task_config("own", files={"train": "train-*", "validation": "train-*", "test": None})
    first = digests(task, str(tmp_path))
    write_csv(tmp_path / "train-1-of-2.csv", [("changed", 0), ("b", 1)])
    assert len(str(first["train"])) == 64 and digests(task, str(tmp_path))["train"] != first["train"]
    write_csv(tmp_path / "alone.csv", [("a", 0)])
    names = {"train": "alone.csv", "validation": "alon*", "test": None}
    one = digests(task_config("own", files=names), str(tmp_path))
    assert one["train"] == one["validation"]


@pytest.mark.parametrize("given", ["train-*.csv", "**/train-?-of-2.csv", "'train-[01]-of-2.csv'", "."])
def test_a_pattern_is_a_word_of_the_command(given: str, tmp_path: Path) -> None:
    for number in range(2):
        write_csv(tmp_path / f"train-{number}-of-2.csv", [(f"a{number}", 0), ("b", 1)])
    words = ["task=own", f"task.files.train={given}", "task.files.validation=.", f"data.root={tmp_path}"]
    files = make_plan(config(*words)).identity["task"]["files"]
    assert len(files["train"]) == 64 and files["train"] == files["validation"]


# -- labels ------------------------------------------------------------------------------------------------------


def test_whole_numbers_may_be_spelt_with_a_point_beside_others_without(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("a", "0"), ("b", "1.0"), ("c", "1"), ("d", "0.")])
    assert both(tmp_path, "a.csv")["label"] == [0, 1, 1, 0]
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": v} for v in (0, 1.0, "1", "0.0")])
    assert both(tmp_path, "a.jsonl")["label"] == [0, 1, 1, 0]
    write_parquet(tmp_path / "a.parquet", text=["a", "b"], label=[1.0, 0.0])
    assert both(tmp_path, "a.parquet")["label"] == [1, 0]
    write_csv(tmp_path / "train.csv", [("a", "0.0"), ("b", "1.0")])
    write_csv(tmp_path / "test.csv", [("a", "1"), ("b", "0")])
    data = own(tmp_path, "train.csv", None, files={"validation": "test.csv"})
    assert data.splits["train"]["label"][:] == [0, 1] and data.splits["validation"]["label"][:] == [1, 0]


def test_names_that_all_have_a_point_stay_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [(f"t{i}", f"{i}.0") for i in range(1, 6)])
    assert both(tmp_path, "a.csv", num_labels=5)["label"] == [0, 1, 2, 3, 4]


def test_half_a_class_is_refused_beside_whole_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": v} for v in (0, 0.5)])
    with pytest.raises(UserError, match="row 2 has label 0.5; allowed: 0 to 1"):
        own(tmp_path, "a.jsonl", "a.jsonl")


def test_true_and_false_are_the_classes_of_their_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}])
    write_parquet(tmp_path / "a.parquet", text=["a", "b"], label=[True, False])
    write_csv(tmp_path / "a.csv", [("a", "true"), ("b", "false")])
    prints = {own(tmp_path, n, None, files={"validation": n}).fingerprint for n in ("a.jsonl", "a.parquet", "a.csv")}
    assert len(prints) == 1 and both(tmp_path, "a.jsonl")["label"] == [1, 0]
    assert both(tmp_path, "a.jsonl", labels=["true", "false"])["label"] == [0, 1]
    with pytest.raises(UserError, match="row 1 has label True; expected a finite number"):
        own(tmp_path, "a.jsonl", "a.jsonl", **REAL)


MISSING = {
    "csv": (lambda root: write_csv(root / "a.csv", [("a", 0), ("b", ""), ("c", 1), ("d", " ")]), {}),
    "jsonl": (
        lambda root: (root / "a.jsonl").write_text(
            "".join(f'{{"text": "t", "label": {value}}}\n' for value in ("0", "null", "1", "NaN"))
        ),
        {},
    ),
    "parquet": (lambda root: write_parquet(root / "a.parquet", text=[*"abcd"], label=[0, None, 1, None]), {}),
    "reals": (lambda root: write_csv(root / "a.csv", [("a", 0.5), ("b", ""), ("c", 1), ("d", "nan")]), REAL),
    "pandas": (
        lambda root: write_parquet(root / "a.parquet", text=[*"abcd"], label=[0.5, float("nan"), 1, None]),
        REAL,
    ),
    "summaries": (lambda root: write_csv(root / "a.csv", [("a", "s"), ("b", ""), ("c", "t"), ("d", " ")]), SUMMARY),
    "names": (lambda root: write_csv(root / "a.csv", [("a", "x"), ("b", ""), ("c", "y"), ("d", "")]), {}),
}


@pytest.mark.parametrize(("make", "change"), MISSING.values(), ids=MISSING)
def test_missing_labels_are_refused_with_their_rows_or_dropped_where_asked(
    make: Callable[[Path], Any], change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    (file,) = tmp_path.iterdir()
    with pytest.raises(UserError, match=r"2 rows: 2, 4 have no label; .* type task.drop_unlabelled=true"):
        own(tmp_path, file.name, file.name, **change)
    rows = both(tmp_path, file.name, drop_unlabelled=True, **change)
    assert rows["idx"] == [0, 2] and len(rows["label"]) == 2
    assert "2 of 4 rows have no label and are dropped" in capsys.readouterr().err


def test_dropping_rows_is_part_of_a_runs_identity_and_its_default_is_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("a", 0)])
    words = ["task=own", "task.files.train=a.csv", "task.files.test=a.csv", f"data.root={tmp_path}"]
    plain, drop = make_plan(config(*words)), make_plan(config(*words, "task.drop_unlabelled=true"))
    assert "drop_unlabelled" not in plain.identity["task"] and plain.id != drop.id
    with pytest.raises(UserError, match="task.drop_unlabelled=true is for own files"):
        make_plan(config("task=rte", "task.drop_unlabelled=true"))


@pytest.mark.parametrize("cell", ["1_0", "1_000.5", "0_1e1", "_1"])
def test_a_number_has_no_underscore(cell: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("a", "1.5"), ("b", cell)])
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1.5}, {"text": "b", "label": cell}])
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(UserError, match=f"row 2 has label {cell}; expected a finite number"):
            own(tmp_path, name, name, **REAL)


@pytest.mark.parametrize("cell", ["1", " 2.5 ", "-.5e-3", "+4", "1E2"])
def test_a_number_is_spelt_in_every_usual_way(cell: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("a", cell), ("b", "0")])
    assert both(tmp_path, "a.csv", **REAL)["label"][0] == pytest.approx(float(cell))


# -- numbers of rows, references, names of columns -----------------------------------------------------------------


@pytest.mark.parametrize("own_idx", [["a-1", "b-2"], [7, 7], [1, None], ["", ""], [0.5, 1.0], [2**64 - 1, 0]])
def test_an_idx_of_ones_own_kind_is_left_aside_and_a_line_says_so(
    own_idx: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": y, "idx": i} for y, i in enumerate(own_idx)])
    assert both(tmp_path, "a.jsonl")["idx"] == [0, 1]
    assert "idx has other values than distinct whole numbers; rows are numbered in order" in capsys.readouterr().err


@pytest.mark.parametrize("own_idx", [[12, 5], ["12", " 5"], [12.0, 5.0], ["12.0", "5.0"]])
def test_an_idx_of_distinct_whole_numbers_numbers_the_rows(own_idx: list[Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": y, "idx": i, "id": "x"} for y, i in enumerate(own_idx)])
    assert both(tmp_path, "a.jsonl")["idx"] == [12, 5]


def test_references_may_be_plain_texts_beside_lists(tmp_path: Path) -> None:
    rows = [{"text": "long", "label": "s", "references": given} for given in ("r", ["r", "t"])]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert both(tmp_path, "a.jsonl", **SUMMARY)["references"] == [["r"], ["r", "t"]]
    write_csv(tmp_path / "a.csv", [("long", "s", "r")], header=("text", "label", "references"))
    assert both(tmp_path, "a.csv", **SUMMARY)["references"] == [["r"]]
    write_parquet(tmp_path / "a.parquet", text=["long"], label=["s"], references=["r"])
    assert both(tmp_path, "a.parquet", **SUMMARY)["references"] == [["r"]]


@pytest.mark.parametrize(("given", "message"), [("['r', 't']", "has the text of a list"), (" ", "has no references")])
def test_references_that_a_csv_cannot_hold_are_refused(given: str, message: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("long", "s", given)], header=("text", "label", "references"))
    with pytest.raises(UserError, match=f"row 1 {message}"):
        own(tmp_path, "a.csv", "a.csv", **SUMMARY)


@pytest.mark.parametrize("name", ["idx", "label"])
def test_an_input_column_with_a_name_of_the_projects_own_is_refused(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("x", "s")], header=(name, "target"))
    with pytest.raises(UserError, match=f"an input column cannot be named {name}; rename it in the files"):
        own(tmp_path, "a.csv", "a.csv", text=[name], label="target", **SUMMARY)


# -- size --------------------------------------------------------------------------------------------------------


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_reading_takes_time_in_proportion_to_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import experiments.data.tables as tables

    reader = tables.csv.reader

    class Reader:
        """A csv.reader whose cells count comparisons."""

        def __init__(self, *given: Any, **named: Any) -> None:
            self.lines = reader(*given, **named)

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> list[str]:
            return [Counted(cell) for cell in next(self.lines)]

        line_num = property(lambda self: self.lines.line_num)

    count = 6_000
    names = [f"c{i}" for i in range(count)]
    (tmp_path / "a.csv").write_text(",".join([*names, "text", "label"]) + "\n" + ",".join(["x"] * (count + 2)) + "\n")
    monkeypatch.setattr(tables.csv, "reader", Reader)
    assert read_table(tmp_path / "a.csv", "a.csv", ["text", "label"]) == {"text": ["x"], "label": ["x"]}
    assert Counted.compared < 20 * count
    with pytest.raises(UserError, match=r"no column 'body' among 'c0', .*, \.\.\. \(6,002\)"):
        read_table(tmp_path / "a.csv", "a.csv", ["body"])
