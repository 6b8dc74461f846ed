"""The transplant study: how much of an effect is the final layout of ranks, and how much the way there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.output.table import Table, p_value, signed, signed_range
from analysis.reading.settings import cell_of
from analysis.stats.seeds import holm, sign_flip, summary


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
    """elalora, svd_lora, transplant or shuffled; None for any other run."""
    method = settings.get("method", {})
    cell = cell_of({"method": {**method, "ranks_from": None}})
    if cell == (0, 0, 0) and method.get("ranks_from"):
        return "shuffled" if method.get("shuffle") else "transplant"
    return {(0, 0, 0): "svd_lora", (2, 0, 0): "elalora"}.get(cell) if cell else None


def transplant(runs: pd.DataFrame) -> list[Step]:
    """The steps of the transplant study, paired by seed; over several tasks, their mean.

    Args:
        runs: of one model, budget, protocol and recipe.

    Returns:
        One step for each pair of arms with two common seeds or more, with p corrected over these steps. Empty if
        several arms would stand for one, as with two learning rates: choose one by filters.
    """
    arms = runs.assign(arm_name=[arm_of(s) for s in runs["settings"]])
    arms = arms[arms["arm_name"].notna()]
    if arms.duplicated(["arm_name", "task", "seed"]).any():
        return []
    wide = arms.pivot(index="seed", columns=["arm_name", "task"], values="score")
    steps: list[Step] = []
    for name, arm, less, meaning in STEPS:
        if arm not in wide.columns.get_level_values(0) or less not in wide.columns.get_level_values(0):
            continue
        x = (wide[arm] - wide[less]).dropna(axis=1, how="all").dropna().mean(axis=1).to_numpy(float)
        if len(x) >= 2:
            s, p = summary(x), sign_flip(x, np.random.default_rng(0))
            steps.append(Step(name, meaning, s.n, s.mean, s.low, s.high, p, math.nan))
    if not steps:
        return []
    return [s._replace(corrected=float(p)) for s, p in zip(steps, holm([s.p for s in steps]), strict=True)]


def transplant_table(cell: pd.DataFrame, label: str) -> Table | None:
    """What the layout does and what the way there does, for runs of one cell; None for fewer than two steps."""
    steps = transplant(cell)
    if len(steps) < 2:
        return None
    rows = [
        [s.name, s.meaning, str(s.seeds), signed(s.mean), signed_range(s.low, s.high).strip(), p_value(s.p),
         p_value(s.corrected)]
        for s in steps
    ]  # fmt: skip
    present = {step.name for step in steps}
    notes = [f"{name}: {arm} less {less}." for name, arm, less, _ in STEPS if name in present]
    arms = [arm_of(s) for s in cell["settings"]]
    rates = {a: s["trainer"]["lr"] for a, s in zip(arms, cell["settings"], strict=True) if a and "trainer" in s}
    if len(set(rates.values())) > 1:
        text = ", ".join(f"{arm} {rate}" for arm, rate in sorted(rates.items()))
        notes.append(f"Learning rates, tuned for each arm, are part of these differences: {text}.")
    notes.append("Paired by seed; t interval over seeds; exact sign-flip test, Holm over the rows of this table.")
    columns = ["Difference", "Meaning", "Seeds", "Points", "95 % interval", "p", "p (Holm)"]
    frame = pd.DataFrame(steps).assign(where=label)
    return Table(f"Layout or dynamics: {label}", columns, rows, notes, frame)
