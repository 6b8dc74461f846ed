"""A run that is killed with SIGKILL and started again leaves the same files; the harness says how it is tried."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_runs import ROOT


def harness(*words: str) -> dict:
    """The harness in a process of its own, which forks: its figures, after every comparison held."""
    command = [sys.executable, "-m", "experiments.tools.kill_harness", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BREAKS = {
    "the optimizer is not restored": "from elalora import RowwiseAdamW as A; A.load_state_dict = lambda *_: None",
    "lines are not cut back": "from experiments.store.folder import RunFolder as F; F.cut_back = lambda *_: None",
}


@pytest.mark.full
@pytest.mark.parametrize("name", BREAKS)
def test_the_harness_reports_a_resume_that_is_broken_on_purpose(name):
    start = f"import sys; from experiments.tools import kill_harness; {BREAKS[name]}; "
    words = ["--kills", "12", "--arms", "elalora", "--seed", "3"]
    command = [sys.executable, "-c", f"{start}sys.argv[1:] = {words}; sys.exit(kill_harness.main())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "differs in [" in done.stderr, done.stderr


@pytest.mark.slow
def test_killed_runs_end_as_if_they_were_never_killed():
    figures = harness("--kills", "12", "--arms", "elalora,lora", "--seed", "3")
    assert figures["kills"] == 12 and figures["between"] >= 5 and figures["runs"] >= 3


@pytest.mark.full
def test_320_kills_of_every_method_leave_no_difference():
    figures = harness("--kills", "320")
    assert figures["kills"] == 320 and figures["between"] >= 150
    assert figures["writes"] >= 20 and figures["phases"]["round"] >= 20


@pytest.mark.full
def test_72_kills_of_two_processes_leave_no_difference():
    figures = harness("--kills", "72", "--processes", "2")
    assert figures["kills"] == 72 and figures["between"] >= 30
