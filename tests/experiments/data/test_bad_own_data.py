"""The answer to every kind of bad data: one line with file, row and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import image_lists, load, own, png, task_config, write_csv, write_parquet
from tiny_runs import config

from elalora.errors import UserError
from experiments.config.task import check_task
from experiments.runs.plan import make_plan

Bad = tuple[str, Callable[[Path], Any], dict[str, Any], str]


def table(name: str, **columns: Any) -> Callable[[Path], Any]:
    return lambda root: write_parquet(root / name, **columns)


def text(name: str, content: str | bytes) -> Callable[[Path], Any]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(raw)


IMAGES = {"name": "own_images", "num_labels": 2}
REAL = {"kind": "regression", "num_labels": 1, "metrics": ["pearson"]}
SUMMARY = {"kind": "summarization", "num_labels": 1, "text": ["text"], "metrics": ["rouge1"]}
BAD: list[Bad] = [
    (
        "label above the range",
        text("train.csv", "text,label\na,0\nb,2\n"),
        {},
        r"train.csv: row 2 has label 2; allowed: 0 to 1 \(task.num_labels=2\)",
    ),
    (
        "label below the range",
        text("train.csv", "text,label\na,-1\n"),
        {},
        "train.csv: row 1 has label -1; allowed: 0 to 1",
    ),
    (
        "label that is half",
        table("train.parquet", text=["a"], label=[0.5]),
        {},
        "train.parquet: row 1 has label 0.5; allowed: 0 to 1",
    ),
    (
        "label that is true or false",
        text("train.jsonl", '{"text": "a", "label": true}\n'),
        {"labels": ["no", "yes"]},
        "row 1 has label 'true'; allowed: 'no', 'yes'",
    ),
    ("label that is blank", text("train.csv", "text,label\na,1\nb,\n"), {}, "train.csv: row 2 has no label"),
    (
        "label that is null",
        table("train.parquet", text=["a", "b"], label=[1, None]),
        {},
        "train.parquet: row 2 has no label",
    ),
    (
        "label that only one row has",
        text("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n'),
        {},
        "train.jsonl: row 2 has no label",
    ),
    (
        "unknown class name",
        text("train.csv", "text,label\na,yes\nb,maybe\n"),
        {"labels": ["no", "yes"]},
        "row 2 has label 'maybe'; allowed: 'no', 'yes'",
    ),
    (
        "more class names than outputs",
        text("train.csv", "text,label\na,x\nb,y\nc,z\n"),
        {},
        r"train.csv has 3 classes \(x, y, z\), but task.num_labels=2; type task.num_labels=3",
    ),
    (
        "infinite number",
        text("train.csv", "text,label\na,1\nb,inf\n"),
        REAL,
        "train.csv: row 2 has label inf; expected a finite number",
    ),
    (
        "not a number",
        table("train.parquet", text=["a"], label=[float("nan")]),
        REAL,
        "train.parquet: row 1 has no label; fill in the column, or type task.drop_unlabelled=true",
    ),
    (
        "a word for a number",
        text("train.csv", "text,label\na,high\n"),
        REAL,
        "train.csv: row 1 has label high; expected a finite number",
    ),
    ("no rows", text("train.csv", "text,label\n"), {}, "train.csv has no rows; give it at least one"),
    ("empty file", text("train.csv", ""), {}, "train.csv is empty; its first line must name the columns"),
    (
        "wrong text column",
        text("train.csv", "body,label\na,0\n"),
        {},
        "train.csv: no column 'text' among 'body', 'label'",
    ),
    (
        "wrong label column",
        text("train.csv", "text,stars\na,0\n"),
        {},
        "train.csv: no column 'label' among 'text', 'stars'",
    ),
    (
        "column named twice",
        text("train.csv", "text,text,label\na,b,0\n"),
        {},
        "train.csv: column 'text' is named twice",
    ),
    (
        "blank in a column's name",
        text("train.csv", "text, label\na,0\n"),
        {},
        r"no column 'label' among 'text', ' label' \(did you mean ' label'\?\)",
    ),
    (
        "capital in a column's name",
        text("train.csv", "Text,label\na,0\n"),
        {},
        r"no column 'text' among 'Text', 'label' \(did you mean 'Text'\?\)",
    ),
    (
        "semicolons",
        text("train.csv", "text;label\na, b;0\n"),
        {},
        """train.csv: the first line has no ',' between columns but ';'; type 'task.sep=";"'""",
    ),
    ("tabs in a CSV", text("train.csv", "text\tlabel\na\t0\n"), {}, "has no ',' .* but 'tab'; type task.sep=tab"),
    (
        "commas in a TSV",
        text("train.tsv", "text,label\na,0\n"),
        {},
        """train.tsv: the first line has no 'tab' between columns but ','; type 'task.sep=","'""",
    ),
    (
        "one object over several lines",
        text("train.json", '{\n"data": [{"text": "a", "label": 0}]\n}\n'),
        {},
        "train.json: line 1 is not JSON.*; expected one object per line, or one list of objects",
    ),
    (
        "ragged row",
        text("train.csv", "text,label\na,0\nb,1,2\n"),
        {},
        r"train.csv: line 3 has 3 fields; the first line has 2 \('text', 'label'\); .* in quotation marks",
    ),
    (
        "open quotation mark",
        text("train.csv", 'text,label\n"a,0\n'),
        {},
        "train.csv: line 2 cannot be read: unexpected end",
    ),
    (
        "bytes that are no UTF-8",
        text("train.csv", b"text,label\na,0\n\xe9,1\n"),
        {},
        "train.csv: line 3 is not UTF-8 text; save the file as UTF-8",
    ),
    (
        "a line that is no JSON",
        text("train.jsonl", '{"text": "a", "label": 0}\n{"text":\n'),
        {},
        "train.jsonl: line 2 is not JSON",
    ),
    (
        "a line that is no object",
        text("train.jsonl", '{"text": "a", "label": 0}\n7\n'),
        {},
        "train.jsonl: line 2 is int; expected one object per line, or one list of objects",
    ),
    ("broken parquet", text("train.parquet", b"PAR1 it is not"), {}, "train.parquet is not a parquet file"),
    (
        "unknown suffix",
        text("train.xlsx", b"PK"),
        {},
        "train.xlsx .* allowed: .parquet, .csv",
    ),
    (
        "missing text",
        table("train.parquet", text=["a", None], label=[0, 1]),
        {},
        "train.parquet: row 2 has no text in column text",
    ),
    ("blank text", text("train.csv", "text,label\na,0\n  ,1\n"), {}, "train.csv: row 2 has no text in text"),
    (
        "summary without references",
        table("train.parquet", text=["a"], label=["s"], references=[[]]),
        SUMMARY,
        "row 1 has no references; expected a text or a list of texts",
    ),
    (
        "missing summary",
        table("train.parquet", text=["a", "b"], label=["s", None]),
        SUMMARY,
        "train.parquet: row 2 has no label",
    ),
    (
        "image that is none",
        table("train.parquet", image=[png(), b"no image"], label=[0, 1]),
        IMAGES,
        "train.parquet: row 2 .* allowed: PNG, JPEG",
    ),
    (
        "image cut in its header",
        table("train.parquet", image=[png()[:20]], label=[0]),
        IMAGES,
        "train.parquet: row 1 is not a readable image",
    ),
    (
        "missing image",
        table("train.parquet", image=[png(), None], label=[0, 1]),
        IMAGES,
        "train.parquet: row 2 has no image",
    ),
    (
        "image path that leads out",
        text("train.csv", "image,label\n../secret.png,0\n"),
        IMAGES,
        "train.csv: row 1 names ../secret.png, which leads out of the folder",
    ),
    (
        "image path that is absolute",
        text("train.csv", "image,label\n/etc/x.png,0\n"),
        IMAGES,
        "names /etc/x.png, which leads out of the folder",
    ),
    (
        "image path to nothing",
        text("train.csv", "image,label\nx.png,0\n"),
        IMAGES,
        "train.csv names x.png, which cannot be read: No such file",
    ),
    (
        "blank image path",
        text("train.csv", "image,label\nx.png,0\n,1\n"),
        IMAGES,
        "train.csv: row 2 has no image.* relative to train.csv",
    ),
    (
        "two blanks in a name",
        text("train.csv", "text,my  label\na,0\n"),
        {"label": "my label"},
        r"no column 'my label' among 'text', 'my  label' \(did you mean 'my  label'\?\)",
    ),
    (
        "few rows to draw from",
        text("train.csv", "text,label\na,0\nb,1\n"),
        {},
        "2 training rows are too few to draw a validation split from",
    ),
]


@pytest.mark.parametrize(("make", "change", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_own_data_are_one_line(make: Any, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    name = next(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        own(tmp_path, name, name, **dict(change))
    assert "\n" not in str(caught.value)


def test_a_class_that_train_lacks_is_refused_with_file_and_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "x"), ("b", "y")])
    write_csv(tmp_path / "test.csv", [("a", "x"), ("b", "z")])
    with pytest.raises(UserError, match=r"test.csv: row 2 has label 'z'; allowed: 'x', 'y'"):
        own(tmp_path, test="test.csv")


# labels of train, labels of test, settings, message
DIFFERENT_LABELS = {
    "names, then numbers": (
        ["no", "yes"],
        [1, 0],
        {},
        "train.csv has 'no', 'yes', test.csv has 0, 1; write them alike",
    ),
    "numbers, then names": ([0, 1], ["yes"], {}, "train.csv has 0, 1, test.csv has 'yes'; write them alike"),
    "numbers beside the declared names": (["no", "yes"], [1], {"labels": ["no", "yes"]}, "test.csv has 1; write them"),
    "a number outside the declared numbers": (
        [1, 2],
        [0, 1],
        {"labels": ["1", "2"]},
        "train.csv has '1', '2', test.csv has 0, '1'; write them alike in all files",
    ),
    "names and numbers in one file": (["no", "yes", 1], ["no"], {}, "train.csv has 1, 'no', 'yes'"),
    "whole numbers and fractions": (["0.5", "1.0"], [0, 1], {}, "train.csv has 1, '0.5', test.csv has 0, 1"),
    "another case": (
        ["no", "yes"],
        ["No"],
        {},
        r"labels 'No' and 'no' differ in case or blanks only \(train.csv, test.csv\); write them alike",
    ),
    "another case in one file": (["no", "yes", "Yes"], ["no"], {"num_labels": 3}, "labels 'Yes' and 'yes' differ"),
    "a blank": (["no", "yes"], ["yes "], {}, "labels 'yes' and 'yes ' differ in case or blanks only"),
    "a blank beside declared names": (["no", "yes "], ["no"], {"labels": ["no", "yes"]}, "did you mean 'yes'"),
    "a class of test only": (
        [0, 1],
        [0, 2],
        {"num_labels": 3},
        r"test.csv has label 2, which no row of train.csv has \(it has 0, 1\); add such rows to train.csv",
    ),
    "a declared class of test only": (
        ["low", "high"],
        ["middle"],
        {"num_labels": 3, "labels": ["low", "middle", "high"]},
        "test.csv has label 'middle', which no row of train.csv has",
    ),
}


@pytest.mark.parametrize(("train", "test", "change", "message"), DIFFERENT_LABELS.values(), ids=DIFFERENT_LABELS.keys())
def test_labels_that_do_not_mean_the_same_in_all_files_are_refused(
    train: list[Any], test: list[Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for name, labels in (("train.csv", train), ("test.csv", test)):
        write_csv(tmp_path / name, [(f"text {i}", labels[i % len(labels)]) for i in range(40)])
    with pytest.raises(UserError, match=message):
        own(tmp_path, test="test.csv", **dict(change))


def test_a_missing_file_or_no_second_split_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", 0)])
    with pytest.raises(UserError, match="absent.csv is missing"):
        own(tmp_path, test="absent.csv")
    with pytest.raises(UserError, match="own needs task.files.train=PATH and task.files.test=PATH"):
        own(tmp_path, test=None)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="folder is a folder without a table; allowed: .parquet, .csv"):
        own(tmp_path, "folder")


LISTS = {"train800": [("images/a.png", 0)], "val200": [("images/b.png", 1)], "test": [("images/c.png", 1)]}
BAD_LISTS = {
    "label out of range": ("train800", "images/a.png 2\n", "camelyon/train800.txt: row 1 has label 2; allowed: 0 to 1"),
    "no label": ("train800", "images/a.png\n", "train800.txt: line 1 is 'images/a.png'; expected: relative/path label"),
    "negative label": ("train800", "images/a.png -1\n", "line 1 is 'images/a.png -1'; expected: relative/path label"),
    "path upwards": (
        "test",
        "images/../../x.png 0\n",
        r"test.txt: line 1 names images/\.\./\.\./x.png, which leads out",
    ),
    "absolute path": ("test", "/etc/passwd 0\n", "test.txt: line 1 names /etc/passwd, which leads out"),
    "drive letter": ("test", "C:\\x.png 0\n", "which leads out of the folder"),
    "missing image": (
        "val200",
        "images/z.png 0\n",
        "val200.txt names images/z.png, which cannot be read: No such file",
    ),
    "one image twice": ("test", "images/c.png 0\nimages/c.png 1\n", "images/c.png is in test and again in test"),
    "test image in train": ("test", "images/a.png 0\n", "images/a.png is in train800 and again in test"),
    "empty list": ("val200", "", "val200.txt has no rows"),
    "not text": ("test", b"\xff\xfe", "test.txt is not UTF-8 text"),
}


@pytest.mark.parametrize(("stem", "content", "message"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_bad_image_lists_are_one_line(stem: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    folder = image_lists(tmp_path / "vtab-1k" / "patch_camelyon", LISTS)
    (folder / f"{stem}.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        load("camelyon", tmp_path, verify=False)


def test_bad_image_folders_are_one_line(tmp_path: Path) -> None:
    folder = image_lists(tmp_path / "vtab-1k" / "patch_camelyon", LISTS)
    (folder / "val200.txt").unlink()
    with pytest.raises(UserError, match="patch_camelyon/val200.txt in data.root is missing; it lists the validation"):
        load("camelyon", tmp_path, verify=False)
    (folder / "train800.txt").unlink()
    with pytest.raises(UserError, match="has neither train800.txt nor a folder train800 of train images"):
        load("camelyon", tmp_path, verify=False)
    (folder / "train800" / "a").mkdir(parents=True)
    (folder / "train800" / "a" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="train800/a/notes.txt is not an image; allowed: .png"):
        load("camelyon", tmp_path, verify=False)


BAD_SETTINGS = {
    "one class": ({"num_labels": 1}, "task.num_labels=1, but kind classification needs at least 2"),
    "classes of a number": ({"kind": "regression"}, "task.num_labels=2, but kind regression needs 1"),
    "three texts": ({"text": ["a", "b", "c"]}, "kind classification takes one or two input columns"),
    "two images": ({"kind": "image", "text": ["a", "b"]}, "kind image takes one input column"),
    "names": ({"labels": ["a", "b", "c"]}, "task.labels has 3 different names; task.num_labels=2"),
    "a name twice": ({"labels": ["a", "a"]}, "task.labels has 1 different names"),
    "split": ({"files": {"dev": "x"}}, "task.files.dev is not a split; allowed: train, validation, test"),
    "no metric": ({"metrics": []}, "task.metrics is empty; kind classification has accuracy, f1, mcc"),
    "unknown metric": ({"metrics": ["bleu"]}, "task.metrics: bleu is unknown; allowed: accuracy"),
    "metric of another kind": ({"metrics": ["rouge1"]}, "kind classification has no rouge1; allowed: accuracy, f1"),
    "f1 of three": ({"metrics": ["f1"], "num_labels": 3}, "f1 needs two classes; task.num_labels=3"),
    "beams": ({"beams": 0}, "task.beams=0 must be at least 1"),
    "length": ({"max_length": 0}, "task.max_length=0 must be at least 1"),
    "two delimiters": ({"sep": ";;"}, "task.sep=;; is not one character; allowed: tab, or a character such as ;"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_read(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_task(task_config("own", **change))


def test_a_plan_refuses_such_settings_before_anything_starts() -> None:
    with pytest.raises(UserError, match="task.num_labels=1, but kind classification needs at least 2"):
        make_plan(config("task=rte", "task.num_labels=1"))


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("sst2", {"label": [0, 5]}, "glue/sst2 train: row 2 has label 5; allowed: 0 to 1"),
        ("sst2", {"sentence": ["a", None]}, "glue/sst2 train: row 2 has no text in column sentence"),
        ("sst2", {"idx": [1, 1]}, "glue/sst2 train: rows 1 and 2 have the same idx 1"),
        ("stsb", {"label": [1.0, float("inf")]}, "glue/stsb train: row 2 has label inf; expected a finite number"),
        ("xsum", {"summary": ["a", None]}, "summarization/xsum train: row 2 has no label"),
        ("xsum", {"document": ["a", None]}, "summarization/xsum train: row 2 has no text in column document"),
        (
            "xsum",
            {"summary": None},
            "no column 'summary' or 'highlights' or 'target' among 'idx', 'label'",
        ),
    ],
)
def test_bad_rows_of_a_benchmark_are_named_even_without_verification(
    task: str, spoil: dict[str, Any], message: str, tmp_path: Path
) -> None:
    columns: dict[str, Any] = {"idx": [0, 1], "label": [0, 1], "document": ["a", "b"], "summary": ["c", "d"]}
    columns |= {name: ["a", "b"] for name in ("sentence", "sentence1", "sentence2")}
    columns = {name: values for name, values in (columns | spoil).items() if values is not None}
    for split in ("train", "validation", "test"):
        folder = "summarization" if task == "xsum" else "glue"
        write_parquet(tmp_path / folder / task / f"{split}.parquet", **columns)
    with pytest.raises(UserError, match=message):
        load(task, tmp_path, verify=False)
