"""Validates a study: its names, its seeds, and whether its family of comparisons can reach its level."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from elalora.errors import UserError
from experiments.config.study import Correction, FamilyConfig, PartConfig, PartKind, StudyConfig, TuningConfig
from experiments.config.words import key_of
from experiments.studies.smallest_p import least_pairs, smallest_p

TUNING_PART = "tuning"  # the part of a tuning run; the runs themselves have protocol=tune
MAX_SEEDS = 1_000  # of one part


def divisor(family: FamilyConfig) -> int:
    """What the smallest p-value of the family is multiplied by: m for Holm's correction, 1 for maxT at its best."""
    return 1 if family.correction == Correction.maxt else family.m


def pairs_of(family: FamilyConfig) -> list[tuple[str, str]]:
    """The two arms of each contrast: the one whose score counts, and the one whose score is taken off.

    Raises:
        UserError: a contrast is not "ARM - OTHER" with two different arms, or stands there twice.
    """
    pairs = []
    for text in family.contrasts:
        match = re.fullmatch(r"\s*(\S+)\s+-\s+(\S+)\s*", text)
        if match is None or match[1] == match[2]:
            raise UserError(f"study.family.contrasts: '{text}' is not a difference of two arms; type 'elalora - lora'")
        pairs.append((match[1], match[2]))
    for arm, other in pairs:
        if pairs.count((arm, other)) + pairs.count((other, arm)) > 1:
            raise UserError(f"study.family.contrasts compares {arm} and {other} twice; remove one")
    return pairs


def common_base(family: FamilyConfig) -> str | None:
    """The arm that every contrast takes off; None where they differ."""
    bases = {other for _, other in pairs_of(family)}
    return bases.pop() if len(bases) == 1 else None


def seeds_of(text: str) -> list[int]:
    """The seeds of "range(10)", "range(10,20)" or "0,1,2"."""
    match = re.fullmatch(r"\s*range\(\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?\)\s*", text)
    seeds: Sequence[int]
    if match:
        first, second = match.groups()
        seeds = range(int(first), int(second)) if second else range(int(first))
    elif re.fullmatch(r"\s*\d{1,9}(\s*,\s*\d{1,9})*\s*", text):
        seeds = [int(word) for word in text.split(",")]
    else:
        raise UserError(f"seeds '{text}' cannot be read; type for instance 'range(10)', 'range(10,20)' or '0,1,2'")
    if not 0 < len(seeds) <= MAX_SEEDS:
        raise UserError(f"seeds '{text}' are {len(seeds)}; 1 to {MAX_SEEDS} are allowed")
    return list(seeds)


def check(study: StudyConfig) -> None:
    """Refuses an inconsistent study.

    Raises:
        UserError: a name does not exist, a seed is used twice, or the family does not match its part or cannot reach
            its level.
    """
    for name, part in study.parts.items():
        if name == TUNING_PART:
            raise UserError("study.parts.tuning: this name is reserved for the tuning stage; choose another")
        for arm in part.arms:
            _known_arm(study, arm, f"study.parts.{name}.arms")
    for name, arm_config in study.arms.items():
        for setting in ("ranks_from", "tuned_as"):
            if (other := getattr(arm_config, setting)) is None:
                continue
            _known_arm(study, other, f"study.arms.{name}.{setting}")
            if getattr(study.arms[other], setting) is not None:
                raise UserError(f"study.arms.{name}.{setting}={other}, which itself has {setting}; name another arm")
    for name, part in study.parts.items():
        missing = {study.arms[arm].ranks_from for arm in part.arms} - {None, *part.arms}
        if missing:
            raise UserError(f"study.parts.{name}.arms lacks {missing.pop()}, which gives another arm its ranks")
        if part.rates:
            _check_curve(f"study.parts.{name}", part)
    if study.tuning is not None:
        _check_tuning(study, study.tuning)
    confirmatory = [name for name, part in study.parts.items() if part.kind == "confirmatory"]
    if confirmatory and (study.family is None or confirmatory != [study.family.part]):
        raise UserError(f"the confirmatory part of {study.name} ({', '.join(confirmatory)}) must be study.family.part")
    if study.family is not None:
        _check_family(study)


def _known_arm(study: StudyConfig, arm: str, setting: str) -> None:
    if arm not in study.arms:
        raise UserError(f"{setting}: unknown arm {arm}; allowed: {', '.join(study.arms)}")


def _check_tuning(study: StudyConfig, tuning: TuningConfig) -> None:
    used = {seed for part in study.parts.values() for seed in seeds_of(part.seeds)}
    if twice := sorted(used & set(seeds_of(tuning.seeds))):
        raise UserError(f"study.tuning.seeds={tuning.seeds}: a part uses seed {twice[0]} too; choose other seeds")
    lengths = {len(grid) for grid in tuning.grids.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError("study.tuning.grids must all have the same number of learning rates, two or more")
    _check_rates("study.tuning.grids", tuning.grids)


def _check_curve(name: str, part: PartConfig) -> None:
    if part.tuned:
        raise UserError(f"{name} has rates, so it cannot take tuned ones; add 'tuned: false' to it")
    if part.kind == PartKind.confirmatory:
        raise UserError(
            f"{name}.rates: a confirmatory part compares arms at one learning rate each; make it exploratory"
        )
    _check_rates(f"{name}.rates", part.rates)


def _check_rates(setting: str, grids: Mapping[str, Sequence[float]]) -> None:
    for family, grid in grids.items():
        if not grid or list(grid) != sorted(set(grid)) or grid[0] <= 0:
            raise UserError(f"{setting}.{family}={list(grid)} must be increasing and above 0")


def _tuned_alike(study: StudyConfig, arm: str) -> bool:
    """Whether an arm is tuned itself, or has the rate of an arm that differs from it in the ranks only."""
    config = study.arms[arm]
    if config.tuned_as is None:
        return True
    form = [word for word in config.overrides if key_of(word) != "method.shuffle"]
    return config.ranks_from is not None and form == list(study.arms[config.tuned_as].overrides)


def _check_family(study: StudyConfig) -> None:
    family = study.family
    assert family is not None
    part = study.parts.get(family.part)
    if part is None or part.kind != "confirmatory":
        raise UserError(f"study.family.part={family.part} is not a confirmatory part of {study.name}")
    for arm in part.arms:
        if not _tuned_alike(study, arm):
            raise UserError(
                f"study.arms.{arm}.tuned_as: an arm of a confirmatory part must be tuned itself, or differ from "
                f"{study.arms[arm].tuned_as} in its ranks only (ranks_from, method.shuffle)"
            )
    pairs = pairs_of(family)
    for name, declared, of_part in (
        ("contrasts", {arm for pair in pairs for arm in pair}, part.arms),
        ("budgets", set(family.budgets), part.budgets),
    ):
        if declared != set(of_part):
            raise UserError(f"study.family.{name} must have all of the part {family.part}, and no others: {of_part}")
    if not 0 < family.alpha < 1:
        raise UserError(f"study.family.alpha={family.alpha} must be between 0 and 1")
    comparisons = len(pairs) * len(family.budgets)
    if not comparisons:
        raise UserError(f"study.family of {study.name} compares nothing; set its contrasts and budgets")
    if family.m != comparisons:
        raise UserError(f"study.family.m={family.m}, but contrasts x budgets are {comparisons} comparisons")
    for name in ("margin", "sd"):
        if (value := getattr(family, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"study.family.{name}={value} must be above 0, in points; null leaves it out")
    seeds, of = len(set(seeds_of(part.seeds))), divisor(family)
    if smallest_p(seeds) > family.alpha / of:
        needed = f"{family.alpha} / {of}" if of > 1 else f"{family.alpha}"
        raise UserError(
            f"{study.name} cannot reach its level: {seeds} seeds give p = {smallest_p(seeds):.3g} at best, and "
            f"{needed} is needed; take {least_pairs(family.alpha, of)} "
            f"seeds (study.parts.{family.part}.seeds) or declare fewer contrasts or budgets"
        )
    recipe = next((w.partition("=")[2] for w in study.overrides if key_of(w) == "recipe"), None)
    if recipe != "matched":
        raise UserError(f"{study.name} is confirmatory: study.overrides must choose recipe=matched")
