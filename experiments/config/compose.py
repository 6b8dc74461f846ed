"""Composes configurations from words on the command line.

A configuration keeps the overrides it was composed from, outside its identity. So "the same run with another method"
is composed again from these words, some of them changed, and takes that method's recipe instead of this run's values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.config.mistakes import check_groups, mistakes
from experiments.config.words import GROUPS, key_of
from experiments.runtime.places import CONF

RECIPE_FILE = "recipe@_global_"
# set after composing: the thousands of runs of a study, which differ in these only, share few compositions
LATE = re.compile(r"seed=\d+|trainer\.lr=[\d.]+(e-?\d+)?")


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `run.py` composes from these overrides, for instance ["task=rte", "seed=3"].

    Raises:
        UserError, HydraException, OmegaConfBaseException: for a mistake; `experiments.config.explain.explain` turns it
            into one line.
    """
    late = [word for word in overrides if LATE.fullmatch(word)]
    config, choices = _composed(tuple(word for word in overrides if word not in late))
    config = config.copy()
    for word in late:
        OmegaConf.update(config, key_of(word), word.partition("=")[2])
    return keep_overrides(config, overrides, choices)


@lru_cache(maxsize=512)
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, Any]]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from experiments.config.schema import register

    GlobalHydra.instance().clear()
    register()
    with mistakes(overrides), initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(whole.hydra.runtime.choices)
    OmegaConf.set_readonly(whole, False)
    OmegaConf.set_struct(whole, False)
    del whole["hydra"]
    OmegaConf.set_struct(whole, True)
    return whole, choices


def keep_command(config: DictConfig, hydra: DictConfig) -> DictConfig:
    """Stores the words of a `run.py` command in what it composed, including the user's own config folders.

    Raises:
        UserError: for a word that nothing would read, such as launcher.kind, which only hydra/launcher=NAME sets.
    """
    folders = [f"{s.schema}://{s.path}" for s in hydra.runtime.config_sources if "command-line" in s.provider]
    more = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    if word := next((word for word in hydra.overrides.task if key_of(word) == "launcher.kind"), None):
        raise UserError(f"'{word}' does nothing; type hydra/launcher=NAME, such as hydra/launcher=slurm")
    config.launcher.kind = hydra.runtime.choices["hydra/launcher"]
    alone = hydra.mode is not None and hydra.mode.name == "RUN" and config.study is None
    if alone and config.launcher.kind == "local":
        config.launcher.kind = "basic"  # one run needs no workers
    for word in hydra.overrides.task:
        if (needed := _needed(key_of(word), config)) is not None:
            raise UserError(f"'{word}' does nothing; {needed}, or leave it out")
    if config.launcher.kind == "slurm":  # so that the command that resumes this run submits it again
        more.append("hydra/launcher=slurm")
    return keep_overrides(config, [*hydra.overrides.task, *more], hydra.runtime.choices)


def _needed(key: str, config: DictConfig) -> str | None:
    """What to type so that a setting of a command has an effect; None if it has one."""
    group, kind = key.partition(".")[0], config.launcher.kind
    if key == "launcher.workers" and kind == "basic":
        return "type -m to start several runs"
    if group == "launcher" and key != "launcher.workers" and "." in key and kind != "slurm":
        return "type hydra/launcher=slurm to submit jobs"
    if group == "tracking" and "." in key and key != "tracking.name" and config.tracking.name == "none":
        return "type tracking=wandb to mirror runs"
    if key == "trainer.epochs" and config.study is None and config.trainer.max_steps is not None:
        return "type trainer.max_steps=null to train by epochs"
    return None


def keep_overrides(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> DictConfig:
    """Stores in a composed configuration its overrides, and the recipe's settings among them."""
    check_groups(config)
    config.overrides = list(overrides)
    recipe = CONF / "recipe" / f"{choices.get(RECIPE_FILE)}.yaml"
    if config.recipe.source is not None and recipe.is_file():
        config.recipe.changed = sorted({key_of(word) for word in overrides} & set(_settings(recipe)))
    return config


def _settings(path: Path) -> list[str]:
    """Dotted names of all settings in a recipe file and in the files of its defaults list."""
    node = OmegaConf.load(path)
    defaults = [CONF / f"{entry.strip('/')}.yaml" for entry in node.pop("defaults", []) if entry != "_self_"]
    names = [name for file in defaults for name in _settings(file)]

    def walk(value: Any, prefix: str) -> None:
        if OmegaConf.is_dict(value):
            for key in value:
                walk(value._get_node(key), f"{prefix}{key}.")
        else:
            names.append(prefix[:-1])

    walk(node, "")
    return names


def same_command(config: DictConfig, words: str) -> tuple[str, ...]:
    """This run's overrides with some of them replaced.

    Args:
        config: a run, composed here or by `run.py`.
        words: overrides in short form. A bare word is a method; a name without a dot that is not a group is a setting
            of the method: "elalora variant=official trainer.lr=1e-3" means method=elalora method.variant=official
            trainer.lr=1e-3. Choosing a method drops every method.* of this run.
    """
    assert config.overrides is not None, "only a composed configuration knows its command"
    changed = [_override(word) for word in words.split()]
    keys = {key_of(word) for word in changed}
    rest = [word for word in config.overrides if key_of(word) not in keys]
    if "method" in keys:
        rest = [word for word in rest if not key_of(word).startswith("method.")]
    return (*rest, *changed)


def _override(word: str) -> str:
    key, equals, _ = word.partition("=")
    if not equals:
        return f"method={word}"
    return word if "." in key or key in (*GROUPS, "seed", "init_from") else f"method.{word}"
