"""A reader that leaves early: no traceback, and the work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

from experiments.standins.stored_runs import result, write_run

STORE, OUT = "{store}", "{out}"
COMMANDS = {
    "status": ["-m", "experiments", "status", STORE],
    "watch": ["-m", "experiments", "status", STORE, "--watch"],
    "analysis": ["-m", "analysis", STORE, "--out", OUT, "--no-figures"],
    "plan": ["run.py", "-m", "method=lora", "seed=range(3)", "--plan"],
    "completion": ["run.py", "-sc", "query=bash"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback(name: str, tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "store", result("lora", seed, 80.0))
    words = [word.format(store=tmp_path / "store", out=tmp_path / "out") for word in COMMANDS[name]]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COMP_LINE": "python run.py task=", "COMP_POINT": "19"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert name != "analysis" or (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize("flag, seen", [("-u", "now"), ("-B", "")])
def test_an_unbuffered_interpreter_stays_unbuffered(flag: str, seen: str) -> None:
    """The process ends without a last flush, so only what was written at once is there."""
    code = (
        "import os; from experiments.runtime.pipes import as_command; as_command(lambda: (print('now'), os._exit(0)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, flag, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == seen
