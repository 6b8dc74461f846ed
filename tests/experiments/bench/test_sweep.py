"""What a sweep costs beside its runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from tiny_runs import QUICK, ROOT

from experiments.bench.sweep import measured, report, spans


def test_the_cost_of_a_sweep_is_the_time_between_the_runs_of_one_process(tmp_path):
    for name, pid, first, end in (("a", 1, 110, 120), ("b", 2, 111, 131), ("c", 1, 121.5, 130), ("d", 1, 133, 140)):
        folder = tmp_path / "task" / name
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(f'{{"pid": {pid}}}')
        for file, when in (("manifest.json", first), ("result.json", end)):
            (folder / file).touch()
            os.utime(folder / file, (when, when))
    text = report(spans(tmp_path), 100, 145)
    assert "4 runs in 2 processes" in text and "sweep 45.0 s, sum of its runs 45.5 s, ratio 0.99" in text
    hour = measured(spans(tmp_path))
    assert hour == {"runs": 4, "processes": 2, "seconds": 30, "runs_an_hour": 480}  # from 110 to 140
    assert "480.0 runs an hour" in text
    assert "first step of a process: 10.0 s" in text and "median 2.25 s, most 3.00 s, n = 2" in text


@pytest.mark.slow
def test_a_real_sweep_reports_its_cost(tiny_model_dir):
    words = [*QUICK, f"model.path={tiny_model_dir}", "threads=1", "method=lora", "seed=0,1"]
    command = [sys.executable, "-m", "experiments.bench.sweep", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 runs in 1 processes" in done.stdout and re.search(r"next one's first step: median .* n = 1", done.stdout)


@pytest.mark.slow
def test_a_signal_ends_the_sweep_with_its_workers_and_leaves_no_store(tiny_model_dir, tmp_path):
    words = [*QUICK, f"model.path={tiny_model_dir}", "threads=1", "method=lora", "seed=0", "trainer.max_steps=100000"]
    command = [sys.executable, "-m", "experiments.bench.sweep", *words]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as sweep:
        end = time.monotonic() + 120
        while not (begun := list(tmp_path.glob("*/*/*/manifest.json"))):
            assert sweep.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        worker = json.loads((begun[0].parent / "status.json").read_text())["pid"]
        sweep.terminate()
    assert sweep.returncode == 130 and not list(tmp_path.glob("*/*/*/status.json"))
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
