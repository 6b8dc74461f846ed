"""Composes and does small real runs: a tiny random encoder on real review sentences."""

from __future__ import annotations

import os
import subprocess
import sys

from experiments.config.compose import compose_run
from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
QUICK = [
    "model=local",
    "model.head=[bert.pooler,classifier]",
    "trainer.max_steps=30",
    "trainer.batch_size=8",
    "trainer.lr=5e-3",
    "trainer.log_every=5",
    "data.train_items=120",
    "task.max_length=16",
    "store.checkpoint_every=0",
]
MOVES = ["method.t_initial=3", "method.t_final=6", "method.interval=4"]


def config(*overrides):
    """The composed configuration of one run."""
    return compose_run(overrides)


def quick(model, store, *overrides):
    """The configuration of a run that takes a moment."""
    return config(*QUICK, f"model.path={model}", f"store.root={store}", *overrides)


def command(*words, env=None, **more):
    """run.py in a process of its own, output captured."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **(env or {})}
    return subprocess.run(
        [sys.executable, "run.py", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )
