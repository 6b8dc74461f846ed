"""What a study must be to be run: names that exist, seeds used once, and a family that can reach its level."""

from __future__ import annotations

import re
from collections.abc import Sequence

from elalora.errors import UserError
from experiments.config.study import StudyConfig, TuningConfig
from experiments.config.words import key_of
from experiments.studies.smallest_p import least_pairs, smallest_p

TUNING = "tuning"  # the stage before the parts, and the name of its cells' part
MOST_SEEDS = 1_000  # of one part


def seeds_of(text: str) -> list[int]:
    """Seeds written as "range(10)", "range(10,20)" or "0,1,2"."""
    found = re.fullmatch(r"\s*range\(\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?\)\s*", text)
    seeds: Sequence[int]
    if found:
        first, second = found.groups()
        seeds = range(int(first), int(second)) if second else range(int(first))
    elif re.fullmatch(r"\s*\d{1,9}(\s*,\s*\d{1,9})*\s*", text):
        seeds = [int(word) for word in text.split(",")]
    else:
        raise UserError(f"seeds '{text}' cannot be read; type for instance 'range(10)', 'range(10,20)' or '0,1,2'")
    if not 0 < len(seeds) <= MOST_SEEDS:
        raise UserError(f"seeds '{text}' are {len(seeds)}; 1 to {MOST_SEEDS} are allowed")
    return list(seeds)


def check(study: StudyConfig) -> None:
    """Refuses a study that is not consistent.

    Raises:
        UserError: a name does not exist, a seed is used twice, or the family is not what it says or cannot reach its
            level.
    """
    for name, part in study.parts.items():
        if name == TUNING:
            raise UserError("study.parts.tuning: the name belongs to the tuning stage; choose another")
        for arm in part.arms:
            _known_arm(study, arm, f"study.parts.{name}.arms")
    for name, own in study.arms.items():
        if own.ranks_from is not None:
            _known_arm(study, own.ranks_from, f"study.arms.{name}.ranks_from")
            if study.arms[own.ranks_from].ranks_from is not None:
                raise UserError(f"study.arms.{name}.ranks_from={own.ranks_from} is a transplant itself")
        if own.tuned_as is not None:
            _known_arm(study, own.tuned_as, f"study.arms.{name}.tuned_as")
            if study.arms[own.tuned_as].tuned_as is not None:
                raise UserError(f"study.arms.{name}.tuned_as={own.tuned_as} is not tuned itself")
    for name, part in study.parts.items():
        missing = {study.arms[arm].ranks_from for arm in part.arms} - {None, *part.arms}
        if missing:
            raise UserError(f"study.parts.{name}.arms lacks {missing.pop()}, from which another arm takes its ranks")
    if study.tuning is not None:
        _check_tuning(study, study.tuning)
    confirmatory = [name for name, part in study.parts.items() if part.kind == "confirmatory"]
    if confirmatory and (study.family is None or confirmatory != [study.family.part]):
        raise UserError(f"the confirmatory part of {study.name} ({', '.join(confirmatory)}) must be study.family.part")
    if study.family is not None:
        _check_family(study)


def _known_arm(study: StudyConfig, arm: str, where: str) -> None:
    if arm not in study.arms:
        raise UserError(f"{where}: there is no arm {arm}; allowed: {', '.join(study.arms)}")


def _check_tuning(study: StudyConfig, tuning: TuningConfig) -> None:
    used = {seed for part in study.parts.values() for seed in seeds_of(part.seeds)}
    twice = sorted(used & set(seeds_of(tuning.seeds)))
    if twice:
        raise UserError(f"study.tuning.seeds={tuning.seeds}: seed {twice[0]} is also one of a part; tune on others")
    lengths = {len(grid) for grid in tuning.grids.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError("study.tuning.grids must all have the same number of learning rates, two or more")
    for family, grid in tuning.grids.items():
        if grid != sorted(set(grid)) or grid[0] <= 0:
            raise UserError(f"study.tuning.grids.{family}={grid} must rise and be above 0")


def _check_family(study: StudyConfig) -> None:
    family = study.family
    assert family is not None
    part = study.parts.get(family.part)
    if part is None or part.kind != "confirmatory":
        raise UserError(f"study.family.part={family.part} is no confirmatory part of {study.name}")
    for arm in part.arms:
        if study.arms[arm].tuned_as is not None:
            raise UserError(f"study.arms.{arm}.tuned_as: an arm of a confirmatory part has trials of its own")
    for name, declared, there in (
        ("arms", [family.baseline, *family.arms], part.arms),
        ("budgets", family.budgets, part.budgets),
    ):
        if set(declared) != set(there):
            raise UserError(f"study.family.{name} and baseline are not those of the part {family.part}: {there}")
    if not 0 < family.alpha < 1:
        raise UserError(f"study.family.alpha={family.alpha} must lie between 0 and 1")
    comparisons = len(family.arms) * len(family.budgets)
    if not comparisons:
        raise UserError(f"study.family of {study.name} compares nothing: give it arms and budgets")
    if family.m != comparisons:
        raise UserError(f"study.family.m={family.m}, but {comparisons} comparisons are declared (arms x budgets)")
    seeds = len(set(seeds_of(part.seeds)))
    if smallest_p(seeds) > family.alpha / family.m:
        raise UserError(
            f"{study.name} cannot reach its level: {seeds} seeds give p = {smallest_p(seeds):.3g} at best, and "
            f"{family.alpha} / {family.m} is needed; take {least_pairs(family.alpha, family.m)} "
            f"seeds (study.parts.{family.part}.seeds) or compare fewer arms or budgets"
        )
    recipe = next((w.partition("=")[2] for w in study.overrides if key_of(w) == "recipe"), None)
    if recipe != "matched":
        raise UserError(f"{study.name} is confirmatory: study.overrides must choose recipe=matched")
