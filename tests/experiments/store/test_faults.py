"""Signals, full disks, damaged and foreign files: a run loses nothing, says one line, and ends as if undisturbed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT

from analysis.reading.runs import load_runs
from elalora import UserError
from experiments.config.compose import compose_run
from experiments.runs.plan import make_plan
from experiments.runs.run import Preempted, RunFailed, run, run_plans
from experiments.runtime.manifest import Code, loaded_code, manifest
from experiments.runtime.signals import SIGNALS, listening
from experiments.store.folder import RunFolder
from experiments.tools.kill_harness import ARMS, BASE, STEPS, files, write_data
from experiments.training import checkpoint, evaluation
from experiments.training.evaluation import Evaluator
from experiments.training.trainer import Trainer


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
    (Trainer, "_step", 11), (evaluation, "to_device", 8), (Evaluator, "evaluate", 9), (checkpoint, "save", 3),
], ids=["step", "batch", "final reading", "checkpoint"])  # fmt: skip
def test_a_signal_anywhere_leaves_a_run_that_goes_on_exactly(
    number, owner, name, call, plan_in, whole, tmp_path, monkeypatch
):
    plan, before = plan_in(tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Preempted, match=number.name):
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


def test_the_echo_of_a_signal_is_no_second_one_and_ctrl_c_has_none(monkeypatch):
    clock = iter([100.0, 101.9, 102.1])
    monkeypatch.setattr("experiments.runtime.signals.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM, then SIGTERM"), listening() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGTERM"
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGINT, then SIGINT"), listening():
        clock = iter([100.0])
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "name", "call"), [
    (os, "fsync", 15), (RunFolder, "append", 4), ("pyarrow.parquet", "write_table", 1),
    pytest.param(os, "fsync", 2, marks=FULL), pytest.param(os, "replace", 6, marks=FULL),
    pytest.param("safetensors.torch", "save_file", 2, marks=FULL),
    pytest.param("experiments.runs.result", "export_adapter", 1, marks=FULL),
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
    assert capsys.readouterr().err.count("is corrupt; falling back to") == 2 - kept
    assert files(plan.folder.path) == whole


def without(state, start):
    return {name: value for name, value in state.items() if not name.startswith(start)}


def progress_with(state, **changes):
    return {**state, "progress": {**state["progress"], **changes}}


def write_part(name, content):
    """Puts other content in a file of a checkpoint, with its digest."""

    def change(path):
        (path / name).write_bytes(content)
        digests = json.loads((path / "digests.json").read_text())
        digests[name] = hashlib.sha256(content).hexdigest()
        (path / "digests.json").write_text(json.dumps(digests))

    return change


WRONG_STATES = {
    "of another run": (lambda s: progress_with(s, run="other"), "does not fit this run: it belongs to run other"),
    "without progress": (lambda s: without(s, "progress"), "it has no progress"),
    "without weights": (lambda s: without(s, "model/"), "does not fit this run: KeyError"),
    "of another shape": (
        lambda s: {n: v[:1] if n.startswith("model/") and v.ndim == 2 else v for n, v in s.items()},
        "does not fit this run: ValueError .* has shape",
    ),
    "without groups": (lambda s: without(s, "groups"), "does not fit this run: ValueError groups is missing"),
    "of fewer groups": (lambda s: {**s, "groups": s["groups"][:1]}, "does not fit this run: ValueError"),
    "without a schedule": (lambda s: without(s, "schedule"), "does not fit this run: ValueError schedule is missing"),
    "with odd lines": (lambda s: progress_with(s, lines=[1]), "its progress is invalid"),
    "with an odd best": (lambda s: progress_with(s, best="none"), "its progress is invalid"),
}
WRONG_FILES = {
    "a list": (write_part("state.json", b"[1]"), "state.json is not a JSON object"),
    "no JSON": (write_part("state.json", b"{1"), "state.json cannot be read"),
    "another schema": (write_part("state.json", b'{"schema": 9}'), "has schema 9, this version reads schema"),
    "another step": (write_part("state.json", b'{"schema": 4, "step": 3}'), "is not of step 7"),
    "no tensors": (write_part("tensors.safetensors", b"\x80\x04pickle"), "tensors.safetensors cannot be read"),
}


def test_every_kind_of_wrong_checkpoint_is_one_line_and_stays(plan_in, tmp_path, monkeypatch, capsys):
    plan = plan_in(tmp_path)
    at_call(monkeypatch, Trainer, "_step", 8, full)
    with pytest.raises(RunFailed):
        run(plan)
    folder = plan.folder.path / "checkpoint"
    state = checkpoint.load(folder, 6)
    assert state is not None and len(WRONG_STATES) + len(WRONG_FILES) >= 12
    for name, (change, said) in [*WRONG_STATES.items(), *WRONG_FILES.items()]:
        checkpoint.save(folder, 7, change(state) if name in WRONG_STATES else state)
        if name in WRONG_FILES:
            change(folder / "step-00000007")
        before = files_and_times(plan.folder.path)
        capsys.readouterr()
        assert run_plans([plan]) == 2, name
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("elalora: ")]
        assert len(lines) == 1 and re.search(said, lines[0]), (name, lines)
        assert "checkpoint" in lines[0] and "folder" in lines[0]
        assert files_and_times(plan.folder.path) == before, name


def test_a_damaged_best_checkpoint_costs_steps_and_no_number(plan_in, whole, tmp_path, monkeypatch, capsys):
    plan = plan_in(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "_step", 23, full)
        with pytest.raises(RunFailed):
            run(plan)
    newest = checkpoint.load(plan.folder.path / "checkpoint", 21)["progress"]["best"]["step"]
    best = plan.folder.path / "checkpoint" / "best"
    weights = best / f"step-{newest:08d}" / "tensors.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1  # one bit
    weights.write_bytes(damaged)
    run(plan)
    assert "step 21" in capsys.readouterr().err
    assert files(plan.folder.path) == whole


def files_and_times(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_store_that_is_a_file_is_one_line(plan_in, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="store.root=.* is a file"):
        run(plan_in(tmp_path / "file"))


def test_a_file_system_that_turns_read_only_fails_the_run_in_one_line_and_loses_nothing(
    plan_in, whole, tmp_path, monkeypatch
):
    def read_only():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    plan = plan_in(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, os, "replace", 9, read_only)
        with pytest.raises(RunFailed, match="Read-only file system"):
            run(plan)
    run(plan)
    assert files(plan.folder.path) == whole


@pytest.fixture
def read_only(tmp_path):
    """Makes a folder read-only; root heeds no modes and needs a mount."""
    mounted = []

    def make(folder):
        if os.geteuid() != 0:
            folder.chmod(0o555)
        elif subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True).returncode:
            pytest.skip("root may not mount here, and heeds no modes")
        else:
            mounted.append(folder)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
    for folder in tmp_path.iterdir():
        if folder.is_dir():
            folder.chmod(0o755)


def test_in_a_read_only_store_a_new_run_is_one_line_and_a_finished_one_is_read(plan_in, tmp_path, read_only, capsys):
    plan = plan_in(tmp_path / "store")
    run(plan)
    before = files_and_times(tmp_path / "store")
    read_only(tmp_path / "store")
    assert run_plans([plan]) == 0
    assert "done before" in capsys.readouterr().out
    assert run_plans([plan_in(tmp_path / "store", "seed=1")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("elalora: ")]
    assert len(lines) == 1 and "cannot be written" in lines[0] and "store.root=FOLDER" in lines[0]
    assert files_and_times(tmp_path / "store") == before


def test_nothing_secret_reaches_a_run_folder(plan_in, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "planted-secret-0123456789")
    plan = plan_in(tmp_path)
    run(plan)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) > 10 and not [path for path in found if b"planted-secret" in path.read_bytes()]


def test_no_product_code_reads_what_could_run_code():
    forbidden = re.compile(
        r"\bimport pickle|pickle\.load|torch\.load\((?!.*weights_only=True)|joblib\.load"
        r"|trust_remote_code=True|(?<![.\w])eval\("
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


def test_an_old_checkpoint_that_a_kill_left_goes_with_the_next_attempt(plan_in, whole, tmp_path, monkeypatch):
    plan, drop = plan_in(tmp_path), checkpoint.drop
    place = plan.folder.path / "checkpoint"

    def killed_at_the_last(folder, keep):
        if folder == place and STEPS in checkpoint.steps(folder):
            raise KeyboardInterrupt
        drop(folder, keep)

    monkeypatch.setattr(checkpoint, "drop", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    monkeypatch.undo()
    assert len(checkpoint.steps(place)) == checkpoint.KEPT + 1
    run(plan)
    assert files(plan.folder.path) == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "ranks.jsonl"])
def test_zeros_inside_the_lines_before_a_checkpoint_are_in_no_finished_file(
    name, plan_in, whole, tmp_path, monkeypatch, capsys
):
    plan = plan_in(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "_step", 14, full)
        with pytest.raises(RunFailed):
            run(plan)
    with (plan.folder.path / name).open("r+b") as file:  # a block that a crashed machine never wrote
        file.seek(3)
        file.write(bytes(20))
    run(plan)
    assert "a line before it is corrupt" in capsys.readouterr().err
    assert b"\0" not in (plan.folder.path / name).read_bytes() and files(plan.folder.path) == whole


def test_a_run_resumed_under_other_code_names_both_and_is_flagged(plan_in, tmp_path, monkeypatch):
    plan, codes = plan_in(tmp_path), [Code("a" * 40, False), Code("b" * 40, True, "0" * 64)]
    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: codes[0])
    for number, code in enumerate(codes):
        loaded_code.cache_clear()  # a new process
        codes[0] = code
        with monkeypatch.context() as patch:
            if number == 0:
                at_call(patch, Trainer, "_step", 14, full)
                with pytest.raises(RunFailed):
                    run(plan)
            else:
                run(plan)
    loaded_code.cache_clear()
    facts = json.loads((plan.folder.path / "manifest.json").read_text())
    [first] = facts["earlier"]
    assert (first["commit"], first["from_step"]) == ("a" * 40, 0)
    assert (facts["commit"], facts["from_step"], facts["dirty"]) == ("b" * 40, 12, True)
    result = plan.folder.result()
    assert result["commit"] == "b" * 40 and "resumed under other code" in result["flags"]
    assert "resumed under other code" in load_runs(tmp_path)["flags"].iloc[0]


def test_a_worker_names_the_code_that_it_loaded_and_says_that_the_disk_has_other(plan_in, tmp_path, monkeypatch):
    plan, now = plan_in(tmp_path), [Code("a" * 40, False)]
    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: now[0])
    loaded_code.cache_clear()
    assert loaded_code() == now[0]  # as the worker does when it starts
    now[0] = Code("b" * 40, False)
    result = run(plan)
    loaded_code.cache_clear()
    assert result["commit"] == "a" * 40 and "code changed on disk" in result["flags"]
    assert json.loads((plan.folder.path / "manifest.json").read_text())["commit"] == "a" * 40
