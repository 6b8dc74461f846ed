"""Runs a study stage by stage."""

from __future__ import annotations

import sys
from collections.abc import Callable

from omegaconf import DictConfig

from experiments.runs.plan import Plan
from experiments.studies.expansion import cells_of
from experiments.studies.rules import TUNING_PART


def run_study(config: DictConfig, run_plans: Callable[[list[Plan]], int]) -> int:
    """Runs what is planned, then what these results make plannable, until nothing waits.

    Args:
        config: holds the study.
        run_plans: does plans, sources before the runs that need them, and returns an exit code.
    """
    code = 0
    started: set[str] = set()
    while True:
        cells = cells_of(config)
        waiting = sum(cell.plan is None for cell in cells)
        # tuning runs go first as long as others wait for them
        stage = [cell.plan for cell in cells if cell.plan and (not waiting or cell.part == TUNING_PART)]
        new = {plan.id: plan for plan in stage if plan.id not in started and plan.finished() is None}
        if new:
            code = max(code, run_plans(list(new.values())))
        elif waiting and config.launcher.kind == "slurm" and not config.launcher.wait:
            print(f"{waiting} runs need the tuning results. Rerun this command once the tuning jobs have finished.")
            return code
        elif waiting:
            print(f"elalora: {waiting} runs need tuning runs that did not finish", file=sys.stderr)
            return max(code, 1)
        else:
            return code
        started |= set(new)
