"""Does tiny real runs that end in each way a run can end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_runs import MOVES, quick

from elalora.allocation import Decision
from elalora.ela import ElaLoRA
from elalora.errors import UserError
from elalora.low_rank import LowRankMethod
from experiments.runs.plan import Plan, make_plan
from experiments.runs.run import RunFailed, run
from experiments.runtime.signals import Preempted
from experiments.training.trainer import Trainer

DIVERGES = ["trainer.lr=1e30", "trainer.warmup=0", "trainer.max_grad_norm=null"]
ENDS = {
    "done": [*MOVES],
    "nan": ["method=lora", *DIVERGES],
    "budget": ["seed=1", *MOVES],
    "never_acted": ["budget=r2", *MOVES],
    "crash": ["method=lora"],
    "refused": ["method=lora", "model.targets=[nothing]"],
    "preempted": ["method=lora", "seed=2"],
}


def crash(*_: object) -> None:
    raise ZeroDivisionError("pretend")


def end(kind: str, model: Path, store: Path) -> Plan:
    """Does the run that ends in this way; returns its plan."""
    config = quick(model, store, "threads=1", *ENDS[kind])
    if kind == "refused":
        config.launcher.kind = "local"  # a worker writes the reason down; a run alone shows it
    plan = make_plan(config)
    with pytest.MonkeyPatch.context() as patch, suppress(RunFailed, UserError, Preempted):
        if kind == "budget":  # an allocator that gives ranks and takes none
            patch.setattr(LowRankMethod, "prune", lambda *_: None)
        elif kind == "never_acted":  # an allocator that finds no move
            patch.setattr(ElaLoRA, "_decide", lambda *_: Decision())
        elif kind == "crash":
            patch.setattr(Trainer, "_step", crash)
        elif kind == "preempted":
            step = Trainer._step

            def signalled(trainer: Trainer, number: int) -> object:
                if number == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step(trainer, number)

            patch.setattr(Trainer, "_step", signalled)
        run(plan)
    return plan
