"""The loaders: counts, splits, fingerprints, and what happens when data are missing or wrong.

The VADER archive is fetched once through the loader itself; where PyPI cannot be reached, the tests
that need it are skipped and say so. GLUE tests need the folder of real data beside the repository.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets_on_disk import task_config

from elalora.errors import UserError
from experiments.config.task import KNOWN_METRICS, DataConfig, TaskConfig, check_task
from experiments.data import TaskData, content_hash, load_task, vader
from experiments.data.content import make_split
from experiments.data.glue import SPLITS as GLUE
from experiments.runtime.cache import cache_dir
from experiments.runtime.places import CHECKOUT

REPOSITORY = CHECKOUT
SHARED = REPOSITORY.parent / "shared" / "data"
TASKS = sorted(path.stem for path in (REPOSITORY / "conf" / "task").glob("*.yaml"))
VADER = [name for name in TASKS if name.startswith("vader_")]
GLUE_HERE = ["cola", "rte", "mrpc", "stsb", "sst2", "wnli"]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of GLUE data is not beside the repository")


@pytest.fixture(scope="session")
def sdist() -> bytes:
    try:
        return vader.read_sdist(DataConfig())
    except UserError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(f"PyPI is not reachable: {error}")


@pytest.fixture(scope="session")
def vader_data(sdist: bytes) -> dict[str, TaskData]:
    return {name: load_task(task_config(name), DataConfig()) for name in VADER}


def sizes(data: TaskData) -> dict[str, int]:
    return {name: len(rows) for name, rows in data.splits.items()}


# Configuration


@pytest.mark.parametrize("name", TASKS)
def test_every_task_config_is_named_as_its_file_and_complete(name: str) -> None:
    task = task_config(name)
    check_task(task)
    assert task.name == name and task.verify
    assert task.metrics and set(task.metrics) <= set(KNOWN_METRICS)
    assert bool(task.citation) == (task.source != "files")
    first = {"regression": "pearson", "summarization": "rouge1", "image": "accuracy"}
    assert task.metrics[0] == first.get(task.kind, task.metrics[0])
    if task.source == "glue":
        assert (task.hub_id, task.hub_name) == ("nyu-mll/glue", name.removesuffix("_mm").removesuffix("_prompt"))
        assert len(task.hub_revision or "") == 40


def test_content_is_pinned_wherever_a_whole_copy_was_at_hand() -> None:
    free = {name for name in TASKS if task_config(name).fingerprint is None and not name.startswith("digits")}
    vtab = {name for name in TASKS if task_config(name).source in ("vtab", "class_folders")}
    own = {"own", "own_images", "own_prompts", "sums"}
    prompts = {"gsm8k", "math", "commonsense_15k", "commonsense_170k", "alpaca_cleaned", "humaneval", "mbpp", "ifeval"}
    assert free == {"qnli", "mnli", "mnli_mm", "qqp", "xsum", "cnn_dailymail", *own, *prompts, *vtab}


def test_an_unknown_source_or_subset_names_the_known_ones() -> None:
    task = task_config("cola")
    with pytest.raises(
        UserError, match="task.source=web is unknown; it is one of .*digits, files, glue, .*math, .*vader, vtab"
    ):
        load_task(replace(task, source="web"), DataConfig())
    with pytest.raises(UserError, match="task.subset=ax .* one of cola, rte"):
        load_task(replace(task, subset="ax"), DataConfig())
    with pytest.raises(UserError, match="task.subset=books .* one of movies, amazon, nyt, tweets"):
        load_task(replace(task, source="vader", subset="books"), DataConfig())


# VADER


def plain_rows(sdist: bytes, file: str) -> list[tuple[float, str]]:
    """Intensity and text of every line, read in the plainest way, as an oracle for the loader."""
    with tarfile.open(fileobj=io.BytesIO(sdist)) as outer:
        name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(name)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            stream = archive.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
            assert stream is not None
            lines = io.TextIOWrapper(stream, encoding="utf-8").read().splitlines()
    replaced = [line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for line in lines]
    return [(float(score), text.strip()) for _, score, text in (line.split("\t") for line in replaced)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vader_amazon", {"train": 2932, "validation": 393, "test": 383}),
        ("vader_nyt", {"train": 4149, "validation": 522, "test": 519}),
        ("vader_tweets", {"train": 3360, "validation": 420, "test": 420}),
        ("vader_movies", {"train": 8453, "validation": 1056, "test": 1059}),
        ("vader_amazon_binary", {"train": 2856, "validation": 383, "test": 371}),
        ("vader_nyt_binary", {"train": 3950, "validation": 494, "test": 502}),
        ("vader_tweets_binary", {"train": 3356, "validation": 420, "test": 420}),
    ],
)
def test_vader_splits_have_the_documented_sizes(
    vader_data: dict[str, TaskData], name: str, expected: dict[str, int]
) -> None:
    assert sizes(vader_data[name]) == expected


@pytest.mark.parametrize("name", VADER)
def test_vader_rows_are_those_of_the_source_and_no_row_is_lost_or_doubled(
    vader_data: dict[str, TaskData], sdist: bytes, name: str
) -> None:
    data = vader_data[name]
    source = {
        domain * vader.DOMAIN + i: row
        for domain, subset in enumerate(data.config.domains or [data.config.subset])
        for i, row in enumerate(plain_rows(sdist, vader.SUBSETS[subset].file))
    }
    binary = data.config.kind != "regression"
    found: dict[int, tuple[str, float]] = {}
    for rows in data.splits.values():
        found.update(zip(rows["idx"], zip(rows["text"], rows["label"], strict=True), strict=True))
    assert sum(sizes(data).values()) == len(found)
    assert set(found) == {i for i, (score, _) in source.items() if score != 0 or not binary}
    for idx, (text, label) in found.items():
        score, expected = source[idx]
        assert text == expected
        assert label == (int(score > 0) if binary else pytest.approx(score, rel=1e-6))


def test_vader_label_balance_is_the_published_one(vader_data: dict[str, TaskData]) -> None:
    published = {"movies": (5242, 5326), "amazon": (2128, 1482), "nyt": (2204, 2742), "tweets": (2897, 1299)}
    for subset, (positive, negative) in published.items():
        name = "vader_movies" if subset == "movies" else f"vader_{subset}_binary"
        labels = Counter(label for rows in vader_data[name].splits.values() for label in rows["label"])
        assert labels == {1: positive, 0: negative}


@pytest.mark.parametrize("subset", ["amazon", "nyt"])
def test_no_document_is_on_two_sides(sdist: bytes, vader_data: dict[str, TaskData], subset: str) -> None:
    inner = vader.member(sdist, vader.INNER)
    raw = vader.member(inner, f"hutto_ICWSM_2014/{vader.SUBSETS[subset].file}_GroundTruth.txt")
    documents = [line.split(b"\t")[0].split(b"_")[0] for line in raw.split(b"\r\n")]
    assert len(set(documents)) == {"amazon": 300, "nyt": 498}[subset]
    sides = [{documents[i] for i in rows["idx"]} for rows in vader_data[f"vader_{subset}"].splits.values()]
    assert sum(map(len, sides)) == len(set(documents))


@pytest.mark.parametrize("name", ["vader_movies", "vader_tweets"])
def test_no_wording_is_on_two_sides(vader_data: dict[str, TaskData], name: str) -> None:
    sides = [{" ".join(t.casefold().split()) for t in rows["text"]} for rows in vader_data[name].splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_binary_and_intensity_tasks_share_rows_and_splits(vader_data: dict[str, TaskData]) -> None:
    for subset in ("amazon", "nyt", "tweets"):
        real, binary = vader_data[f"vader_{subset}"], vader_data[f"vader_{subset}_binary"]
        for name, rows in binary.splits.items():
            kept = {i: score for i, score in zip(*(real.splits[name][:][c] for c in ("idx", "label")), strict=True)}
            assert list(rows["idx"]) == [i for i, score in kept.items() if score != 0]
            assert list(rows["label"]) == [int(kept[i] > 0) for i in rows["idx"]]


def test_vader_splits_are_as_balanced_as_promised(vader_data: dict[str, TaskData]) -> None:
    for name in ("vader_movies", "vader_amazon_binary", "vader_nyt_binary", "vader_tweets_binary"):
        share = {k: sum(rows["label"]) / len(rows) for k, rows in vader_data[name].splits.items()}
        assert all(abs(value - share["train"]) < 0.05 for value in share.values())


def test_html_entities_of_tweets_are_turned_back_once() -> None:
    rows = vader.parse(b"1\t1.5\tlove &amp; peace &lt;3\r\n2\t-1\ta &amp;amp; b ")
    assert [(r.idx, r.key, r.score, r.text) for r in rows] == [
        (0, "1", 1.5, "love & peace <3"),
        (1, "2", -1.0, "a &amp; b"),
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"1\t0.5", "line 1 has 2 fields"), (b"1\t1\tfine\r\n2\t4.5\ttoo much", "line 2 has intensity 4.5")],
)
def test_a_malformed_line_is_refused_by_number(raw: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vader.parse(raw)


def test_wrong_vader_counts_are_refused() -> None:
    with pytest.raises(UserError, match=r"VADER tweets has 1 rows \(1 above zero, 0 below\); expected 4200"):
        vader.check_counts("tweets", [vader.Row(0, "1", 1.0, "good")])


def tar_with(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, member_kind in (("wanted.txt", tarfile.REGTYPE), (name, kind)):
            info = tarfile.TarInfo(member)
            info.type, info.linkname = member_kind, "wanted.txt"
            info.size = 4 if member_kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"text") if info.size else None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside.txt", tarfile.REGTYPE),
        ("a/../../outside.txt", tarfile.REGTYPE),
        ("/outside.txt", tarfile.REGTYPE),
        ("link.txt", tarfile.SYMTYPE),
        ("hard.txt", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_with_an_escaping_path_or_a_link_is_refused(name: str, kind: bytes) -> None:
    with pytest.raises(UserError, match="refused"):
        vader.member(tar_with(name, kind), "wanted.txt")


def test_a_plain_archive_is_read_and_a_missing_member_is_named() -> None:
    assert vader.member(tar_with("other.txt"), "wanted.txt") == b"text"
    with pytest.raises(UserError, match="no file absent.txt"):
        vader.member(tar_with("other.txt"), "absent.txt")


def test_an_archive_in_the_data_folder_comes_before_cache_and_network(
    sdist: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vader, "_pip_download", lambda *_: pytest.fail("the network was used"))
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    (root / vader.SDIST).write_bytes(sdist)
    data = load_task(task_config("vader_tweets"), DataConfig(root=str(root), cache=str(cache)))
    assert data.source == "vaderSentiment 3.3.2 source distribution"
    assert not list(cache.iterdir())


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / vader.SDIST).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the published .* remove it and run again"):
        vader.read_sdist(DataConfig(root=str(tmp_path), cache=str(tmp_path / "cache")))


def test_without_network_one_line_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="could not be fetched from PyPI .*type data.root=FOLDER") as caught:
        vader.read_sdist(DataConfig(cache=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_two_processes_that_fetch_at_once_leave_one_whole_file(sdist: bytes, tmp_path: Path) -> None:
    """pip is pointed at a folder here, so that the real fetching code runs without the network."""
    links, cache = tmp_path / "links", tmp_path / "cache"
    links.mkdir()
    (links / vader.SDIST).write_bytes(sdist)
    code = (
        "from experiments.config.task import DataConfig; from experiments.data import vader;"
        f"print(len(vader.read_sdist(DataConfig(cache={str(cache)!r}))))"
    )
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    environment["PYTHONPATH"] = str(REPOSITORY)
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == [str(len(sdist))] * 2
    assert [file.name for file in cache.iterdir()] == [vader.SDIST]


# GLUE


@needs_shared
@pytest.mark.parametrize("name", GLUE_HERE)
def test_glue_from_a_folder_is_the_official_content(name: str) -> None:
    data = load_task(task_config(name), DataConfig(root=str(SHARED)))
    assert sizes(data) == {split: known.rows for split, known in GLUE[name].items()}
    for split, rows in data.splits.items():
        table = parquet.read_table(SHARED / "glue" / name / f"{split}.parquet").to_pydict()
        assert rows.column_names == ["idx", *data.config.text, "label"]
        assert rows[:] == {column: table[column] for column in rows.column_names}
    assert data.source == f"local folder glue/{name}"


@needs_shared
@pytest.mark.parametrize(("name", "missing"), [("mnli", "train"), ("qnli", "train")])
def test_a_split_that_the_folder_lacks_is_named(name: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"glue/{name}/{missing}.parquet in data.root is missing"):
        load_task(task_config(name), DataConfig(root=str(SHARED)))


@pytest.fixture
def wnli(tmp_path: Path) -> Path:
    """A copy of the smallest task that a test may spoil."""
    if not SHARED.is_dir():
        pytest.skip("the folder of GLUE data is not beside the repository")
    shutil.copytree(SHARED / "glue" / "wnli", tmp_path / "glue" / "wnli")
    return tmp_path


def spoil(root: Path, change: str) -> None:
    file = root / "glue" / "wnli" / "train.parquet"
    table = parquet.read_table(file)
    if change == "row":
        table = table.slice(1)
    elif change == "column":
        table = table.drop_columns(["idx"])
    else:
        column = "label" if change == "label" else "sentence1"
        values = table[column].to_pylist()
        values[0] = 1 - values[0] if change == "label" else values[0] + "!"
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    parquet.write_table(table, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("row", "wnli train has 634 rows; the official split has 635"),
        ("label", "wnli train has rows per label .*; expected"),
        ("column", "no column 'idx' among"),
        ("text", "right counts but other content: fingerprint .* type task.fingerprint="),
    ],
)
def test_spoilt_data_are_refused(wnli: Path, change: str, message: str) -> None:
    spoil(wnli, change)
    with pytest.raises(UserError, match=message):
        load_task(task_config("wnli"), DataConfig(root=str(wnli)))


def test_another_content_can_be_accepted_by_its_fingerprint(wnli: Path) -> None:
    spoil(wnli, "text")
    data = load_task(replace(task_config("wnli"), fingerprint=None), DataConfig(root=str(wnli)))
    again = load_task(replace(task_config("wnli"), fingerprint=data.fingerprint), DataConfig(root=str(wnli)))
    assert again.fingerprint == data.fingerprint != task_config("wnli").fingerprint


def test_a_broken_parquet_file_is_named(wnli: Path) -> None:
    (wnli / "glue" / "wnli" / "train.parquet").write_bytes(b"PAR1 no, it is not")
    with pytest.raises(UserError, match="glue/wnli/train.parquet in data.root is not a parquet file"):
        load_task(task_config("wnli"), DataConfig(root=str(wnli)))


def test_without_hub_and_folder_one_line_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    wanted = "qqp: nyu-mll/glue cannot be read from the hub; put train.parquet and validation.parquet into"
    with pytest.raises(UserError, match=wanted):
        load_task(task_config("qqp"), DataConfig(root=str(tmp_path)))


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root=.*absent is not a folder"):
        load_task(task_config("cola"), DataConfig(root=str(tmp_path / "absent")))


# Fingerprint and cache folder

PAIR = TaskConfig(name="pair", source="glue", subset="rte", text=["a", "b"])


def pair_hash(name: str = "train", **change: list) -> str:
    columns: dict[str, list] = {"idx": [0, 1], "a": ["x", "yz"], "b": ["", "w"], "label": [0, 1], **change}
    return content_hash({name: make_split(PAIR, columns)}, PAIR)


def test_the_fingerprint_is_fixed() -> None:
    assert pair_hash() == "ebeba86e28c380023867359b802ed65d74aa5c83d59230c73adc79673a6f72f2"


@pytest.mark.parametrize(
    "change",
    [
        {"label": [1, 1]},
        {"idx": [0, 2]},
        {"a": ["x", "y"], "b": ["", "zw"]},
        {"a": ["yz", "x"], "b": ["w", ""], "label": [1, 0], "idx": [1, 0]},
        {"name": "test"},
    ],
)
def test_the_fingerprint_sees_labels_numbers_columns_order_and_split_names(change: dict) -> None:
    assert pair_hash(**change) != pair_hash()


def test_the_cache_folder_is_given_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "variable"))
    assert cache_dir(None) == tmp_path / "variable"
    assert cache_dir(str(tmp_path / "given")) == tmp_path / "given"
    monkeypatch.delenv("ELALORA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir(None) == tmp_path / "home" / ".cache" / "elalora"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written; choose another with data.cache=FOLDER"):
        cache_dir(str(tmp_path / "file" / "below"))
