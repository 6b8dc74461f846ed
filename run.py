"""Starts one run, with -m a sweep, or a study, as composed from conf/. `python run.py --help` explains.

Hydra only composes: all configurations of a sweep are checked before its first run starts, and editing a config file
while the sweep runs changes none of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach `main`, which prints one line

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config.command import check_command, check_flags
from experiments.config.compose import keep_command
from experiments.config.explain import answer
from experiments.config.members import Repeat, collect
from experiments.config.mistakes import MISTAKES, mistakes
from experiments.config.parts import Command
from experiments.config.schema import register
from experiments.config.suggest import flags_first
from experiments.runtime.distributed import exit_process
from experiments.runtime.pipes import as_command
from experiments.runtime.signals import Preempted

register()
composed: list[Any] = []  # of each run (configuration, Command), of a repeat `Repeat`


@hydra.main(config_path=str(Path(__file__).resolve().parent / "conf"), config_name="config", version_base="1.3")
def compose(config: DictConfig) -> None:
    """Collects the configuration of a command without -m; `main` does the rest: Hydra prints errors raised in here."""
    composed.append((config, HydraConfig.get()))


def main() -> int:
    """Runs the command.

    Returns:
        The exit code: 0 done, 1 a run failed, 2 a user's mistake, 75 interrupted (run the same command again to
        resume), 130 stopped at once.
    """
    composed.clear()
    only_plan = "--plan" in sys.argv
    sys.argv[1:] = flags_first(word for word in sys.argv[1:] if word != "--plan")  # --plan is ours, not Hydra's
    try:
        with mistakes(sys.argv[1:]):
            check_flags(sys.argv[1:])
            collect(composed)
            compose()
            composed[:] = [one if isinstance(one, Repeat) else (one[0], Command.of(one[1])) for one in composed]
            members = [one if isinstance(one, Repeat) else keep_command(*one) for one in composed]
            for one in composed:
                if not isinstance(one, Repeat):
                    check_command(one[1])
        if not members:  # --cfg, --info or completion, which Hydra has answered
            return 0
        from experiments.start import show_all, start_all

        return show_all(members) if only_plan else start_all(members)
    except (*MISTAKES, Preempted, KeyboardInterrupt) as error:
        line, code = answer(error)
        print(f"elalora: {line}", file=sys.stderr)
        return code


if __name__ == "__main__":
    as_command(lambda: exit_process(main()))
