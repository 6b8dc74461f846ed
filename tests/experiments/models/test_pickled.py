"""Pickled weights become safetensors without anything of the pickle being run, or are refused in one line."""

from __future__ import annotations

import io
import os
import pickle as python_pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_content import in_shards, pickle
from safetensors.torch import load_file

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.models import pickled
from experiments.models.files import PICKLE, WEIGHTS, digests
from experiments.models.pickled import as_safetensors
from experiments.runs.plan import _model_identity


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    embedding = torch.randn(7, 4)
    return {
        "embedding": embedding, "tied": embedding, "half": torch.randn(3, 5).half(), "ids": torch.arange(9),
        "turned": torch.randn(4, 6).T, "part": torch.randn(10)[2:5], "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
def test_every_tensor_is_written_as_it_was_stored(folder: Path, old: bool):
    (folder / PICKLE).write_bytes(pickle(tensors(), old))
    made = as_safetensors(folder, "model.path=x")
    assert (made / "config.json").read_text() == "{}" and not (made / PICKLE).exists()
    written = load_file(made / WEIGHTS)
    assert {name: value.dtype for name, value in written.items()} == {n: v.dtype for n, v in tensors().items()}
    assert all(torch.equal(written[name], value) for name, value in tensors().items())


def test_weights_are_converted_once_and_again_when_a_file_or_the_copy_changed(folder: Path, monkeypatch):
    made, count, real = [], [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: count.append(1) or real(*a, **k))
    (folder / PICKLE).write_bytes(pickle(tensors()))
    for _ in range(2):
        made.append(as_safetensors(folder, "x"))
    assert made[0] == made[1] and len(count) == 1
    (made[0] / WEIGHTS).write_bytes(b"damaged")
    assert as_safetensors(folder, "x") == made[0] and load_file(made[0] / WEIGHTS) and len(count) == 2
    (folder / PICKLE).write_bytes(pickle({"other": torch.ones(2)}))
    assert as_safetensors(folder, "x") != made[0] and len(count) == 3


def test_processes_that_want_the_same_weights_wait_for_one(folder: Path, monkeypatch):
    """Threads stand in for processes: flock is held by an open file, not by a process."""
    count, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: count.append(1) or real(*a, **k))
    (folder / PICKLE).write_bytes(pickle({f"{i}": torch.randn(100, 100) for i in range(20)}))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(as_safetensors(folder, "x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1 and len(set(found)) == 1 and len(found) == 4


def test_a_conversion_that_fails_leaves_nothing_behind(folder: Path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (folder / PICKLE).write_bytes(pickle(tensors()))
    monkeypatch.setattr(pickled, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written as safetensors into .*No space.*set ELALORA_CACHE"):
        as_safetensors(folder, "x")
    left = [file for file in (folder.parent / "cache").rglob("*") if file.is_file() and not file.name.endswith(".lock")]
    assert left == []


def test_a_folder_with_pickled_weights_is_known_by_their_content(folder: Path):
    identity = {"path": str(folder), "revision": None, "sha256": None}
    (folder / PICKLE).write_bytes(pickle(tensors()))
    first = _model_identity(identity)
    assert set(first["files"]) == {"config.json", PICKLE}
    (folder / PICKLE).write_bytes(pickle({"other": torch.ones(2)}))
    assert _model_identity(identity) != first
    (folder / WEIGHTS).write_bytes(b"these count")
    assert set(digests(folder)) == {"config.json", WEIGHTS}
    assert as_safetensors(folder, "x") == folder


def test_what_a_killed_conversion_left_is_removed(folder: Path):
    (folder / PICKLE).write_bytes(pickle(tensors()))
    made = as_safetensors(folder, "x")
    left = made.with_name(f".{made.name}.99999")
    left.mkdir()
    (left / WEIGHTS).write_bytes(b"half")
    (made / WEIGHTS).unlink()
    assert as_safetensors(folder, "x") == made and not left.exists() and load_file(made / WEIGHTS)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def _compressed(_: Path) -> bytes:
    """A small file that is large in memory."""
    source, target = io.BytesIO(pickle({"zeros": torch.zeros(1_000_000)})), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    return target.getvalue()


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "code": (lambda place: pickle({"weight": torch.ones(2), "more": Runs(place)}), "names (posix|os).system, which is"),
    "old code": (lambda place: pickle({"more": Runs(place)}, old=True), "names (posix|os).system, which is"),
    "bare code": (lambda place: python_pickle.dumps(Runs(place)), "is refused: "),
    "a class": (lambda place: pickle({"config": ModelConfig(name="x", path="y")}), "schema.ModelConfig, which is"),
    "a checkpoint of training": (lambda place: pickle({"model": tensors(), "epoch": 3}), "model is not a plain tensor"),
    "a list": (lambda place: pickle([torch.ones(2)]), "it holds a list, not tensors by name"),
    "nothing": (lambda place: pickle({}), "it holds a dict, not tensors by name"),
    "an empty file": (lambda place: b"", "is refused: "),
    "a cut file": (lambda place: pickle(tensors())[:900], "is refused: "),
    "an old cut file": (lambda place: pickle(tensors(), old=True)[:900], "is refused: "),
    "another file": (lambda place: b"<html>404</html>", "is refused: "),
    "a large view": (lambda place: pickle({"one": torch.ones(1).expand(10_000, 10_000)}), "more than 4 times the file"),
    "a sparse tensor": (lambda place: pickle({"sparse": torch.eye(3).to_sparse()}), "sparse is not a plain tensor"),
    "no memory": (lambda place: pickle({"meta": torch.ones(2, device="meta")}), "meta is not a plain tensor"),
    "a number as name": (lambda place: pickle({3: torch.ones(2)}), "3 is not a plain tensor"),
    "a compressed file": (_compressed, "its archive is compressed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pickle_with_anything_else_is_refused_in_one_line_and_nothing_runs(name: str, folder: Path):
    make, line = BAD[name]
    (folder / PICKLE).write_bytes(make(folder / "ran"))
    with pytest.raises(UserError, match=line) as error:
        as_safetensors(folder, "model.path=x")
    text = str(error.value)
    assert text.startswith("model.path=x: pytorch_model.bin is refused: ") and "give a model with" in text
    assert "\n" not in text and "weights_only" not in text and not (folder / "ran").exists()
    assert not list((folder.parent / "cache").rglob("model.safetensors"))


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path):
    files = in_shards(tensors(), "pytorch_model", ".bin", pickle)
    files["pytorch_model.bin.index.json"] = b'{"weight_map": {"embedding": "../../other.bin"}}'
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"\.\./\.\./other.bin"):
        as_safetensors(folder, "x")
