"""One of several processes that do runs together, in float64; argv: a folder, then the runs' words, split by ;"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from parallel_runs import configs, in_float64

from experiments.launch.choose import run_all
from experiments.runtime.distributed import exit_process
from experiments.runtime.signals import EXIT_RESUMABLE, Preempted
from experiments.training import trainer

folder, words = Path(sys.argv[1]), [words.split() for words in sys.argv[2].split(";")]
die = os.environ.get("DIE_AT")  # "rank:step"; both ranks with "*"
if die is not None:
    who, _, when = die.partition(":")
    step_of = trainer.Trainer._step

    def dying(self, step):
        if step == int(when) and who in ("*", os.environ["RANK"]):
            if os.environ.get("DIE_BY") == "raising":
                raise ValueError("this process alone")
            os._exit(9)
        return step_of(self, step)

    trainer.Trainer._step = dying
in_float64()
try:
    exit_process(run_all(configs(folder, words)))
except Preempted:
    exit_process(EXIT_RESUMABLE)
