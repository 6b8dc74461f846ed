"""The status of a store: states, ages, failures by kind, the commands that go on, and thousands of runs in seconds."""

from __future__ import annotations

import json
import time

import pytest

from elalora import UserError
from experiments.__main__ import main
from experiments.status import STALE_SECONDS, states, text

NOW = 1_000_000.0


def make(store, name, result=False, overrides=None, timing="", **status):
    folder = store / "rte" / f"{name}-0123456789"
    folder.mkdir(parents=True)
    if status:
        (folder / "status.json").write_text(json.dumps({"attempts": 1, "heartbeat": NOW - 30} | status))
    if result:
        (folder / "result.json").write_text("{}")
    if overrides:
        (folder / "config.yaml").write_text(json.dumps({"overrides": overrides}))
    (folder / "timing.jsonl").write_text(timing)
    return folder


def test_every_run_has_the_state_that_its_files_say(tmp_path):
    line = '{"seconds_per_step": 0.25, "step": 4}\n'
    make(tmp_path, "a-s0", state="running", step=5, total=10, timing=line + '{"seconds_per')
    make(tmp_path, "a-s1", state="running", heartbeat=NOW - STALE_SECONDS - 1)
    make(tmp_path, "a-s2", state="running", result=True)  # killed between its result and its status
    make(tmp_path, "a-s3", state="failed", failure="nan", error="NotFinite: loss is nan at step 3")
    make(tmp_path, "a-s4", state="preempted", failure="preempted", error="Preempted: SIGTERM after step 3 of 10")
    make(tmp_path, "a-s5", state="running", heartbeat=NOW + 1e6)  # the clock was set back
    (make(tmp_path, "a-s6", state="running") / "status.json").write_text('{"state": "run')
    make(tmp_path, "a-s7")  # no run: neither status nor result
    found = {run.run.split("-")[1]: run for run in states(tmp_path, NOW)}
    assert {name: run.state for name, run in found.items()} == {
        "s0": "running", "s1": "stale", "s2": "done", "s3": "failed", "s4": "preempted", "s5": "running", "s6": "stale",
    }  # fmt: skip
    assert found["s0"].seconds_per_step == 0.25 and found["s0"].age == 30 and found["s5"].age == 0
    assert found["s6"].age is None and {run.arm for run in found.values()} == {"rte/a"}


def test_the_text_counts_failures_by_kind_and_names_what_goes_on(tmp_path):
    make(tmp_path, "a-r4-s0", state="failed", failure="nan", error="NotFinite: x", overrides=["seed=0", "a=[1, 2]"])
    make(tmp_path, "a-r4-s1", state="failed", error="MemoryError: y")  # of a version that named no kind
    make(tmp_path, "b-r4-s0", state="done", result=True)
    shown = text(tmp_path, states(tmp_path, NOW)).splitlines()
    assert shown[0] == "2 failed (1 crash, 1 nan), 1 done"
    assert "  rte/a-r4: 2 repeats, 2 failed (1 crash, 1 nan)" in shown and "  rte/b-r4: 1 repeats, 1 done" in shown
    assert "  rte/a-r4-s0-0123456789, heartbeat 30 s ago, nan: NotFinite: x" in shown
    assert shown[-1] == "  python run.py seed=0 'a=[1, 2]'"


def test_the_command_has_a_form_for_programs_and_one_line_for_a_mistake(tmp_path, capsys):
    make(tmp_path, "a-s0", state="failed", failure="budget", error="BudgetOverrun: z")
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["failure"] == "budget"
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(UserError):
        states(tmp_path / "nowhere")


def test_five_thousand_runs_take_seconds(tmp_path):
    for task in range(10):
        for number in range(500):
            folder = tmp_path / f"task{task}" / f"a-s{number}-0123456789"
            folder.mkdir(parents=True)
            (folder / "status.json").write_text('{"state": "running", "attempts": 1, "heartbeat": 1.0}')
    began = time.perf_counter()
    assert "5000 stale" in text(tmp_path, states(tmp_path))
    seconds = time.perf_counter() - began
    print(f"5,000 runs in {seconds:.2f} s")
    assert seconds < 10
