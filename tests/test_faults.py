"""Signals, full disks, damaged and foreign files: a run loses nothing, says one line, and ends as if undisturbed."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from kill_harness import ARMS, BASE, files, write_data
from runs import ROOT

from elalora import UserError
from experiments import checkpoint
from experiments.compose import compose_run
from experiments.manifest import manifest
from experiments.plan import make_plan
from experiments.runner import Preempted, RunFailed, run
from experiments.signals import SIGNALS, listening
from experiments.store import RunFolder
from experiments.trainer import Trainer


@pytest.fixture(scope="module")
def plan_in(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    more = [*write_data(folder), f"model.path={tiny_model_dir}", f"data.cache={folder}/cache"]
    return lambda store, *words: make_plan(compose_run([*BASE, *more, *ARMS["elalora"], f"store.root={store}", *words]))


@pytest.fixture(scope="module")
def whole(plan_in, tmp_path_factory):
    plan = plan_in(tmp_path_factory.mktemp("whole"))
    run(plan)
    return files(plan.folder.path)


def at_call(monkeypatch, owner, name, number, action):
    """Does `action` once, before the call of that number."""
    plain, calls = getattr(owner, name), []

    def wrapped(*words, **more):
        calls.append(name)
        if len(calls) == number:
            action()
        return plain(*words, **more)

    monkeypatch.setattr(owner, name, wrapped)


FULL = pytest.mark.full


@pytest.mark.parametrize(
    "number", [SIGNALS[0], *(pytest.param(s, marks=FULL) for s in SIGNALS[1:])], ids=lambda s: s.name
)
@pytest.mark.parametrize(("owner", "name", "call"), [
    (Trainer, "_step", 11), (Trainer, "_to_device", 40), (Trainer, "evaluate", 9), (checkpoint, "save", 3),
], ids=["step", "batch", "final reading", "checkpoint"])  # fmt: skip
def test_a_signal_anywhere_leaves_a_run_that_goes_on_exactly(
    number, owner, name, call, plan_in, whole, tmp_path, monkeypatch
):
    plan, before = plan_in(tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Preempted, match=f"{number.name} .*the same command goes on"):
            run(plan)
    status = plan.folder.status()
    assert status["state"] == status["failure"] == "preempted" and not plan.folder.done
    assert signal.getsignal(number) is before
    run(plan)
    assert files(plan.folder.path) == whole


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt, match="SIGTERM, then SIGINT"), listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "name", "call"), [
    (os, "fsync", 15), (RunFolder, "append", 4), ("pyarrow.parquet", "write_table", 1),
    pytest.param(os, "fsync", 2, marks=FULL), pytest.param(os, "replace", 6, marks=FULL),
    pytest.param("safetensors.torch", "save_file", 2, marks=FULL),
    pytest.param("experiments.results", "export_adapter", 1, marks=FULL),
    pytest.param(RunFolder, "sync", 1, marks=FULL),
])  # fmt: skip
def test_a_full_disk_fails_the_run_in_one_line_and_loses_nothing(
    owner, name, call, plan_in, whole, tmp_path, monkeypatch
):
    import importlib

    plan = plan_in(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, importlib.import_module(owner) if isinstance(owner, str) else owner, name, call, full)
        with pytest.raises(RunFailed, match="No space left on device"):
            run(plan)
    assert not plan.folder.done and not list((plan.folder.path / "checkpoint").glob(".part-*"))
    run(plan)
    assert files(plan.folder.path) == whole


@pytest.mark.parametrize("kept", [1, 0], ids=["the newest", "both"])
def test_damaged_checkpoints_cost_steps_and_no_number(kept, plan_in, whole, tmp_path, monkeypatch, capsys):
    plan = plan_in(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "_step", 14, full)
        with pytest.raises(RunFailed):
            run(plan)
    steps = checkpoint.steps(plan.folder.path / "checkpoint")
    assert steps == [12, 9]
    for step in steps[: 2 - kept]:
        (plan.folder.path / "checkpoint" / f"step-{step:08d}" / "state.json").write_text('{"half')
    with (plan.folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "spl')
    (plan.folder.path / "status.json").write_text('{"sta')
    times = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))  # a clock that runs backwards
    run(plan)
    assert capsys.readouterr().err.count("is damaged; going on from the one before") == 2 - kept
    assert files(plan.folder.path) == whole


def test_the_checkpoint_of_another_run_or_version_is_told_and_stays(plan_in, tmp_path, monkeypatch):
    plan = plan_in(tmp_path)
    at_call(monkeypatch, Trainer, "_step", 8, full)
    with pytest.raises(RunFailed):
        run(plan)
    folder = plan.folder.path / "checkpoint"
    state = checkpoint.load(folder, 6)
    wrong = {
        "does not fit this run: it is of the run other": {**state, "progress": {**state["progress"], "run": "other"}},
        "it has no progress": {k: v for k, v in state.items() if k != "progress"},
        "does not fit this run: KeyError": {k: v for k, v in state.items() if not k.startswith("model/")},
    }
    for said, content in wrong.items():
        checkpoint.save(folder, 7, content)
        before = files_and_times(plan.folder.path)
        with pytest.raises(UserError, match=said):
            run(plan)
        assert files_and_times(plan.folder.path) == before
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    with pytest.raises(UserError, match="has schema 1, this version reads 2"):
        run(plan)


def files_and_times(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_store_that_cannot_be_written_is_one_line(plan_in, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        run(plan_in(tmp_path / "file"))


def test_nothing_secret_reaches_a_run_folder(plan_in, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "planted-secret-0123456789")
    plan = plan_in(tmp_path)
    run(plan)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) > 10 and not [path for path in found if b"planted-secret" in path.read_bytes()]


def test_no_product_code_reads_what_could_run_code():
    forbidden = re.compile(
        r"\bimport pickle|pickle\.load|torch\.load\(|joblib\.load|trust_remote_code=True|(?<![.\w])eval\("
    )
    sources = [p for part in ("elalora", "baselines", "experiments", "analysis") for p in (ROOT / part).rglob("*.py")]
    found = [f"{p.name}: {m.group()}" for p in sources for m in forbidden.finditer(p.read_text(encoding="utf-8"))]
    assert len(sources) > 60 and not found


def test_the_manifest_says_on_what_and_with_which_settings_a_run_was_made(plan_in, tmp_path, monkeypatch):
    import importlib.metadata
    import platform

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = plan_in(tmp_path)
    run(plan)
    facts = json.loads((plan.folder.path / "manifest.json").read_text())
    assert facts["host"]["threads"] == 1 and facts["host"]["processes"] == 1 and facts["host"]["gpu"] is None
    assert facts["deterministic_algorithms"] is False
    assert facts["versions"]["python"] == platform.python_version()
    for name in ("torch", "transformers", "datasets", "numpy", "tokenizers"):
        assert facts["versions"][name] == importlib.metadata.version(name)
    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.processor()]
    assert facts["host"]["cpu"] == cpus[0].strip()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    told = manifest()
    assert told["host"]["gpu"] == "a GPU" and told["host"]["threads"] == 3 and told["deterministic_algorithms"] is True


def test_a_process_killed_after_its_result_is_tidied_by_the_next(plan_in, tmp_path):
    plan = plan_in(tmp_path, "store.keep_checkpoint=false")
    run(plan)
    plan.folder.write("status.json", {"state": "running", "attempts": 1, "heartbeat": 0.0})
    (plan.folder.path / "checkpoint").mkdir()
    run(plan)
    assert json.loads((plan.folder.path / "status.json").read_text())["state"] == "done"
    assert not (plan.folder.path / "checkpoint").exists()
