"""The members of a sweep (`run.py -m`), composed as Hydra does, but once for each file they choose.

Hydra composes every member twice, for 0.2 s each time: before the first of a study's 2,500 runs it would take minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from experiments.config.compose import chosen, split, with_values
from experiments.config.parts import Composed

SEED = re.compile(r"seed=(0|[1-9]\d{0,17})")


@dataclass(frozen=True)
class Repeat:
    """A member that differs from an earlier one in its seed.

    Attributes:
        words: of the member.
        first: position of the earlier one among those that are composed.
        seed: its own.
    """

    words: tuple[str, ...]
    first: int
    seed: int


def arm_of(words: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
    """Words with a placeholder for the seed, and the seed; None without one, or where other words may read it."""
    seeds = [match for word in words if (match := SEED.fullmatch(word))]
    if len(seeds) != 1 or any(
        "${" in word or re.match(r"[+~]*seed\b", word) and not SEED.fullmatch(word) for word in words
    ):
        return None
    return tuple("seed=" if word == seeds[0][0] else word for word in words), int(seeds[0][1])


def collect(into: list[Any]) -> None:
    """Makes Hydra's sweeper add the members of a sweep to a list, in place of starting each."""

    def sweep(self: BasicSweeper, arguments: list[str]) -> None:
        assert self.config is not None and self.hydra_context is not None
        loader, master = self.hydra_context.config_loader, self.config
        words = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])

        @cache
        def composed(words: tuple[str, ...]) -> Composed:
            return split(loader.load_sweep_config(master, list(words)))

        first: dict[tuple[str, ...], int] = {}
        for member in map(tuple, self.split_arguments(words, None)[0]):
            arm = arm_of(member)
            if arm is not None and arm[0] in first:
                into.append(Repeat(member, first[arm[0]], arm[1]))
                continue
            if arm is not None:
                first[arm[0]] = len(into)
            config, command = with_values(member, lambda words: chosen(words, composed))
            into.append((config, replace(command, words=member)))

    plugins = Plugins.instance().class_name_to_class  # Hydra imports its plugins a second time
    plugins[f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"].sweep = sweep  # type: ignore[attr-defined]
