"""Every model and task of conf/ that a hub has loads from one, in its layout and starting from an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_content import CONF, cifar_repo, conf, glue_repo, model_repo, summary_repos
from hub_server import TOKEN, Hub, Repo, serving

from experiments.__main__ import main
from experiments.models.load import DECODERS
from experiments.runs.prepare import data_of, processor_of, splits_of
from experiments.runtime.places import CHECKOUT

NO_HUB = (
    "local", "minilm", "smollm2_135m", "vit_digits", "random_encoder", "own", "own_images", "own_prompts",
)  # fmt: skip
MODELS = [name for name in sorted(file.stem for file in (CONF / "model").glob("*.yaml")) if name not in NO_HUB]
TASKS = [file.stem for file in sorted((CONF / "task").glob("*.yaml")) if conf("task", file.stem).get("hub_id")]
# prompts read the same files, and MetaMathQA's are in tests/experiments/data/test_math_words.py
LOADED = [name for name in TASKS if conf("task", name).get("kind") != "causal"]
QUICK = ("deberta_v3_base", "qwen3_0_6b", "rte", "xsum")
FREE = ["task.verify=false", "task.fingerprint=null", "data.train_items=null"]
TASK = {"bart_base": "xsum", "bart_large": "xsum", "vit_b16_in21k": "digits"}


def each(names: list[str]) -> list[Any]:
    """Parameters, of which most are slow."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def repos() -> list[Repo]:
    return [glue_repo(), cifar_repo(), *summary_repos()]


@pytest.fixture
def hub(repos: list[Repo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for cached in (data_of, processor_of, splits_of):
        cached.cache_clear()
    with serving(*repos) as hub:
        hub.use(monkeypatch, tmp_path)
        yield hub


@pytest.mark.parametrize("name", each(MODELS))
def test_a_model_loads_in_its_layout_and_its_matrices_are_the_papers(name: str, hub: Hub, capsys):
    task = TASK.get(name, "rte")
    hub.add(model_repo(name))
    assert main(["check", f"model={name}", f"task={task}", *(FREE if task != "digits" else FREE[2:])]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    pickled = name.startswith("deberta") or name == "bart_large"
    shards = " x 2" if name in DECODERS else ""
    assert " ".join(line[3 : 6 if shards else 4]) == ("pickled" if pickled else "safetensors") + shards
    assert int(line[6 if shards else 4]) == conf("model", name).get("matrices", 36 if name == "minilm_hub" else 72)
    assert line[2] == (conf("model", name).get("revision") or "5" * 40)[:8] and hub.asked("/resolve/")


@pytest.mark.parametrize("name", each(LOADED))
def test_a_task_loads_in_its_layout(name: str, hub: Hub, capsys):
    task = conf("task", name)
    model = "vit_b16_in21k" if task.kind == "image" else "deberta_v3_small"
    model = "bart_base" if task.suite == "summarization" else model
    words = ["task.hub_revision=refs/convert/parquet"] if name in ("scitldr", "cifar100_full") else []
    hub.add(model_repo(model))
    assert main(["check", f"model={model}", f"task={name}", *FREE, *words]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == name


@pytest.mark.slow
def test_cifar100_loads_from_its_own_layout_too(hub: Hub, capsys):
    hub.add(model_repo("vit_b16_in21k"))
    words = ["model=vit_b16_in21k", "task=cifar100_full", f"task.hub_revision={'8' * 40}", *FREE]
    assert main(["check", *words]) == 0
    assert "900 / 100 / 100" in capsys.readouterr().out


def test_the_pages_have_every_model_and_task_of_the_hub():
    models, tasks = ((CHECKOUT / "docs" / page).read_text(encoding="utf-8") for page in ("models.md", "benchmarks.md"))
    assert not [name for name in MODELS if f"`{name}`" not in models]
    assert not [name for name in TASKS if f"`{name}`" not in tasks.partition("## VADER")[0]]


def test_every_file_of_conf_says_what_the_hub_has():
    for kind in ("model", "task"):
        for file in sorted((CONF / kind).glob("*.yaml")):
            if file.stem not in NO_HUB:
                comment = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
                assert any("hub" in line for line in comment), file


def command(hub: Hub, home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | hub.environment(home, **more)
    return subprocess.run([sys.executable, *words], cwd=CHECKOUT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_papers_main_model_trains_from_an_empty_cache_and_then_without_a_network(tmp_path: Path):
    """Shorter than the recipe in steps, tokens and items only, with small stand-ins for weights and rows."""
    fewer = [*FREE, "trainer.max_steps=6", "trainer.warmup=2", "method.t_initial=1", "method.t_final=2"]
    words = ["recipe=published", "method=adalora", "task=rte", "model=deberta_v3_base", "budget=r2"]
    words += [*fewer, "task.max_length=32", f"store.root={tmp_path / 'runs'}"]
    model, data = model_repo("deberta_v3_base"), glue_repo()
    gated = [Repo(repo.id, repo.commits, repo.kind, repo.refs, gated=True) for repo in (model, data)]
    with serving(*gated) as hub:
        refused = command(hub, tmp_path / "home", "run.py", *words)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and "it is gated" in refused.stderr
        done = command(hub, tmp_path / "home", "run.py", *words, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert "pytorch_model.bin (0 MB) is safetensors" in done.stderr
        hub.requests.clear()
        again = command(hub, tmp_path / "home", "run.py", *words, "seed=1", HF_HUB_OFFLINE="1")
        assert again.returncode == 0 and "becomes" not in again.stderr and not hub.requests
    for run in (tmp_path / "runs" / "rte").glob("*/"):
        read = json.loads((run / "manifest.json").read_text())["model"]
        assert read["commit"] == conf("model", "deberta_v3_base").revision
        assert set(read["converted"]) == {"model.safetensors"} and "pytorch_model.bin" in read["files"]
        assert sum(json.loads((run / "result.json").read_text())["ranks"]["final"].values()) == 2 * 72
    held = [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert held == [] and TOKEN not in done.stdout + done.stderr
