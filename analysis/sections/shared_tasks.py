"""Tasks that several arms share, and their mean ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.reading.arms import short_recipe
from analysis.stats.tasks import (
    Friedman,
    critical_difference,
    friedman,
)

if TYPE_CHECKING:
    import pandas as pd
if TYPE_CHECKING:
    import pandas as pd


PLACE = ["model", "protocol", "recipe", "budget"]


LEAST_RUNS = 4  # of the bootstrap-t


@dataclass(frozen=True)
class Place:
    """Arms that share a model, protocol, recipe and budget, cut to the tasks and seeds that all of them have.

    Attributes:
        key: model, protocol, recipe and budget.
        arms: scores (seeds, tasks) by the arm's name; the same seeds and tasks in each.
        methods: the method of every arm.
        citations: of the tasks' data.
        off: names of arms that are off the budget, which take no part.
    """

    key: dict[str, str]
    arms: dict[str, pd.DataFrame]
    methods: dict[str, str]
    citations: list[str]
    off: list[str] = field(default_factory=list)

    def where(self) -> str:
        """The key in words."""
        return ", ".join(filter(None, self.key.values()))

    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(next(iter(self.arms.values())).columns)

    def seeds(self) -> int:
        """How many seeds every arm has."""
        return len(next(iter(self.arms.values())))

    def base(self, baseline: str) -> str | None:
        """The one arm of the baseline method; None where there is none or several."""
        bases = [name for name in self.arms if self.methods[name] == baseline]
        return bases[0] if len(bases) == 1 else None


def places(runs: pd.DataFrame) -> list[Place]:
    """Every place where two or more arms share two or more tasks.

    Arms that are off their budget on any task take no part.

    Args:
        runs: from `load_runs`.
    """
    found = []
    named = runs.assign(shown=runs["row_name"], recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    for key, cell in named.groupby(PLACE, sort=True):
        cell, off = within_budget(cell)
        arms = complete(cell)
        if len(arms) >= 2:
            tasks = next(iter(arms.values())).columns
            citations = sorted(set(cell["citation"][cell["task"].isin(tasks)]) - {""})
            methods = {name: method for name, method in zip(cell["shown"], cell["method"], strict=True)}
            found.append(Place(dict(zip(PLACE, key, strict=True)), arms, methods, citations, off))
    return found


def within_budget(cell: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of arms that keep their budget on every task, and the names of the others."""
    off = sorted({name for name, flags in zip(cell["shown"], cell["flags"], strict=True) if "off budget" in flags})
    return cell[~cell["shown"].isin(off)], off


def complete(cell: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """(seeds, tasks) of every arm, cut to what all have; arms that mix data are left out."""
    tables = {
        str(name): arm.pivot(index="seed", columns="task", values="score")
        for name, arm in cell.groupby("shown", sort=True)
        if not arm.duplicated(["task", "seed"]).any() and arm["task"].nunique() > 1
    }
    if len(tables) < 2:
        return {}
    tasks = sorted(set.intersection(*(set(table.columns) for table in tables.values())))
    whole = {name: table[tasks].dropna() for name, table in tables.items()}
    seeds = sorted(set.intersection(*(set(table.index) for table in whole.values())))
    return {name: table.loc[seeds] for name, table in whole.items()} if len(tasks) > 1 and seeds else {}


def mean_ranks(place: Place) -> tuple[Friedman, float]:
    """Friedman's test over the tasks' means, and Nemenyi's critical difference at 0.05; of three arms or more."""
    import numpy as np

    means = np.stack([table.to_numpy(float).mean(axis=0) for table in place.arms.values()], axis=1)  # (tasks, methods)
    return friedman(means), critical_difference(len(place.arms), len(means))


def p_text(p: float) -> str:
    """p = 0.014, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
