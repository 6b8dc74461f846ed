"""A run's model is the content of what is read: planned, compared again at loading, and out of reach afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets_on_disk import write_csv
from safetensors.torch import load_file, save_file
from tiny_runs import QUICK, config

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models import files as model_files
from experiments.models.load import load_model, load_processor
from experiments.runs.plan import make_plan
from experiments.runs.prepare import prepare, processor_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TASK = TaskConfig(name="t", source="files", subset="t", text=["text"], max_length=16)


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    """A model folder of the test's own."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def words(tmp_path):
    """A run on a few rows of text."""
    for name in ("train", "test"):
        write_csv(tmp_path / f"{name}.csv", [(f"{name} good {i}" if i % 2 else f"bad {i}", i % 2) for i in range(40)])
    files = [f"task.files.{name}={tmp_path}/{name}.csv" for name in ("train", "test")]
    return ["task=own", *files, *QUICK, "data.train_items=null", "method=lora", f"store.root={tmp_path}/store"]


def plan_of(folder, words=("task=vader_tweets", *QUICK, "method=lora"), *more):
    return make_plan(config(*words, f"model.path={folder}", *more))


def rewritten(file, **change):
    file.write_text(json.dumps(json.loads(file.read_text() if file.exists() else "{}") | change))


def other_weights(file):
    save_file({k: v + 1 for k, v in load_file(file).items()}, file, {"format": "pt"})


def sharded(folder):
    """The same weights in two files with an index."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / INDEX).write_text(json.dumps(index))
    return list(parts)


# -- planning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "config.json", "config.4.0.0.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer.4.0.0.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "chat_template.jinja", "additional_chat_templates/a.jinja", "vocab.txt", "merges.txt", "spiece.model",
])  # fmt: skip
def test_every_file_that_is_read_is_part_of_the_id(name, folder):
    before = plan_of(folder).id
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "{}") + "\n")
    assert plan_of(folder).id != before


def test_what_nobody_reads_is_not(folder):
    before = plan_of(folder).id
    sharded(folder)  # beside model.safetensors, which comes first
    for name in ("README.md", "modeling_tiny.py", "pytorch_model.bin", "trainer_state.json", "onnx/model.json", ".git"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    assert plan_of(folder).id == before
    load_model(ModelConfig(name="tiny", path=str(folder)), TASK, 0, plan_of(folder).identity["model"]["files"])


def test_a_folder_is_known_by_its_content_and_not_by_its_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert plan_of(tmp_path / "copy").id == plan_of(folder).id


def test_shards_are_known_by_their_content_through_links_too(folder, tmp_path):
    whole, shards = plan_of(folder).id, sharded(folder)
    (folder / WEIGHTS).unlink()
    first = plan_of(folder).id
    assert first != whole
    for shard in shards:  # as in the hub's cache
        (folder / shard).rename(tmp_path / shard)
        (folder / shard).symlink_to(tmp_path / shard)
    assert plan_of(folder).id == first
    other_weights(tmp_path / shards[1])
    assert plan_of(folder).id != first


def test_an_index_that_leads_out_of_the_folder_is_refused(folder):
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(UserError, match="index.json names ../outside.safetensors, which leads out of the folder"):
        plan_of(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_in_the_folder_is_refused_by_name_before_anything_is_loaded(name, folder):
    (folder / name).write_text("{}")
    with pytest.raises(UserError, match=f"model.path=.*has an adapter .{name}.*move it"):
        plan_of(folder)
    with pytest.raises(UserError, match=name):
        load_model(ModelConfig(name="tiny", path=str(folder)), TASK, 0)


def test_a_digest_that_a_user_pins_is_the_one_of_the_weights(folder):
    sha256 = plan_of(folder).identity["model"]["sha256"]
    pinned = f"model.sha256={sha256}"
    assert plan_of(folder, ("task=vader_tweets", *QUICK, "method=lora"), pinned).id == plan_of(folder).id
    with pytest.raises(UserError, match="model.sha256=null"):
        load_model(ModelConfig(name="tiny", path=str(folder), sha256="0" * 64), TASK, 0)


def test_planning_a_sweep_reads_every_file_once(folder, monkeypatch):
    digest, reads = hashlib.file_digest, []
    monkeypatch.setattr("hashlib.file_digest", lambda stream, kind: reads.append(stream.name) or digest(stream, kind))
    ids = {plan_of(folder, ("task=vader_tweets", *QUICK, "method=lora"), f"seed={seed}").id for seed in range(4)}
    assert len(ids) == 4
    assert reads and len(reads) == len(set(reads))


def test_every_vocabulary_that_transformers_names_is_read_as_part_of_a_model():
    from fnmatch import fnmatch

    import transformers

    folder = Path(transformers.__file__).parent
    text = "".join(file.read_text(encoding="utf-8") for file in folder.glob("models/*/tokenization_*.py"))
    names = set(re.findall(r'"\w*_file(?:_\w+)?": *"([^"]+\.\w+)"', text))
    assert {"vocab.txt", "merges.txt", "spiece.model", "tokenizer.json"} <= names
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in model_files.READ)] == []


# -- loading ---------------------------------------------------------------------------------------------------


def _add(name):
    return lambda folder: (folder / name).write_text("{}")


CHANGES = {
    WEIGHTS: lambda folder: other_weights(folder / WEIGHTS),
    "config.json": lambda folder: rewritten(folder / "config.json", hidden_act="relu"),
    "tokenizer.json": lambda folder: rewritten(folder / "tokenizer.json", truncation=None, more=1),
    "added_tokens.json": _add("added_tokens.json"),
    "generation_config.json": _add("generation_config.json"),
    "tokenizer_config.json": lambda folder: (folder / "tokenizer_config.json").unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_after_planning_is_refused_by_name_when_it_is_loaded(name, folder, words):
    plan = plan_of(folder, words)
    CHANGES[name](folder)
    with pytest.raises(UserError, match=f"{name} changed after the run was planned") as caught:
        prepare(plan)
    assert "\n" not in str(caught.value)


def test_weights_swapped_between_two_runs_of_a_sweep_end_the_second_run_only(folder, words, tmp_path):
    from experiments.runs.run import run

    plans = [plan_of(folder, words, f"seed={seed}", "trainer.max_steps=2") for seed in (0, 1)]
    run(plans[0])
    manifest = json.loads((plans[0].folder.path / "manifest.json").read_text())
    assert manifest["model"]["files"] == plans[0].identity["model"]["files"]
    other_weights(folder / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS} changed after the run was planned"):
        run(plans[1])
    assert len(list(tmp_path.glob("store/*/*/result.json"))) == 1


def test_a_change_that_keeps_size_and_time_is_noticed(folder):
    before, plan = (folder / "config.json").stat(), plan_of(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"gelu"', '"relu"'))
    os.utime(folder / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "config.json").stat().st_size == before.st_size
    with pytest.raises(UserError, match="config.json changed after"):
        load_model(plan.config.model, TASK, 0, plan.identity["model"]["files"])
    assert plan_of(folder).id != plan.id


def test_a_tokenizer_in_memory_is_the_one_of_its_plan(folder):
    first = plan_of(folder)
    tokenizer = processor_of(first)
    vocabulary = tokenizer.get_vocab()
    whole = json.loads((folder / "tokenizer.json").read_text())
    pieces = whole["model"]["vocab"]
    whole["model"]["vocab"] = dict(zip(pieces, reversed(pieces.values()), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    second = plan_of(folder)
    assert processor_of(second).get_vocab() != vocabulary
    assert processor_of(first) is tokenizer  # what was planned, though it no longer lies in the folder


def test_weights_in_memory_do_not_follow_their_file(folder):
    network = load_model(ModelConfig(name="tiny", path=str(folder)), TASK, 0).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    size = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:  # in place, as cp does
        file.seek(size // 2)
        file.write(b"\1" * (size - size // 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_file_that_changes_while_it_is_loaded_is_refused(folder, monkeypatch):
    import transformers

    cls, real = transformers.AutoTokenizer, transformers.AutoTokenizer.from_pretrained

    def swapped(source, **more):
        (folder / "vocab.txt").write_text("another")
        rewritten(folder / "tokenizer_config.json", more=1)
        return real(source, **more)

    monkeypatch.setattr(cls, "from_pretrained", swapped)
    with pytest.raises(UserError, match="tokenizer_config.json changed while it was being read"):
        load_processor(ModelConfig(name="tiny", path=str(folder)), TASK)


def test_weights_under_a_name_of_config_json_are_refused(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    rewritten(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(UserError, match="transformers_weights=other.safetensors"):
        load_model(ModelConfig(name="tiny", path=str(folder)), TASK, 0)


# -- packages and the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "remedy"), [("tokenizer.json", "force-reinstall"), ("added_tokens.json", "added")])
def test_a_changed_file_of_the_embedded_model_is_refused(name, remedy, tmp_path, monkeypatch):
    package, copy = model_files.embedded_minilm(), tmp_path / "copy"
    copy.mkdir()
    for file in package.glob("*.*"):
        if file.name != name:
            (copy / file.name).symlink_to(file)
    (copy / name).write_text("{}")
    monkeypatch.setattr(model_files, "distribution", lambda _: type("D", (), {"locate_file": lambda _, name: copy})())
    with pytest.raises(UserError, match=remedy):
        load_processor(ModelConfig(name="minilm", path="embedded"), TASK)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """owner/tiny in a hub's cache, without a network."""
    from huggingface_hub import constants

    root, commit = tmp_path / "hub" / "models--owner--tiny", "c" * 40
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(root.parent))
    return root / "snapshots" / commit


def test_a_hub_model_leaves_its_commit_and_digests(hub, folder):
    read = load_model(ModelConfig(name="tiny", path="owner/tiny", revision="c" * 40), TASK, 0).read
    assert read == {"commit": "c" * 40, "files": model_files.digests(folder)}


def test_an_adapter_on_the_hub_is_refused(hub):
    import peft
    from transformers import AutoModel

    model = peft.get_peft_model(AutoModel.from_pretrained(hub), peft.LoraConfig(target_modules=["query"]))
    model.save_pretrained(hub)
    with pytest.raises(UserError, match="has an adapter"):
        load_model(ModelConfig(name="tiny", path="owner/tiny", revision="c" * 40), TASK, 0)
