"""The measurements of a GPU's minutes: each for itself, none twice, and all of them with commands that exist."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys

import pytest

from experiments.bench import gpu
from experiments.bench.shapes import DECODERS, SHAPES, TINY, build, make_batch

WRITES = "import sys; open(sys.argv[-1], 'a').write('{}')"
FAILS = "import sys; sys.exit('no memory')"
WAITS = "import time; time.sleep(60)"


@pytest.fixture
def measured(monkeypatch, capsys, tmp_path):
    def run(scripts, *words):
        monkeypatch.setattr(gpu, "measurements", lambda options: ((n, ["-c", text]) for n, text in scripts.items()))
        monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path / "out"), *words])
        code = gpu.main()
        return code, capsys.readouterr().out, sorted(file.name for file in (tmp_path / "out").iterdir())

    return run


def test_a_measurement_that_fails_costs_no_other_and_none_is_made_twice(measured, tmp_path):
    code, text, files = measured({"a": FAILS, "b": WRITES})
    assert code == 1 and "a: exit code 1, no memory" in text and "failed: a." in text and files == ["b.json"]
    code, text, files = measured({"a": WRITES, "b": WRITES})
    assert code == 0 and text == "a: done\n" and files == ["a.json", "b.json"]
    assert (tmp_path / "out" / "b.json").read_text() == "{}"


def test_a_measurement_that_takes_too_long_is_stopped(measured, monkeypatch):
    monkeypatch.setattr(gpu, "MOST", 0.5)
    assert "a: stopped after 0 s" in measured({"a": WAITS})[1]


def test_a_command_that_ignores_the_signal_is_ended_by_force():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "\n"
        gpu.end(process, patience=0.5)
    assert process.returncode == -signal.SIGKILL


def test_nothing_starts_when_the_minutes_are_over(measured):
    code, text, files = measured({"a": WRITES}, "--minutes", "0")
    assert code == 0 and files == [] and "time ran out before: a." in text


def test_names_choose_measurements(measured):
    assert measured({"one": WRITES, "other": WRITES}, "--only", "other")[2] == ["other.json"]


def test_words_for_the_sweeps_may_follow_options(measured):
    assert measured({"one": WRITES}, "--only", "one", "model=local", "threads=1")[0] == 0


def test_every_shape_is_measured_in_every_precision_and_every_number_of_workers_runs_as_many_runs():
    options = argparse.Namespace(tiny=False, blocks=20, words=["model=minilm"])
    commands = dict(gpu.measurements(options))
    assert len(commands) == 3 * len(gpu.SHAPES) + len(gpu.WORKERS)
    assert [name for name, command in commands.items() if "--compile" in command] == list(commands)[-len(gpu.SHAPES) :]
    sweeps = [command for name, command in commands.items() if name.startswith("workers")]
    assert [command[-1] for command in sweeps] == [f"launcher.workers={n}" for n in (1, 2, 4, 8)]
    assert all("seed=range(16)" in command and "model=minilm" in command for command in sweeps)
    assert gpu.RUNS % max(gpu.WORKERS) == 0  # no worker waits at the end


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_form_of_a_shape_takes_a_step(name):
    shape, model = SHAPES[name], build(name, tiny=True)
    batch = make_batch(shape, 2, shape.length if name == "vit-b16" else 8, "cpu")
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and sum(p.numel() for p in model.parameters()) < 1e7


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_measured_at_their_published_sizes(name):
    import torch

    with torch.device("meta"):
        model = build(name)
    matrices = [n for n, m in model.named_modules() if n.rpartition(".")[2] in SHAPES[name].targets]
    assert len(matrices) == SHAPES[name].matrices
    assert sum(p.numel() for p in model.parameters()) == {"smollm2-135m": 134_515_008, "llama-1b": 1_235_814_400}[name]


@pytest.mark.slow
def test_a_real_step_and_a_real_sweep_are_measured_at_a_small_size(monkeypatch, tmp_path, tiny_model_dir):
    options = argparse.Namespace(tiny=True, blocks=2, words=["model=local", f"model.path={tiny_model_dir}"])
    commands = dict(gpu.measurements(options))
    for name in ("smollm2-135m-8x512-bf16", "workers-2"):
        assert gpu.failure([*commands[name], "--out", str(tmp_path / f"{name}.json")], 300) == ""
    step, sweep = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("smollm2-135m-8x512-bf16", "workers-2")
    )
    assert "ElaLoRA / LoRA" in [row["what"] for row in step["ratios"]]
    assert sweep["runs"] == 16 and sweep["processes"] == 2
    assert not any(str(tiny_model_dir) in word for word in sweep["words"])
