"""Chooses the launcher: this process, local workers or SLURM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from omegaconf import DictConfig, OmegaConf

from experiments.config.members import Repeat
from experiments.runs.plan import Plan, make_plans
from experiments.runs.run import run_plans
from experiments.runtime.distributed import world_size


def run_all(members: Sequence[DictConfig | Repeat]) -> int:
    """Plans and does every run; returns the exit code of `run_plans`.

    Raises:
        UserError: a configuration is wrong; nothing has been started.
    """
    first = members[0]
    assert isinstance(first, DictConfig)
    return launcher_of(first)(make_plans(members))


def launcher_of(config: DictConfig) -> Callable[[list[Plan]], int]:
    """The configured launcher, as a function from plans to an exit code.

    Processes that torchrun started do the runs themselves, one after the other.
    """
    if config.launcher.kind == "basic" or config.launcher.kind == "local" and world_size() > 1:
        return run_plans
    from experiments.launch import local, slurm

    launcher = slurm if config.launcher.kind == "slurm" else local
    return partial(launcher.run_plans, config=OmegaConf.to_object(config.launcher))
