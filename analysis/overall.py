"""Methods over all tasks that they share: pooled means, robust means, and ranks. Descriptive, no source of claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.across_tasks import (
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
    named = runs.assign(shown=row_names(runs), recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    for key, cell in named.groupby(PLACE, sort=True):
        place = dict(zip(PLACE, key, strict=True))
        arms = _complete(cell)
        if len(arms) >= 2:
            records += _place(
                place, arms, {n: m for n, m in zip(cell["shown"], cell["method"], strict=True)}, baseline, level
            )
            notes += _ranks(", ".join(filter(None, key)), arms)
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


def _complete(cell: pd.DataFrame) -> dict[str, pd.DataFrame]:
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


def _place(
    place: dict[str, Any], arms: dict[str, pd.DataFrame], methods: dict[str, str], baseline: str, level: float
) -> list[dict[str, Any]]:
    import numpy as np

    bases = [name for name in arms if methods[name] == baseline]
    records = []
    for name, table in arms.items():
        x = table.to_numpy(float)
        record: dict[str, Any] = place | {"shown": name, "tasks": x.shape[1], "n": x.shape[0], "mean": float(x.mean())}
        record["iqm"] = interquartile_mean(x)
        if x.shape[0] >= LEAST_RUNS:
            record["low"], record["high"] = stratified_bootstrap_t(x, np.random.default_rng(0), level, 1_999)
        if len(bases) == 1 and name != bases[0]:
            y = arms[bases[0]].to_numpy(float)
            record["above"] = probability_of_improvement(x, y)
            record["wtl"] = "/".join(map(str, win_tie_loss(x.mean(axis=0) - y.mean(axis=0))))
        records.append(record)
    return records


def _ranks(where: str, arms: dict[str, pd.DataFrame]) -> list[str]:
    """Friedman's test over tasks, and which arms its critical difference does not tell apart."""
    import numpy as np

    if len(arms) < 3:
        return []
    names = list(arms)
    means = np.stack([table.to_numpy(float).mean(axis=0) for table in arms.values()], axis=1)  # (tasks, methods)
    found, bound = friedman(means), critical_difference(len(names), len(means))
    ranks = ", ".join(f"{names[i]} {found.mean_ranks[i]:.2f}" for i in np.argsort(found.mean_ranks, kind="stable"))
    groups = "; ".join(", ".join(names[i] for i in group) for group in cliques(found.mean_ranks, bound)) or "none"
    return [
        f"{where}: mean ranks over {len(means)} tasks (1 is highest) {ranks}; Friedman p = {found.p:.3f}, critical "
        f"difference {bound:.2f} (Nemenyi, 0.05), not told apart: {groups}."
    ]
