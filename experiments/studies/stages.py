"""Runs a study stage by stage."""

from __future__ import annotations

import sys
from collections.abc import Callable

from omegaconf import DictConfig

from experiments.runs.plan import Plan
from experiments.studies.expansion import cells_of
from experiments.studies.rules import TUNING


def run_study(config: DictConfig, run_plans: Callable[[list[Plan]], int]) -> int:
    """Runs a study: what is planned, then what that makes plannable, until nothing waits.

    Args:
        config: holds the study.
        run_plans: does a list of plans whose order respects their sources, and returns the exit code.
    """
    code = 0
    before: set[str] = set()
    while True:
        cells = cells_of(config)
        plans = {cell.plan.id: cell.plan for cell in cells if cell.plan is not None}
        waiting = sum(cell.plan is None for cell in cells)
        # while others wait for the tuning, it goes first: what it decides may be needed by most of the study
        stage = {c.plan.id: c.plan for c in cells if c.plan is not None and c.part == TUNING} if waiting else plans
        new = {run: plan for run, plan in stage.items() if run not in before and plan.finished() is None}
        if new:
            code = max(code, run_plans(list(new.values())))
        elif waiting and config.launcher.kind == "slurm" and not config.launcher.wait:
            print(f"{waiting} runs wait for the tuning: give the same command again when its jobs have ended")
            return code
        elif waiting:
            print(f"elalora: {waiting} runs wait for tuning runs that did not finish", file=sys.stderr)
            return max(code, 1)
        else:
            return code
        before |= set(new)
