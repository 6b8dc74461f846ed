"""Checks of a whole command that Hydra does not make: words that it would accept, and that would do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from elalora.errors import UserError
from experiments.config.explain import unknown_setting
from experiments.config.suggest import declared, for_flags
from experiments.config.words import key_of

SLURM_ONLY = (
    "runs_per_job", "partition", "account", "qos", "constraint", "gres", "gpus", "cpus", "mem_gb", "minutes",
    "parallel", "signal_seconds", "max_requeues", "resubmit_cancelled", "wait",
)  # fmt: skip


def check_flags(words: Sequence[str]) -> None:
    """Refuses flags that Hydra does not have in one line, where argparse would print its usage.

    Raises:
        UserError: what to type instead.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(for_flags(message, words))

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(list(words))


def check_command(config: DictConfig, hydra: DictConfig) -> None:
    """Refuses words that do nothing.

    Args:
        config: what `run.py` composed.
        hydra: Hydra's own configuration of it.

    Raises:
        UserError: an unknown setting that a plus sign added, a launcher by another name or settings of one that is not
            chosen, or epochs that trainer.max_steps overrides.
    """
    words = list(hydra.overrides.task)
    for word in words:
        key = key_of(word)
        if word.startswith("+") and key not in hydra.runtime.choices and declared(key) is None:
            raise UserError(unknown_setting(key))
        section, _, name = key.partition(".")
        if section == "launcher" and name in SLURM_ONLY and config.launcher.kind != "slurm":
            raise UserError(f"'{word}' does nothing without SLURM; add hydra/launcher=slurm")
    for word in hydra.overrides.hydra:
        if key_of(word) == "hydra.launcher":
            raise UserError(f"'{word}' does nothing; type hydra/launcher=NAME, such as hydra/launcher=slurm")
    if config.study is None and config.trainer.max_steps is not None:
        keys = [key_of(word) for word in words]
        if "trainer.epochs" in keys and "trainer.max_steps" not in keys:
            raise UserError(
                f"trainer.epochs={config.trainer.epochs:g} does nothing while trainer.max_steps="
                f"{config.trainer.max_steps} is set; type trainer=standard, or trainer.max_steps=null"
            )
