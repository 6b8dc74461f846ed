"""Composes a run's relatives: the same run with another method."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.plan import Plan, make_plan

CONF = Path(__file__).parents[1] / "conf"


def same_run_of(config: DictConfig, method: str) -> Plan:
    """The plan of a run that is equal in everything but the method, which takes its defaults."""
    other = config.copy()
    OmegaConf.set_readonly(other, False)
    OmegaConf.update(other, "method", OmegaConf.load(CONF / "method" / f"{method}.yaml"), merge=False)
    return make_plan(other)
