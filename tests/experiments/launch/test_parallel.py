"""Two processes do one run: the decisions and numbers of one process, one owner of the files, and no way to hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from parallel_runs import METHODS, configs, in_float64, words_of
from safetensors.torch import load_file
from tiny_model import make_tiny_model

from experiments.runs.plan import make_plan
from experiments.runtime.places import CHECKOUT
from experiments.store.folder import RunFolder

SUPPORT = CHECKOUT / "tests" / "support"
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
ENVIRONMENT = {
    "PYTHONPATH": f"{SUPPORT}{os.pathsep}{CHECKOUT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200",
}  # fmt: skip
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]  # on CPUs too
LIMIT = 400  # seconds; a run that hangs must end the test


def two(folder: Path, words: str, launch: list[str] = LAUNCH, **more: str) -> subprocess.CompletedProcess[str]:
    """The runs of `words` in two processes."""
    return subprocess.run(
        [*launch, str(SUPPORT / "parallel_process.py"), str(folder), words],
        env=os.environ | ENVIRONMENT | more, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip


def only_run(folder: Path) -> Path:
    (path,) = (folder / "runs" / "vader_movies").iterdir()
    return path


def fresh(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp(name)
    make_tiny_model(folder / "model")
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return RunFolder(folder).lines(name)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Folders of every method's run in one process and in two."""
    return run_pairs(fresh(tmp_path_factory, "parallel"), list(METHODS))


def run_pairs(folder: Path, names: list[str]) -> dict[str, tuple[Path, Path]]:
    """Does the run of each method in one process and in two; returns both folders of each."""
    from experiments.models import load as models
    from experiments.runs.run import run

    words = [words_of(name) for name in names]
    done = two(folder, ";".join(words))
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    there = {
        json.loads((p.parent / "result.json").read_text())["id"]: p.parent for p in folder.glob("runs/*/*/result.json")
    }
    assert len(there) == len(names)
    load = models.load_model
    in_float64()
    try:
        plans = [make_plan(config) for config in configs(folder, [w.split() for w in words])]
        for plan in plans:
            run(plan)
    finally:
        models.load_model = load
    found = {}
    for name, plan in zip(names, plans, strict=True):
        twin = next(
            path for run_id, path in there.items()
            if json.loads((path / "result.json").read_text())["identity"] == {**plan.identity, "world_size": 2}
        )  # fmt: skip
        found[name] = (plan.folder.path, twin)
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_decides_and_computes_what_one_process_does(
    pairs: dict[str, tuple[Path, Path]], name: str
) -> None:
    assert_equal_runs(name, *pairs[name])


@pytest.mark.slow
def test_two_processes_decide_and_compute_what_one_does(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    assert_equal_runs("elalora", *run_pairs(tmp_path, ["elalora"])["elalora"])


def assert_equal_runs(name: str, one: Path, two_: Path) -> None:
    """The same decisions, and the same numbers up to rounding."""
    rounds, again = lines(one, "ranks.jsonl"), lines(two_, "ranks.jsonl")
    for first, second in zip(rounds, again, strict=True):
        for part in ("step", "ranks", "pruned", "grown"):
            assert first[part] == second[part], (name, part)
    for first, second in zip(lines(one, "metrics.jsonl"), lines(two_, "metrics.jsonl"), strict=True):
        assert first == {**second, "value": pytest.approx(second["value"], rel=1e-9, abs=1e-9)}
    for file in sorted(one.glob("adapter/*.safetensors")):
        mine, theirs = load_file(file), load_file(two_ / "adapter" / file.name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            np.testing.assert_allclose(
                tensor.numpy(), theirs[key].numpy(), rtol=1e-6, atol=1e-9, err_msg=f"{name} {key}"
            )
    first, second = (pd.read_parquet(path / "predictions.parquet") for path in (one, two_))
    pd.testing.assert_frame_equal(first, second, rtol=1e-9)
    results = [json.loads((path / "result.json").read_text()) for path in (one, two_)]
    for part in ("ranks", "counts", "moves", "flags", "data"):
        assert results[0][part] == results[1][part]
    assert json.loads((two_ / "status.json").read_text())["state"] == "done" and not (two_ / "checkpoint").exists()


def same_run(one: Path, other: Path) -> None:
    """Bit for bit, but for times."""
    for name in ("metrics.jsonl", "ranks.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(path / "predictions.parquet") for path in (one, other)), check_exact=True
    )
    for file in one.glob("adapter/*.safetensors"):
        assert file.read_bytes() == (other / "adapter" / file.name).read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_two_processes_that_are_killed_go_on_and_end_alike_bit_for_bit(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Both at once after a checkpoint; then one alone, which takes the other with it."""
    make_tiny_model(tmp_path / "model")
    words = words_of("elalora")
    killed = two(tmp_path, words, DIE_AT="*:6")
    assert killed.returncode != 0 and not (only_run(tmp_path) / "result.json").exists()
    killed = two(tmp_path, words, DIE_AT="1:10")
    assert killed.returncode != 0 and not (only_run(tmp_path) / "result.json").exists()
    assert two(tmp_path, words).returncode == 0
    same_run(only_run(tmp_path), pairs["elalora"][1])


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_accelerate_launch_does_what_torchrun_does_bit_for_bit(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "model")
    done = two(tmp_path, words_of("elalora"), ACCELERATE)
    assert done.returncode == 0, done.stderr[-3000:]
    same_run(only_run(tmp_path), pairs["elalora"][1])
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["identity"]["world_size"] == 2


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_an_error_in_one_process_alone_ends_the_command_and_is_told(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    words = f"{words_of('lora')};{words_of('head')}"
    failed = two(tmp_path, words, DIE_AT="1:5", DIE_BY="raising")
    assert failed.returncode != 0
    assert "this process alone" in failed.stderr and "one process of the distributed run failed" in failed.stderr
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed"
    done = two(tmp_path, words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done: ") == 2


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_an_error_of_all_processes_costs_its_run_only_and_each_line_is_said_once(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    wrong = "method=lora model.targets=[nothing]"
    nan = "method=lora trainer.lr=1e300 trainer.max_grad_norm=null"
    done = two(tmp_path, f"{wrong};{nan};{words_of('head')}")
    assert done.returncode != 0
    assert done.stderr.count("'nothing' matches no linear layer") == 1
    assert done.stdout.count("done: ") == 1 and "1 of 3 runs are done" in done.stderr
    states = {p.parent.name[:4]: json.loads(p.read_text())["state"] for p in tmp_path.glob("runs/*/*/status.json")}
    assert states == {"lora": "failed", "head": "done"}


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_a_run_that_another_command_is_at_is_left_alone(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    words = words_of("head")
    (config,) = configs(tmp_path, [words.split()])
    os.environ["WORLD_SIZE"] = "2"
    try:
        folder = make_plan(config).folder
    finally:
        del os.environ["WORLD_SIZE"]
    with folder.working():
        busy = two(tmp_path, words)
    assert busy.returncode != 0 and busy.stderr.count("is being worked on by another process") == 1


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_sigterm_stops_both_with_a_checkpoint_and_the_same_command_goes_on(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "model")
    words = words_of("adalora")
    process = subprocess.Popen(
        [*LAUNCH, str(SUPPORT / "parallel_process.py"), str(tmp_path), words],
        env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    began = time.monotonic()
    while not list(tmp_path.glob("runs/*/*/metrics.jsonl")) and time.monotonic() - began < LIMIT:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LIMIT)
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    if status["state"] != "done":  # else it was faster than the signal
        assert status["state"] == "preempted", told[-3000:]
        assert list((only_run(tmp_path) / "checkpoint").glob("step-*"))
    assert two(tmp_path, words).returncode == 0
    same_run(only_run(tmp_path), pairs["adalora"][1])


@pytest.mark.slow
@pytest.mark.xdist_group("parallel")  # the pairs are made once
def test_torchrun_starts_the_command_itself(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    words = [
        "run.py", "-m", "method=lora,head", "model=local", f"model.path={tmp_path / 'model'}", "threads=1",
        "model.head=[bert.pooler,classifier]", "trainer.max_steps=6", "data.train_items=60", "task.max_length=16",
        f"store.root={tmp_path / 'runs'}",
    ]  # fmt: skip
    for line in ("done: ", "done before"):
        done = subprocess.run(
            [*LAUNCH, *words], cwd=CHECKOUT, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count(line) == 2
