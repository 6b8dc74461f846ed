"""Data sets from a hub: every layout, from the cache, without a network, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import load, task_config
from hub_content import UNPINNED, card, glue_repo, made_up, shards, summary_repos, table
from hub_server import TOKEN, Hub, Repo, serving
from pyarrow import parquet

from elalora.errors import UserError

FREE: dict[str, Any] = {"verify": False, "fingerprint": None}


@pytest.fixture(scope="module")
def repos() -> list[Repo]:
    return [glue_repo(), *summary_repos()]


@pytest.fixture
def hub(repos: list[Repo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(*repos) as hub:
        hub.use(monkeypatch, tmp_path)
        yield hub


def test_only_the_splits_that_are_used_are_fetched_once_and_then_need_no_network(hub: Hub, monkeypatch):
    first = load("rte", None, **FREE)
    asked = {path for _, path, _, _ in hub.requests if "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in asked} == {
        "README.md", "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"
    }  # fmt: skip
    assert first.source == f"hub nyu-mll/glue (rte) @{task_config('rte').hub_revision}"
    assert first.splits["train"]["sentence1"][:] == made_up(task_config("rte"), 24)["sentence1"]
    hub.requests.clear()
    again = load("rte", None, **FREE)
    assert not hub.asked("nyu-mll")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load("rte", None, **FREE).fingerprint == again.fingerprint == first.fingerprint
    with pytest.raises(UserError, match="cannot be read from the hub; put train.parquet .*HF_HUB_OFFLINE=1"):
        load("cola", None, **FREE)


def test_another_commit_is_never_answered_from_the_cache(hub: Hub, monkeypatch):
    """datasets.load_dataset takes the newest copy in its cache for any commit that it cannot reach."""
    load("rte", None, **FREE)
    with pytest.raises(UserError, match=r"\(it has no commit a{40}\)"):
        load("rte", None, hub_revision="a" * 40, **FREE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be read from the hub"):
        load("rte", None, hub_revision="a" * 40, **FREE)


@pytest.mark.parametrize("name", ["mnli", "mnli_mm"])
def test_both_tasks_of_mnli_read_their_own_validation_split(hub: Hub, name: str):
    split = {"mnli": "validation_matched", "mnli_mm": "validation_mismatched"}[name]
    assert set(load(name, None, **FREE).splits) == {"train", split}


def test_shards_are_read_in_order(hub: Hub):
    expected = made_up(task_config("xsum"), 12)
    assert hub.repos["datasets", "EdinburghNLP/xsum"]
    rows = load("xsum", None, **FREE).splits["train"]
    assert rows["document"][:] == expected["document"] and rows["label"][:] == expected["summary"]


def test_the_configuration_is_the_one_that_the_task_names(hub: Hub):
    rows = load("cnn_dailymail", None, **FREE).splits["train"]
    assert rows["document"][:] == made_up(task_config("cnn_dailymail"), 12, 0)["article"]
    older = load("cnn_dailymail", None, hub_name="1.0.0", **FREE).splits["train"]
    assert older["document"][:] == made_up(task_config("cnn_dailymail"), 12, 9)["article"]


def test_a_loading_script_is_not_run_and_the_hubs_own_parquet_copy_is_named(hub: Hub):
    with pytest.raises(
        UserError, match="no parquet files of train .*type task.hub_revision=refs/convert/parquet"
    ) as error:
        load("scitldr", None, hub_revision=UNPINNED, **FREE)
    assert "\n" not in str(error.value) and not hub.asked("scitldr.py")
    data = load("scitldr", None, hub_revision="refs/convert/parquet", **FREE)
    assert data.source == f"hub allenai/scitldr (Abstract) @{'6' * 40}"  # what the branch was when it was read
    assert data.splits["test"]["references"][:] == made_up(task_config("scitldr"), 12, 2)["target"]


def test_a_gated_data_set_needs_a_token_that_stays_out_of_every_file(hub: Hub, repos, tmp_path, monkeypatch):
    hub.add(Repo("nyu-mll/glue", repos[0].commits, "datasets", gated=True))
    with pytest.raises(UserError, match="it is gated: accept its terms on its page, and set HF_TOKEN"):
        load("rte", None, **FREE)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load("rte", None, **FREE).splits
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_a_broken_transfer_resumes_and_an_absent_data_set_is_one_line(hub: Hub, monkeypatch):
    hub.cut["rte/train-00000-of-00001.parquet"] = [200]
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    assert load("rte", None, **FREE).splits
    assert 200 in [first for _, _, _, first in hub.requests]
    with pytest.raises(UserError, match="the hub has none of that name, or it is private"):
        load("rte", None, hub_id="owner/absent", **FREE)


PAGES = {
    "several paths": card(rte={"train": ["a/train-0*", "a/train-1*"], "validation": "b/v.parquet"}),  # type: ignore[dict-item]
    "no front matter": b"# GLUE\n",
    "no list": b"---\nconfigs: 3\n---\n",
    "another form": b'---\nconfigs:\n- config_name: rte\n  data_files: "*.parquet"\n---\n',
    "bad yaml": b"---\nconfigs: [\n---\n",
}


@pytest.mark.parametrize("page", PAGES)
def test_files_are_found_whatever_the_page_says_of_them(hub: Hub, page: str):
    task = task_config("rte")
    train, validation = made_up(task, 6), made_up(task, 4, 1)
    files = {"README.md": PAGES[page]}
    if page == "several paths":
        files |= {"a/train-0.parquet": table({k: v[:3] for k, v in train.items()})}
        files |= {"a/train-1.parquet": table({k: v[3:] for k, v in train.items()}), "b/v.parquet": table(validation)}
    else:
        files |= shards("rte", "train", train, 2) | shards("rte", "validation", validation)
    hub.add(Repo("nyu-mll/glue", {task.hub_revision or "": files}, "datasets"))
    assert load("rte", None, **FREE).splits["train"]["sentence2"][:] == train["sentence2"]


def test_a_page_that_leads_out_of_its_folder_is_refused(hub: Hub):
    task = task_config("rte")
    page = card(rte={"train": "../../../secret*", "validation": "rte/validation-*"})
    hub.add(Repo("nyu-mll/glue", {task.hub_revision or "": {"README.md": page}}, "datasets"))
    with pytest.raises(UserError, match="README.md names .*secret.*, which leads out of the folder"):
        load("rte", None, **FREE)


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_official_rows_from_a_hub_have_the_official_fingerprint(name: str, hub: Hub, shared: Path):
    hub.add(glue_repo(shared / "data"))
    assert load(name, None).fingerprint == task_config(name).fingerprint


def test_summaries_from_a_hub_have_the_official_fingerprint(hub: Hub, shared: Path):
    """The hub's own columns: sentences in a list, targets in a list."""
    files = {}
    for split in ("train", "validation", "test"):
        rows = parquet.read_table(shared / "data" / "summarization" / "scitldr_a" / f"{split}.parquet").to_pydict()
        source = [text.split(" ") for text in rows["document"]]
        columns = {"source": source, "target": rows["references"], "paper_id": rows["id"]}
        files |= shards("Abstract", split, columns, 2)
    hub.add(Repo("allenai/scitldr", {"c" * 40: files}, "datasets"))
    data = load("scitldr", None, hub_revision="c" * 40)
    assert data.fingerprint == task_config("scitldr").fingerprint
    assert data.source == f"hub allenai/scitldr (Abstract) @{'c' * 40}"
