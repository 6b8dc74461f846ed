"""A signal ends the loading of data and model wherever it is, and the same command starts again."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import write_csv
from tiny_runs import quick

from experiments.runs import prepare
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.runtime.signals import Preempted

STAGES = {
    "reading": ("experiments.data.own", "read_table"),
    "checking": ("experiments.data.own", "check_rows"),
    "hashing": ("experiments.data", "content_hash"),
    "tokenising": ("experiments.data.text_items", "_encode_rows"),
    "model": ("experiments.models.load", "load_model"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("module", "name"), STAGES.values(), ids=STAGES)
def test_the_first_signal_ends_the_loading(
    module: str,
    name: str,
    number: signal.Signals,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_csv(tmp_path / "a.csv", [(f"text {i}", i % 2) for i in range(20)])
    words = ["task=own", "task.files.train=a.csv", "task.files.test=a.csv", f"data.root={tmp_path}", "method=lora"]
    words += ["data.train_items=null", "trainer.max_steps=1", f"data.cache={tmp_path / 'cache'}"]
    plan = make_plan(quick(tiny_model_dir, tmp_path / "store", *words))
    for cached in (prepare.data_of, prepare.processor_of, prepare.splits_of):
        cached.cache_clear()
    went_on = []

    def signalled(*given: Any, **named: Any) -> Any:
        try:
            os.kill(os.getpid(), number)
        except (OSError, ValueError, RuntimeError):  # as libraries do
            pass
        went_on.append(True)
        return original(*given, **named)

    original = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(importlib.import_module(module), name, signalled)
    with pytest.raises(
        Preempted, match=f"{signal.Signals(number).name} before the first step; run the same command again"
    ) as stopped:
        run(plan)
    assert stopped.value.signal == signal.Signals(number).name and not went_on
    monkeypatch.undo()
    assert run(plan)["steps"] == 1
