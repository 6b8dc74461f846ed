"""Checks of a whole command that Hydra does not make: words that it would accept, and that would do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from elalora.errors import UserError
from experiments.config.explain import unknown_setting
from experiments.config.parts import Command
from experiments.config.suggest import declared, for_flags
from experiments.config.words import GROUPS, key_of


def check_flags(words: Sequence[str]) -> None:
    """Refuses flags that Hydra does not have, where argparse would print its usage, and a sweep's group named twice.

    Raises:
        UserError: what to type instead.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(for_flags(message, words))

    parser.error = refuse  # type: ignore[method-assign]
    args = parser.parse_args(list(words))
    for group in GROUPS if args.multirun else ():  # Hydra would sweep over the last
        names = list(dict.fromkeys(word.partition("=")[2] for word in args.overrides if key_of(word) == group))
        if len(names) > 1:
            raise UserError(f"{group} is set twice, and the last would count; for both type {group}={','.join(names)}")


def check_command(command: Command) -> None:
    """Refuses words that do nothing.

    Raises:
        UserError: an unknown setting that a plus sign added, or a launcher by another name.
    """
    for word in command.words:
        key = key_of(word)
        if word.startswith("+") and key not in command.choices and declared(key) is None:
            raise UserError(unknown_setting(key))
    for word in command.hydra_words:
        if key_of(word) == "hydra.launcher":
            raise UserError(f"'{word}' does nothing; type hydra/launcher=NAME, such as hydra/launcher=slurm")
