"""Methods over all tasks that they share: pooled means, robust means, and ranks. Descriptive, no source of claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.across_tasks import (
    Friedman,
    cliques,
    critical_difference,
    friedman,
    interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap_t,
)
from analysis.paper import row_names, short_recipe
from analysis.statistics import win_tie_loss
from analysis.table import Table

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
    named = runs.assign(shown=row_names(runs), recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    for key, cell in named.groupby(PLACE, sort=True):
        cell, off = within_budget(cell)
        arms = complete(cell)
        if len(arms) >= 2:
            tasks = next(iter(arms.values())).columns
            citations = sorted(set(cell["citation"][cell["task"].isin(tasks)]) - {""})
            methods = {name: method for name, method in zip(cell["shown"], cell["method"], strict=True)}
            found.append(Place(dict(zip(PLACE, key, strict=True)), arms, methods, citations, off))
    return found


def overall(runs: pd.DataFrame, baseline: str = "lora", level: float = 0.95) -> Table | None:
    """Every place where two or more arms share two or more tasks.

    Args:
        runs: from `load_runs`.
        baseline: the method that wins and chances of improvement are against.
        level: of the intervals.
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for place in places(runs):
        records += _place(place, baseline, level)
        notes += [f"{place.where()}: {outside(place.off)}"] if place.off else []
        notes += _ranks(place)
    if not records:
        return None
    columns = [
        "Model",
        "Protocol",
        "Recipe",
        "Budget",
        "Method",
        "Tasks",
        "n",
        "Mean",
        "Middle half",
        "P(above)",
        "W/T/L",
    ]
    rows = [
        [*(str(r[k]) for k in PLACE), r["shown"], str(r["tasks"]), str(r["n"]),
         f"{r['mean']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if "low" in r else ""), f"{r['iqm']:.2f}",
         f"{r['above']:.2f}" if "above" in r else "", r.get("wtl", "")]
        for r in records
    ]  # fmt: skip
    heads = [
        "Over the tasks and seeds that all arms of a row's place share. Mean: over tasks, with a stratified "
        f"bootstrap-t interval ({level:.0%}, from {LEAST_RUNS} seeds on). Middle half: mean of that half of all runs.",
        f"P(above): chance that a run scores above one of {baseline} on the same task. W/T/L: tasks with a higher, "
        "equal and lower mean. All descriptive: no test of a claim, and nothing reaches beyond these tasks.",
    ]
    return Table("Over all tasks.", columns, rows, heads + notes, pd.DataFrame(records))


def within_budget(cell: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of arms that keep their budget on every task, and the names of the others."""
    off = sorted({name for name, flags in zip(cell["shown"], cell["flags"], strict=True) if "off budget" in flags})
    return cell[~cell["shown"].isin(off)], off


def outside(names: Sequence[str]) -> str:
    """The sentence that says which arms are left out for their budget."""
    return f"off the budget and outside of all means, ranks and figures: {', '.join(names)}."


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


def _place(place: Place, baseline: str, level: float) -> list[dict[str, Any]]:
    import numpy as np

    base = place.base(baseline)
    records = []
    for name, table in place.arms.items():
        x = table.to_numpy(float)
        record: dict[str, Any] = place.key | {"shown": name, "tasks": x.shape[1], "n": x.shape[0]}
        record |= {"mean": float(x.mean()), "iqm": interquartile_mean(x)}
        if x.shape[0] >= LEAST_RUNS:
            record["low"], record["high"] = stratified_bootstrap_t(x, np.random.default_rng(0), level, 1_999)
        if base is not None and name != base:
            y = place.arms[base].to_numpy(float)
            record["above"] = probability_of_improvement(x, y)
            record["wtl"] = "/".join(map(str, win_tie_loss(x.mean(axis=0) - y.mean(axis=0))))
        records.append(record)
    return records


def mean_ranks(place: Place) -> tuple[Friedman, float]:
    """Friedman's test over the tasks' means, and Nemenyi's critical difference at 0.05; of three arms or more."""
    import numpy as np

    means = np.stack([table.to_numpy(float).mean(axis=0) for table in place.arms.values()], axis=1)  # (tasks, methods)
    return friedman(means), critical_difference(len(place.arms), len(means))


def p_text(p: float) -> str:
    """p = 0.014, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _ranks(place: Place) -> list[str]:
    """Friedman's test over tasks, and which arms its critical difference does not tell apart."""
    import numpy as np

    if len(place.arms) < 3:
        return []
    names = list(place.arms)
    found, bound = mean_ranks(place)
    ranks = ", ".join(f"{names[i]} {found.mean_ranks[i]:.2f}" for i in np.argsort(found.mean_ranks, kind="stable"))
    groups = "; ".join(", ".join(names[i] for i in group) for group in cliques(found.mean_ranks, bound)) or "none"
    return [
        f"{place.where()}: mean ranks over {len(place.tasks())} tasks (1 is highest) {ranks}; Friedman "
        f"{p_text(found.p)}, critical difference {bound:.2f} (Nemenyi, 0.05), not told apart: {groups}."
    ]
