"""A reader that leaves early: no traceback, and the work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT
from stored_runs import result, write_run

STORE, OUT = "{store}", "{out}"
COMMANDS = {
    "status": ["-m", "experiments", "status", STORE],
    "watch": ["-m", "experiments", "status", STORE, "--watch"],
    "analysis": ["-m", "analysis", STORE, "--out", OUT, "--no-figures"],
    "plan": ["run.py", "-m", "method=lora", "seed=range(3)", "--plan"],
    "completion": ["run.py", "-sc", "query=bash"],
}


@pytest.mark.parametrize("name", COMMANDS)
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
