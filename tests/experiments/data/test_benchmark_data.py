"""Summaries, VTAB-1k and the stand-ins: what is read from the official layouts, against plain readers of our own."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets_on_disk import CONF, image_lists, load, png, task_config, write_parquet
from PIL import Image
from tiny_runs import config, quick

from elalora.errors import UserError
from experiments.data import content_hash, vtab
from experiments.data.content import make_split
from experiments.data.digests import digests
from experiments.standins.data import IMAGE_SETS, make_data


def whole(data: Any, split: str) -> dict[str, list[Any]]:
    return data.splits[split][:]


# -- summaries ---------------------------------------------------------------------------------------------------


def test_scitldr_is_the_official_content_with_every_reference(shared: Path) -> None:
    data = load("scitldr", shared / "data")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 1992, "validation": 619, "test": 618}
    for split, rows in data.splits.items():
        table = parquet.read_table(shared / "data" / "summarization" / "scitldr_a" / f"{split}.parquet").to_pydict()
        assert rows["document"][:] == table["document"]
        assert rows["label"][:] == table["summary"]
        assert rows["references"][:] == table["references"]
    assert max(map(len, data.splits["test"]["references"][:])) == 4
    idx = [i for rows in data.splits.values() for i in rows["idx"][:]]
    assert idx == list(range(1992 + 619 + 618))
    assert data.verified


def test_a_part_of_xsum_is_read_only_without_verification_and_says_so(shared: Path) -> None:
    with pytest.raises(UserError, match="subset=xsum_test_subset has no known counts.*task.verify=false"):
        load("xsum", shared / "data", subset="xsum_test_subset")
    data = load("xsum", shared / "data", subset="xsum_test_subset", verify=False)
    assert len(data.splits["test"]) == 300 and not data.verified
    assert data.splits["test"]["references"][:] == [[text] for text in data.splits["test"]["label"][:]]


def test_wrong_sizes_of_a_known_data_set_are_refused(tmp_path: Path) -> None:
    make_data(tmp_path)
    with pytest.raises(UserError, match="summarization/xsum train has 240 rows; the official split has 204045"):
        load("xsum", tmp_path)


def test_cnn_dailymail_is_read_under_its_own_column_names(tmp_path: Path) -> None:
    make_data(tmp_path)
    data = load("cnn_dailymail", tmp_path, verify=False)
    table = parquet.read_table(tmp_path / "summarization" / "cnn_dailymail" / "test.parquet").to_pydict()
    assert whole(data, "test")["document"] == table["article"]
    assert whole(data, "test")["label"] == table["highlights"]


# -- VTAB-1k -----------------------------------------------------------------------------------------------------


def test_there_are_the_nineteen_tasks_in_their_groups_with_the_published_classes() -> None:
    classes = {
        "natural": {"caltech101": 102, "cifar100": 100, "dtd": 47, "flowers102": 102, "pets": 37, "svhn": 10}
        | {"sun397": 397},
        "specialized": {"camelyon": 2, "eurosat": 10, "resisc45": 45, "retinopathy": 5},
        "structured": {"clevr_count": 8, "clevr_distance": 6, "dmlab": 6, "kitti": 4, "dsprites_location": 16}
        | {"dsprites_orientation": 16, "smallnorb_azimuth": 18, "smallnorb_elevation": 9},
    }
    tasks = {name: (group, n) for group, names in classes.items() for name, n in names.items()}
    assert len(tasks) == len(vtab.TASKS) == 19
    for name, expected in tasks.items():
        task = task_config(name)
        assert (task.group, task.num_labels) == expected
        assert (vtab.TASKS[task.subset].group, vtab.TASKS[task.subset].classes) == expected


def test_list_files_give_the_images_and_labels_that_they_name(tmp_path: Path) -> None:
    make_data(tmp_path)
    data = load("svhn", tmp_path, verify=False)
    folder = tmp_path / "vtab-1k" / "svhn"
    start = 0
    for split, stem in (("train", "train800"), ("validation", "val200"), ("test", "test")):
        lines = [line.split() for line in (folder / f"{stem}.txt").read_text().splitlines()]
        rows = whole(data, split)
        assert rows["label"] == [int(label) for _, label in lines]
        assert rows["image"] == [(folder / path).read_bytes() for path, _ in lines]
        assert rows["idx"] == list(range(start, start + len(lines)))
        start += len(lines)


def test_class_folders_are_the_same_data_as_lists(tmp_path: Path) -> None:
    rows = {"train800": [("a/x.png", 0), ("b/y.png", 1)], "val200": [("a/z.png", 0)], "test": [("b/w.png", 1)]}
    for stem, entries in rows.items():
        for number, (path, _) in enumerate(entries):
            file = tmp_path / "vtab-1k" / "patch_camelyon" / stem / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
    data = load("camelyon", tmp_path, verify=False)
    assert whole(data, "train") == {"idx": [0, 1], "image": [png(0), png(1)], "label": [0, 1]}
    assert whole(data, "validation")["label"] == [0] and whole(data, "test")["label"] == [1]


def test_a_path_with_blanks_and_a_label_after_tabs_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "vtab-1k" / "kitti"
    image_lists(folder, {"train800": [("images/a b.png", 3)], "val200": [("v.png", 0)], "test": [("t.png", 1)]})
    (folder / "train800.txt").write_text("images/a b.png\t3\r\n\n")
    assert whole(load("kitti", tmp_path, verify=False), "train")["label"] == [3]


def test_vtab_sizes_are_compared_unless_told_otherwise(tmp_path: Path) -> None:
    make_data(tmp_path)
    with pytest.raises(UserError, match="vtab-1k/eurosat/train800 has 80 images; the official split has 800"):
        load("eurosat", tmp_path)
    assert not load("eurosat", tmp_path, verify=False).verified


def test_the_only_test_size_that_is_not_compared_is_kittis() -> None:
    assert {name for name, known in vtab.TASKS.items() if known.test is None} == {"kitti"}


def test_many_images_on_a_terminal_show_a_bar_and_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.data import image_files

    image_lists(tmp_path, {"list": [("a.png", 0), ("b.png", 0)]})
    monkeypatch.setattr(image_files, "MANY", 2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert image_files.read_images(tmp_path, ["a.png", "b.png"], "the list") == [png(0), png(1)]
    assert "reading the list" in capsys.readouterr().err
    monkeypatch.setattr(image_files, "MANY", 3)
    assert image_files.read_images(tmp_path, ["b.png"], "the list") == [png(1)]
    assert capsys.readouterr().err == ""


def test_the_page_of_benchmarks_names_every_task_and_the_counts_that_are_checked() -> None:
    from experiments.data.glue import SPLITS as GLUE
    from experiments.data.summarization import SIZES

    page = (CONF.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for file in CONF.glob("*.yaml"):
        task = task_config(file.stem)
        if task.source == "vtab":
            known = vtab.TASKS[task.subset]
            size = "not compared" if known.test is None else f"{known.test:,}"
            assert f"| `{task.name}` | {task.subset} | {known.classes} | {size} |" in page
        elif task.source == "summarization":
            assert " | ".join(f"{n:,}" for n in SIZES[task.subset]) in page
        elif task.source == "glue" and task.name != "mnli_mm":
            assert " | ".join(f"{known.rows:,}" for known in GLUE[task.subset].values()) in page
        assert f"`{task.name}`" in page or task.name.endswith("_binary") or task.source == "digits"


# -- fingerprints ------------------------------------------------------------------------------------------------


def packed(*values: int | bytes) -> bytes:
    return b"".join(struct.pack("<q", v) if isinstance(v, int) else struct.pack("<q", len(v)) + v for v in values)


def test_the_fingerprint_of_summaries_is_the_formula_written_out() -> None:
    task = task_config("scitldr")
    columns = {"idx": [4], "document": ["dé"], "label": ["s"], "references": [["s", "t"]]}
    expected = b"test\n1\n1\n" + packed(4, b"s", "dé".encode(), 2, b"s", b"t")
    assert content_hash({"test": make_split(task, columns)}, task) == hashlib.sha256(expected).hexdigest()


def test_the_fingerprint_of_images_is_the_formula_written_out() -> None:
    task = task_config("svhn")
    columns = {"idx": [7, 8], "image": [b"one", b""], "label": [3, 0]}
    expected = b"test\n2\n1\n" + packed(7, 3, b"one") + packed(8, 0, b"")
    assert content_hash({"test": make_split(task, columns)}, task) == hashlib.sha256(expected).hexdigest()


def test_more_images_than_one_chunk_holds_keep_order_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.data import content

    task = task_config("svhn")
    columns = {"idx": list(range(7)), "image": [bytes([i]) for i in range(7)], "label": [i % 3 for i in range(7)]}
    at_once = make_split(task, columns)
    monkeypatch.setattr(content, "IMAGES_PER_CHUNK", 3)
    in_chunks = make_split(task, columns)
    assert in_chunks[:] == at_once[:] == columns
    assert in_chunks.features == at_once.features
    assert content_hash({"a": in_chunks}, task) == content_hash({"a": at_once}, task)


# -- what to do without data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xsum", "EdinburghNLP/xsum cannot be read from the hub; put train.parquet .*/summarization/xsum/ and"),
        ("cnn_dailymail", "abisee/cnn_dailymail cannot be read from the hub; put .*type data.root=FOLDER"),
        ("mnli_mm", "put train.parquet and validation_mismatched.parquet into FOLDER/glue/mnli/ and type data.root"),
        ("scitldr", "commit of allenai/scitldr on the hub is not pinned; put .* or type task.hub_revision=COMMIT"),
        ("cifar100", "put train800.txt, val200.txt, test.txt and images/ into FOLDER/vtab-1k/cifar/ .*no hub copy"),
    ],
)
def test_offline_and_missing_is_one_line_that_says_what_to_put_where(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


# -- stand-ins ---------------------------------------------------------------------------------------------------

TEXT_TASKS = ["cola", "rte", "mrpc", "sst2", "wnli", "qnli", "mnli", "mnli_mm", "qqp"]


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("standins"))


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_stand_in_text_task_can_be_learnt_by_a_bag_of_words(standins: Path, name: str) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    data = load(name, standins, verify=False, fingerprint=None)
    train, test = (whole(data, split) for split in data.splits)
    words = CountVectorizer(token_pattern=r"\S+")
    column = data.config.text[-1]
    model = LogisticRegression(max_iter=500).fit(words.fit_transform(train[column]), train["label"])
    assert model.score(words.transform(test[column]), test["label"]) >= 0.95
    assert max(Counter(train["label"]).values()) <= 121


def test_stand_in_similarities_can_be_learnt_by_a_bag_of_words(standins: Path) -> None:
    from scipy.stats import pearsonr
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    data = load("stsb", standins, verify=False)
    words = CountVectorizer(token_pattern=r"\S+")
    train, test = whole(data, "train"), whole(data, "validation")
    model = Ridge().fit(words.fit_transform(train["sentence2"]), train["label"])
    assert pearsonr(model.predict(words.transform(test["sentence2"])), test["label"]).statistic > 0.95


@pytest.mark.parametrize(("name", "at_least"), [("svhn", 0.95), ("eurosat", 0.95), ("clevr_count", 0.5)])
def test_stand_in_images_can_be_learnt_from_their_pixels(standins: Path, name: str, at_least: float) -> None:
    from sklearn.linear_model import LogisticRegression

    def pixels(rows: dict[str, list[Any]]) -> np.ndarray:
        images = [np.asarray(Image.open(io.BytesIO(b)), dtype=np.float64) for b in rows["image"]]
        # Mean colour, and its share of bright pixels as steps: a count is no linear function of the class.
        mean = np.stack([i.mean((0, 1)) / 255 for i in images])
        return np.concatenate([mean] + [(mean > t / 16).astype(float) for t in range(16)], axis=1)

    data = load(name, standins, verify=False)
    train, test = whole(data, "train"), whole(data, "test")
    model = LogisticRegression(C=1e3, max_iter=2000).fit(pixels(train), train["label"])
    assert model.score(pixels(test), test["label"]) >= at_least
    assert set(IMAGE_SETS) == {"svhn", "eurosat", "clevr_count"}


def test_stand_in_summaries_follow_from_their_documents_and_have_several_references(standins: Path) -> None:
    for name, most in (("xsum", 1), ("cnn_dailymail", 1), ("scitldr", 2)):
        rows = whole(load(name, standins, verify=False), "test")
        assert {len(r) for r in rows["references"]} == {most}
        for document, label in zip(rows["document"], rows["label"], strict=True):
            assert set(label.split()) - set(document.split()) <= {"a", "in"}


def test_stand_ins_are_the_same_for_a_seed_and_others_for_another(standins: Path, tmp_path: Path) -> None:
    again, other = make_data(tmp_path / "again"), make_data(tmp_path / "other", seed=1)
    for name in ("mnli", "xsum", "svhn"):
        first, second, third = (load(name, root, verify=False).fingerprint for root in (standins, again, other))
        assert first == second != third


def test_both_mnli_tasks_train_on_the_same_rows_and_report_their_own(standins: Path) -> None:
    matched, mismatched = (load(name, standins, verify=False) for name in ("mnli", "mnli_mm"))
    assert whole(matched, "train") == whole(mismatched, "train")
    assert list(matched.splits) == ["train", "validation_matched"]
    assert list(mismatched.splits) == ["train", "validation_mismatched"]


def test_a_result_on_unverified_data_says_so(standins: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    from experiments.launch.choose import run_all

    words = ["task=rte", "task.verify=false", f"data.root={standins}", "method=lora", "trainer.max_steps=2"]
    assert run_all([quick(tiny_model_dir, tmp_path / "store", *words)]) == 0
    (result,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "rte").glob("*/result.json"))
    assert "unverified data" in result["flags"] and result["data"]["verified"] is False


def test_a_verified_task_refuses_the_stand_ins(standins: Path) -> None:
    with pytest.raises(UserError, match="glue/rte train has 240 rows; the official split has 2490.*task.verify=false"):
        load("rte", standins)


def as_jpeg(folder: Path, count: int) -> None:
    """Turns the first images of a data set into JPEG files under the same names."""
    for file in sorted(folder.rglob("*.png"))[:count]:
        with Image.open(file) as image:
            image.save(file, format="JPEG")


@pytest.mark.parametrize(("name", "flagged"), [("svhn", True), ("clevr_count", True), ("eurosat", False)])
def test_a_jpeg_copy_of_a_lossless_data_set_is_remarked_upon(name: str, flagged: bool, tmp_path: Path) -> None:
    root = make_data(tmp_path)
    assert list(load(name, root, verify=False).remarks) == []
    as_jpeg(root / "vtab-1k" / vtab_folder(name), 1)
    assert list(load(name, root, verify=False).remarks) == (["JPEG copies"] if flagged else [])


def vtab_folder(name: str) -> str:
    return task_config(name).subset


def test_every_lossless_data_set_is_one_of_vtab() -> None:
    assert set(vtab.LOSSLESS) < set(vtab.TASKS)


@pytest.mark.slow
def test_a_result_on_jpeg_copies_says_so(tmp_path: Path) -> None:
    from experiments.launch.choose import run_all

    root = make_data(tmp_path / "data")
    as_jpeg(root / "vtab-1k" / "svhn", 3)
    words = [
        "task=svhn",
        "model=vit_digits",
        "task.verify=false",
        f"data.root={root}",
        "method=lora",
        "trainer.max_steps=1",
    ]
    assert run_all([config(*words, "data.train_items=8", f"store.root={tmp_path / 'store'}", "threads=1")]) == 0
    (result,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "svhn").glob("*/result.json"))
    assert "JPEG copies" in result["flags"]


def test_a_benchmark_below_data_root_may_lie_in_the_hubs_shards(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"idx": [0, 1, 2], "sentence": ["a", "b", "c"], "label": [0, 1, 1]}
    for split in ("train", "validation"):
        write_parquet(tmp_path / "whole" / "glue" / "sst2" / f"{split}.parquet", **rows)
        for number, part in enumerate((slice(0, 2), slice(2, 3))):
            file = tmp_path / "parts" / "glue" / "sst2" / f"{split}-{number:05}-of-00002.parquet"
            write_parquet(file, **{name: values[part] for name, values in rows.items()})
    whole, parts = (load("sst2", tmp_path / name, verify=False) for name in ("whole", "parts"))
    assert whole.fingerprint == parts.fingerprint
    task = task_config("sst2", verify=False)
    assert set(digests(task, str(tmp_path / "parts"))) == {"train", "validation"}
    (tmp_path / "parts" / "glue" / "sst2" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="sst2/train: 1 of 2 shards are missing, the first is number 1"):
        load("sst2", tmp_path / "parts", verify=False)
