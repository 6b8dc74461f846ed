"""Whatever the bytes of a run's files: values of the right kind, a line about the damage, or a refusal in one line."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pyarrow
import pyarrow.parquet as parquet
import torch
from fuzzing import DEEP, WORDS, as_json, damaged, fuzzed, outcome, spoiled
from hypothesis import example
from hypothesis import strategies as st
from safetensors.torch import save

from analysis.reading.rounds import load_predictions, load_rounds
from analysis.reading.runs import load_runs
from experiments.standins.stored_runs import result, write_run
from experiments.store.compaction import compact
from experiments.store.find import find
from experiments.store.folder import RunFolder
from experiments.store.status import overview, read_store
from experiments.training import checkpoint

WHOLE = result("elalora", 3, 81.0) | {"commit": "0123456789abcdef"}
WITH_SOURCE = result("lora", 4, 81.0, identity__init_from="0" * 64)
STATUS = {"state": "failed", "failure": "nan", "attempts": 2, "heartbeat": 1.7e9, "step": 3, "total": 9, "error": "x"}
ROUND = {"step": 20, "ranks": {"a": 4}, "pruned": [["a", 3]], "grown": ["a"], "scores": {}, "notes": {}}
FACTS = {"versions": {"torch": "2"}, "commit": "0123", "dirty": False, "host": {"cpu": "x", "threads": 1}}


def texts(whole: Any) -> st.SearchStrategy[bytes]:
    """A JSON file that is damaged, or whole JSON with something else in it."""
    return spoiled(whole).map(lambda value: as_json(value).encode()) | damaged(as_json(whole).encode())


@contextmanager
def store(**files: bytes) -> Iterator[Path]:
    """A store with two whole runs and one of which some files are as given."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for seed in (0, 1):
            write_run(root, result("lora", seed, 80.0 + seed))
        victim = write_run(root, WHOLE)
        for name, content in files.items():
            (victim / name.replace("_", ".")).write_bytes(content)
        yield root


def victim_of(root: Path) -> Path:
    return next(root.glob("*/elalora-*"))


def shows(text: str) -> None:
    """A terminal can show it, and nothing in it steers one."""
    assert all(line.isprintable() for line in text.encode().decode().split("\n"))


@fuzzed(60, content=texts(WHOLE))
@example(DEEP.encode())
@example(as_json({k: v for k, v in WHOLE.items() if k != "id"}).encode())
@example(as_json({"schema": 1}).encode())
def test_a_result_is_whole_or_one_line(content: bytes) -> None:
    with store(result_json=content) as root:
        found = outcome(RunFolder(victim_of(root)).result)
        if found is not None:  # what other runs and commands take from it
            identity, read = found["identity"], found["readings"]["last"]["report"]
            names = [found["id"], found["metric"], read["split"], identity["method"]["name"]]
            assert all(isinstance(name, str) for name in names)
            assert isinstance((identity.get("model") or {}).get("name"), str | None)
            assert isinstance(identity.get("budget"), str | None) and isinstance(found.get("commit"), str | None)
            assert f"{read['metrics'][found['metric']]:.2f}" and {n: int(r) for n, r in found["ranks"]["final"].items()}
        outcome(lambda: find([str(root)], WHOLE["id"]))


@fuzzed(30, word=WORDS | st.text("0123456789abcdef*?[]/", max_size=70))
@example("**")
@example("[")
def test_a_word_that_is_no_id_finds_no_run(word: str) -> None:
    with store() as root:
        assert find([str(root)], word) is None


@fuzzed(40, status=texts(STATUS), words=st.lists(WORDS, max_size=2), line=texts({"seconds_per_step": 1.0}))
@example(DEEP.encode(), ["\ud800", "\x1b[2J"], b"\n" + DEEP.encode() + b"\n")
@example(as_json({**STATUS, "failure": "\ud800\x1b[2J"}).encode(), [], b"")
def test_status_shows_any_folder(status: bytes, words: list[str], line: bytes) -> None:
    config = f"overrides:\n{''.join(f'- {json.dumps(word)}' + chr(10) for word in words)}".encode()
    with store(status_json=status, config_yaml=config, timing_jsonl=line + b"\n") as root:
        (victim_of(root) / "result.json").unlink()
        runs = read_store(root)
        assert [run.state for run in runs].count("done") == 2 and len(runs) == 3
        shows(overview(runs))
        assert isinstance(RunFolder(victim_of(root)).status(), dict)


@fuzzed(20, content=texts(WHOLE) | texts(WITH_SOURCE), manifest=st.none() | texts(FACTS), status=texts(STATUS))
@example(as_json({**WHOLE, "seed": float("inf")}).encode(), None, b"{}")
@example(as_json({**WHOLE, "seed": 2**63}).encode(), None, b"{}")
@example(as_json({**WHOLE, "label": "\ud800"}).encode(), None, b"{}")
@example(as_json({**WHOLE, "ranks": {**WHOLE["ranks"], "places": {"a": [1]}}}).encode(), None, b"{}")
@example(as_json({**WHOLE, "identity": {**WHOLE["identity"], "trainer": 3}}).encode(), None, b"{}")
def test_a_damaged_run_is_a_row_or_a_line_and_the_others_stay(content: bytes, manifest: Any, status: bytes) -> None:
    files = {"result_json": content, "status_json": status} | ({} if manifest is None else {"manifest_json": manifest})
    with store(**files) as root:
        runs = load_runs(root)
        told = runs.attrs["problems"]
        assert set(runs["seed"][runs["method"] == "lora"]) >= {0, 1} and len(runs) + len(told) == 3
        shows("\n".join(told).replace("\n", ""))
        json.dumps(runs.to_dict("list"))
        (victim_of(root) / "result.json").unlink()
        (stopped,) = load_runs(root).attrs["unfinished"]
        assert str(stopped) and isinstance(stopped.ending, str)


@fuzzed(40, content=st.lists(texts(ROUND), max_size=3).map(b"\n".join))
@example(b"\xff\n\xff\n")
@example(as_json({**ROUND, "step": float("inf")}).encode() + b"\n{}\n{}\n")
def test_rounds_are_whole_or_one_line(content: bytes) -> None:
    with store(ranks_jsonl=content) as root:
        for entry in outcome(lambda: load_rounds(victim_of(root))) or ():
            assert isinstance(entry["step"], int) and all(isinstance(rank, int) for rank in entry["ranks"].values())


def checkpoint_files() -> tuple[bytes, bytes]:
    tensors = {"model/a": torch.arange(6.0).reshape(2, 3), "optimizer/0/step": torch.ones(2)}
    rest = {"schema": 2, "tensors": sorted(tensors), "step": 7, "groups": [{"lr": 0.1}], "progress": {"run": "0"}}
    return save(tensors), as_json(rest).encode()


TENSORS, STATE = checkpoint_files()


@fuzzed(60, tensors=st.just(TENSORS) | damaged(TENSORS), state=texts(json.loads(STATE)), digests=st.none() | texts({}))
@example(TENSORS, DEEP.encode(), None)
@example(TENSORS, STATE, DEEP.encode())
def test_a_checkpoint_is_whole_passed_over_or_one_line(tensors: bytes, state: bytes, digests: bytes | None) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "step-00000007"
        path.mkdir()
        given = {"tensors.safetensors": tensors, "state.json": state}
        for name, content in given.items():
            (path / name).write_bytes(content)
        fitting = {name: hashlib.sha256(content).hexdigest() for name, content in given.items()}
        (path / "digests.json").write_bytes(json.dumps(fitting).encode() if digests is None else digests)
        assert checkpoint.steps(Path(folder)) == [7]
        found = outcome(lambda: checkpoint.load(Path(folder), 7))
        assert found is None or isinstance(found, dict)


def predictions() -> bytes:
    buffer = io.BytesIO()
    table = {"idx": [1, 0], "label": [0, 1], "prediction": [1, 1], "score": [0.5, 0.75]}
    parquet.write_table(pyarrow.table(table), buffer)
    return buffer.getvalue()


PREDICTIONS = predictions()


@fuzzed(30, content=damaged(PREDICTIONS))
def test_predictions_are_items_or_one_line(content: bytes) -> None:
    with store(predictions_parquet=content) as root:
        items = outcome(lambda: load_predictions(victim_of(root)))
        assert items is None or list(items.columns) == ["idx", "label", "prediction", "score"]


def small_form() -> bytes:
    """The file of a compact store of three runs."""
    with store() as root:
        for folder in root.glob("*/*"):
            (folder / "predictions.parquet").write_bytes(PREDICTIONS)
        compact([root], root / "small")
        return next((root / "small").iterdir()).read_bytes()


SMALL = small_form()


@fuzzed(20, content=st.just(SMALL) | damaged(SMALL))
def test_a_compact_store_is_read_whole_or_refused_in_one_line(content: bytes) -> None:
    with TemporaryDirectory() as folder, mock.patch.dict("os.environ", ELALORA_CACHE=f"{folder}/cache"):
        file = Path(folder) / "store" / "vader_movies.runs.parquet"
        file.parent.mkdir()
        file.write_bytes(content)
        runs = outcome(lambda: load_runs(file.parent))
        assert runs is None or len(runs) + len(runs.attrs["problems"]) + len(runs.attrs["unfinished"]) == 3
        assert not list(Path(folder).glob("cache/compact/unpack-*")) and content != SMALL or runs is not None


@fuzzed(
    40, result=texts(WHOLE), config=texts({"data": {"root": "x"}}), items=st.just(PREDICTIONS) | damaged(PREDICTIONS)
)
@example(b"{}", b"a: [", PREDICTIONS)
@example(DEEP.encode(), b"x", PREDICTIONS)
def test_a_damaged_run_is_left_out_of_a_compact_store_in_one_line(result: bytes, config: bytes, items: bytes) -> None:
    with store(result_json=result, config_yaml=config) as root:
        for folder in root.glob("*/*"):
            (folder / "predictions.parquet").write_bytes(PREDICTIONS if "lora-r4-s" == folder.name[:9] else items)
        told = compact([root], root / "small")
        assert told[-1].startswith(("3 runs", "2 runs")) and all(len(line.splitlines()) == 1 for line in told)
