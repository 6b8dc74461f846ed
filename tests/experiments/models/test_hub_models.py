"""Models from a hub: first use, from the cache, without a network, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_content import bart, byte_pairs, config_file, deberta_v3, drawn, in_shards, pickle, roberta, safetensors
from hub_server import STRANGER, TOKEN, Hub, Repo, serving

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models.load import Loaded, load_model, load_processor
from experiments.runtime.digests import sha256_of

COMMIT, OLDER = "c" * 40, "0" * 40


def task(kind: str = "classification") -> TaskConfig:
    columns = ["document"] if kind == "summarization" else ["text"]
    return TaskConfig(name="t", source="files", subset="t", kind=kind, text=columns, num_labels=2)


def model(path: str = "owner/model", **more: Any) -> ModelConfig:
    return ModelConfig(name="local", path=path, **{"revision": COMMIT, **more})


def loaded(path: str = "owner/model", kind: str = "classification", **more: Any) -> Loaded:
    own = model(path, **more)
    load_processor(own, task(kind))
    return load_model(own, task(kind), 0)


@pytest.fixture(scope="module")
def old_layout() -> dict[str, bytes]:
    return deberta_v3(2)


@pytest.fixture
def hub(old_layout: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repos = [Repo("owner/model", {COMMIT: old_layout, OLDER: {"README.md": b"soon"}}, refs={"main": COMMIT})]
    repos.append(Repo("owner/gated", {COMMIT: old_layout}, gated=True))
    with serving(*repos) as hub:
        hub.use(monkeypatch, tmp_path)
        yield hub


def test_what_is_in_the_cache_is_never_asked_for_again_and_needs_no_network(hub: Hub, monkeypatch, capsys):
    first = loaded()
    assert hub.asked("/resolve/") and first.read["commit"] == COMMIT
    assert sorted(first.read["files"]) == ["config.json", "pytorch_model.bin", "spm.model", "tokenizer_config.json"]
    assert "pytorch_model.bin (0 MB) is safetensors in" in capsys.readouterr().err
    hub.requests.clear()
    again = loaded()
    assert not hub.asked("owner/model") and "becomes" not in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = loaded()
    assert again.read == offline.read == first.read and not hub.asked("owner/model")
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, offline.network.state_dict()[name]), name


def test_pickled_weights_are_those_that_the_model_gets_and_both_digests_are_kept(hub: Hub, tmp_path: Path):
    result = loaded()
    stored = torch.load(next((tmp_path / "hf").rglob("pytorch_model.bin")), weights_only=True)
    own = result.network.state_dict()
    shared = [name for name in stored if name in own]
    assert len(shared) == len(stored) - 1 and all(torch.equal(own[name], stored[name].float()) for name in shared)
    [made] = (tmp_path / "elalora" / "safetensors").rglob("model.safetensors")
    assert result.read["converted"] == {"model.safetensors": sha256_of(made)}
    assert result.read["files"]["pytorch_model.bin"] == sha256_of(next((tmp_path / "hf").rglob("pytorch_model.bin")))


def test_a_transfer_that_breaks_off_resumes_where_it_stopped(hub: Hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what a cut can lose
    hub.cut["pytorch_model.bin"] = [5000]
    assert loaded().read["commit"] == COMMIT
    firsts = [first for method, path, _, first in hub.requests if method == "GET" and first]
    assert firsts == [5000]


@pytest.mark.slow
def test_a_transfer_that_never_ends_is_one_line_and_the_next_command_starts_again(hub: Hub):
    hub.cut["pytorch_model.bin"] = [0] * 6
    with pytest.raises(UserError, match=r"the transfer failed \(.*\): run the same command again"):
        loaded()
    assert loaded().read["commit"] == COMMIT


@pytest.mark.slow
def test_a_hub_that_is_too_slow_is_one_line(hub: Hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.delay = 0.4
    with pytest.raises(UserError, match=r"the transfer failed \(ReadTimeout: "):
        loaded()
    hub.delay = 0.0
    assert loaded().read["commit"] == COMMIT


def test_a_slow_hub_is_waited_for(hub: Hub):
    hub.delay = 0.2
    assert loaded().read["commit"] == COMMIT


@pytest.mark.parametrize(
    ("path", "more", "token", "line"),
    [
        ("owner/model", {"revision": "a" * 40}, "", r"\(it has no commit a{40}\)"),
        ("owner/absent", {}, "", r"\(the hub has none of that name, or it is private and needs HF_TOKEN\)"),
        ("owner/gated", {}, "", r"\(it is gated: accept its terms on its page, and set HF_TOKEN"),
        ("owner/gated", {}, STRANGER, r"\(it is gated, and the account of HF_TOKEN has no access"),
        ("owner/model", {}, "hf_expired", r"\(the hub refuses HF_TOKEN: set a valid one, or none\)"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub: Hub, path, more, token, line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=f"model.path={path} cannot be read from the hub {line}.*model=minilm") as error:
        loaded(path, **more)
    assert "\n" not in str(error.value) and "hf_" not in str(error.value)


def test_a_commit_without_weights_or_tokenizer_is_one_line(hub: Hub):
    with pytest.raises(UserError, match="model.path=owner/model has no tokenizer that loads"):
        loaded(revision=OLDER)


def test_a_gated_model_is_read_with_a_token_that_reaches_neither_the_cdn_nor_a_file(
    hub: Hub, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert loaded("owner/gated").read["commit"] == COMMIT
    sent = {path.startswith("/owner/"): token for _, path, token, _ in hub.requests if "agent" not in path}
    assert sent == {True: TOKEN, False: None} or {t for _, p, t, _ in hub.requests if p.count("/") == 1} == {None}
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_hub_that_is_down_is_one_line_and_the_cache_does_without_it(hub: Hub):
    loaded()
    hub.status = 503
    assert loaded().read["commit"] == COMMIT
    with pytest.raises(UserError, match="the hub answers with status 503: try again later"):
        loaded("owner/gated")


def test_part_of_a_model_in_the_cache_is_not_taken_for_the_whole_without_a_network(hub: Hub, tmp_path, monkeypatch):
    loaded()
    for file in (tmp_path / "hf").rglob("spm.model"):
        file.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 forbids fetching, and the cache does not have all its files"):
        loaded()


def test_an_adapter_on_the_hub_is_refused(hub: Hub, old_layout):
    hub.add(Repo("owner/adapted", {COMMIT: {**old_layout, "adapter_config.json": b"{}"}}))
    with pytest.raises(UserError, match="has an adapter"):
        loaded("owner/adapted")


BASE = ("classification", lambda: roberta(2))
LAYOUTS = {
    "safetensors in shards": (*BASE, lambda tensors: in_shards(tensors, "model", ".safetensors", safetensors)),
    "pickles in shards": (*BASE, lambda tensors: in_shards(tensors, "pytorch_model", ".bin", pickle)),
    "a pickle of before torch 1.6": (*BASE, lambda tensors: {"pytorch_model.bin": pickle(tensors, old=True)}),
    "tied weights": ("summarization", lambda: bart(2), lambda tensors: {"pytorch_model.bin": pickle(tensors)}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_model_its_weights(hub: Hub, name: str):
    kind, make, store = LAYOUTS[name]
    files, tensors = make()
    hub.add(Repo("owner/other", {COMMIT: files | store(tensors)}))
    own = loaded("owner/other", kind).network.state_dict()
    shared = [tensor for tensor in tensors if tensor in own]
    assert len(shared) >= 0.9 * len(tensors) - 6
    assert all(torch.equal(own[tensor], tensors[tensor]) for tensor in shared)


def test_safetensors_are_taken_where_there_are_both_and_the_pickle_is_not_fetched(hub: Hub):
    files, tensors = roberta(2)
    files |= {"model.safetensors": safetensors(tensors), "pytorch_model.bin": b"never read"}
    hub.add(Repo("owner/both", {COMMIT: files}))
    assert "pytorch_model.bin" not in loaded("owner/both").read["files"] and not hub.asked("pytorch_model.bin")


def test_pickled_weights_are_pinned_by_their_own_checksum(hub: Hub, old_layout: dict[str, bytes]):
    digest = hashlib.sha256(old_layout["pytorch_model.bin"]).hexdigest()
    assert loaded(revision=None, sha256=digest).read["commit"] == COMMIT
    with pytest.raises(UserError, match="pytorch_model.bin has sha256 .*give the checksum of this model"):
        loaded(revision=None, sha256="0" * 64)


def test_layer_norms_under_their_names_of_tensorflow_are_read(hub: Hub):
    """Checkpoints of 2018 and 2019 name a LayerNorm's weight gamma and its bias beta."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=300, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    tensors = drawn(BertModel, config).state_dict()
    for name in [name for name in tensors if "LayerNorm" in name]:
        tensors[name] = torch.randn_like(tensors[name])
    old = {
        f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": value
        for name, value in tensors.items()
    }
    files = {"config.json": config_file(config), "pytorch_model.bin": pickle(old, old=True), **byte_pairs()}
    hub.add(Repo("owner/old", {COMMIT: files}))
    own = loaded("owner/old").network.state_dict()
    assert all(torch.equal(own[f"bert.{name}"], value) for name, value in tensors.items())
