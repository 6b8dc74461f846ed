"""The transplant study: what of an effect is the layout and what the dynamics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.stats.seeds import holm, sign_flip, t_interval

if TYPE_CHECKING:
    import pandas as pd


class Step(NamedTuple):
    """A paired difference in points, with its 95 % t interval (NaN below 3 seeds), exact p and Holm's p."""

    name: str
    meaning: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    corrected: float


STEPS = (  # (name, arm, less this arm, what the difference is)
    ("whole", "elalora", "svd_lora", "moving ranks: layout and the way there together"),
    ("layout", "transplant", "svd_lora", "ElaLoRA's final layout, trained from scratch"),
    ("place", "transplant", "shuffled", "which layers of a type have the ranks, not how many the type has"),
    ("dynamics", "elalora", "transplant", "the way there, at the same final layout"),
)


def arm_of(settings: dict[str, Any]) -> str | None:
    """elalora, svd_lora, transplant or shuffled; None for a run that is none of them."""
    method = settings.get("method", {})
    if method.get("name") == "elalora":
        return "elalora" if method.get("variant", "paper") == "paper" and not _side_effects(method) else None
    if method.get("name") != "svd_lora" or _side_effects(method):
        return None
    return "svd_lora" if not method.get("ranks_from") else "shuffled" if method.get("shuffle") else "transplant"


def _side_effects(method: dict[str, Any]) -> bool:
    switched = any(method.get(name) for name in ("D1", "D2", "D8", "D12", "D15")) or method.get("D4") not in (
        None,
        "off",
    )
    chosen_at_random = "random" in (method.get("importance"), method.get("expansion"))
    return switched or chosen_at_random


def transplant(runs: pd.DataFrame) -> list[Step]:
    """What the transplant control says, paired by seed (and task, where there are several: their mean).

    Args:
        runs: of one model, budget, protocol and recipe.

    Returns:
        One step for each pair of arms with two common seeds or more; p corrected over the steps that are there. Empty
        where several arms would stand for one, as with two learning rates: choose one by filters.
    """
    arms = runs.assign(arm_name=[arm_of(s) for s in runs["settings"]])
    arms = arms[arms["arm_name"].notna()]
    if arms.duplicated(["arm_name", "task", "seed"]).any():
        return []
    wide = arms.pivot(index="seed", columns=["arm_name", "task"], values="score")
    found = []
    for name, arm, less, meaning in STEPS:
        if arm not in wide.columns.get_level_values(0) or less not in wide.columns.get_level_values(0):
            continue
        x = (wide[arm] - wide[less]).dropna(axis=1, how="all").dropna().mean(axis=1).to_numpy(float)
        if len(x) >= 2:
            low, high = t_interval(x) if len(x) >= 3 else (math.nan, math.nan)
            p = sign_flip(x, np.random.default_rng(0))
            found.append(Step(name, meaning, len(x), float(x.mean()), low, high, p, math.nan))
    if not found:
        return []
    return [step._replace(corrected=float(p)) for step, p in zip(found, holm([s.p for s in found]), strict=True)]
