"""Composes configurations from words on the command line.

A configuration keeps the overrides it was composed from, outside its identity. So "the same run with another method"
is composed again from these words, some of them changed, and takes that method's recipe instead of this run's values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.config.mistakes import check_groups, mistakes
from experiments.config.parts import RECIPE_FILE, Command, Composed, in_parts, settings_of
from experiments.config.words import GROUPS, key_of
from experiments.runtime.places import CONF

# words that choose files, and words that set a value in what these files give
CHOICE = re.compile(rf"\+?({'|'.join(GROUPS)}|study|hydra/launcher)=[\w.-]+|hydra\.searchpath=.*")
VALUE = re.compile(r"(?!hydra\.)([a-z_]\w*(\.\w+)+|seed|init_from|threads)=.*", re.S)
SAFE = re.compile(r"seed=\d+|trainer\.lr=[\d.]+(e-?\d+)?")  # set late also beside +KEY and ~KEY of other settings


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The configuration that `run.py` composes from these overrides, for instance ["task=rte", "seed=3"].

    Raises:
        UserError, HydraException, OmegaConfBaseException: for a mistake; `experiments.config.explain.explain` turns it
            into one line.
    """
    with mistakes(overrides):
        config, command = with_values(overrides, _assembled)
    return keep_overrides(config, overrides, command.choices)


def with_values(overrides: Sequence[str], assembled: Callable[[tuple[str, ...]], Composed]) -> Composed:
    """Composes the words that choose files, which thousands of runs share, and sets the values afterwards.

    Hydra does the same with each command: it sets values, in the order of their words, in what the files give.

    Args:
        overrides: the whole command.
        assembled: composes words; what it returns is changed here.

    Raises:
        As `assembled`; a value that cannot be set is an error of the whole command.
    """
    others = [word for word in overrides if not (CHOICE.fullmatch(word) or VALUE.fullmatch(word))]
    late = SAFE if others else VALUE
    values = [word for word in overrides if late.fullmatch(word)]
    if any(key_of(word) in ("seed", "trainer", "trainer.lr") for word in others):
        values = []
    if values:
        with suppress(Exception):
            config, command = assembled(tuple(word for word in overrides if word not in values))
            ConfigLoaderImpl._apply_overrides_to_config([_parsed(word) for word in values], config)
            return config, command
    return assembled(tuple(overrides))


def chosen(words: tuple[str, ...], composed: Callable[[tuple[str, ...]], Composed]) -> Composed:
    """A new configuration from words that mostly choose files; `composed` as for `in_parts`."""
    with suppress(Exception):
        if (both := in_parts(words, composed)) is not None:
            return both
    config, command = composed(words)
    return config.copy(), command


@lru_cache(maxsize=4096)
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _assembled(words: tuple[str, ...]) -> Composed:
    """A copy of what these words choose: a study asks for it again with every learning rate of an arm."""
    config, command = _whole(words)
    return config.copy(), command


@lru_cache(maxsize=64)
def _whole(words: tuple[str, ...]) -> Composed:
    return chosen(words, _composed)


@lru_cache(maxsize=512)
def _composed(overrides: tuple[str, ...]) -> Composed:
    return split(_loader().load_configuration("config", list(overrides), RunMode.RUN, from_shell=False))


@cache
def _loader() -> ConfigLoader:
    """What `hydra.compose` uses, made once: it takes a fifth of the time of each composition."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from experiments.config.schema import register

    GlobalHydra.instance().clear()
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def split(whole: DictConfig) -> Composed:
    """A composed configuration without Hydra's own part, and what is needed of that part."""
    command = Command.of(whole.hydra)
    OmegaConf.set_readonly(whole, False)
    OmegaConf.set_struct(whole, False)
    del whole["hydra"]
    OmegaConf.set_struct(whole, True)
    check_groups(whole)
    return whole, command


def keep_command(config: DictConfig, command: Command) -> DictConfig:
    """Stores the words of a `run.py` command in what it composed, including the user's own config folders.

    Raises:
        UserError: for a word that nothing would read, such as launcher.kind, which only hydra/launcher=NAME sets.
    """
    more = [f"hydra.searchpath=[{','.join(command.folders)}]"] if command.folders else []
    if word := next((word for word in command.words if key_of(word) == "launcher.kind"), None):
        raise UserError(f"'{word}' does nothing; type hydra/launcher=NAME, such as hydra/launcher=slurm")
    config.launcher.kind = command.choices["hydra/launcher"]
    if command.alone:
        check_groups(config)
    if command.alone and config.study is None and config.launcher.kind == "local":
        config.launcher.kind = "basic"  # one run needs no workers
    for word in command.words:
        if (needed := _needed(key_of(word), config)) is not None:
            raise UserError(f"'{word}' does nothing; {needed}, or leave it out")
    if config.launcher.kind == "slurm":  # so that the command that resumes this run submits it again
        more.append("hydra/launcher=slurm")
    return keep_overrides(config, [*command.words, *more], command.choices)


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
    if any("${" in word for word in overrides):
        check_groups(config)
    config.overrides = list(overrides)
    recipe = CONF / "recipe" / f"{choices.get(RECIPE_FILE)}.yaml"
    if config.recipe.source is not None and recipe.is_file():
        config.recipe.changed = sorted({key_of(word) for word in overrides} & set(settings_of(recipe)))
    return config


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
