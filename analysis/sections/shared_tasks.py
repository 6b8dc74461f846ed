"""Arms on the tasks and seeds that they share, and their mean ranks over these tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.sections.arms import named_across_tasks
from analysis.stats.tasks import Friedman, critical_difference, friedman

SHARED_KEYS = ["model", "protocol", "recipe", "budget"]  # arms are pooled over tasks within one of each
LEAST_SEEDS_FOR_BOOTSTRAP = 4


@dataclass(frozen=True)
class SharedTasks:
    """Arms of one model, protocol, recipe and budget, cut to the tasks and seeds that all of them have.

    Attributes:
        key: model, protocol, recipe and budget.
        arms: scores (seeds, tasks) by the arm's name; the same seeds and tasks in each.
        methods: the method of every arm.
        citations: of the tasks' data.
        off: names of arms off the budget, which are left out.
        lacking: what the pool leaves out because an arm lacks it, or because it has too little, one line each.
    """

    key: dict[str, str]
    arms: dict[str, pd.DataFrame]
    methods: dict[str, str]
    citations: list[str]
    off: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return key_label(self.key)

    @property
    def tasks(self) -> list[str]:
        return list(next(iter(self.arms.values())).columns)

    @property
    def seeds(self) -> int:
        """Number of seeds of every arm."""
        return len(next(iter(self.arms.values())))

    def baseline_arm(self, baseline: str) -> str | None:
        """The arm of the baseline method; None if it has no arm or several."""
        names = [name for name in self.arms if self.methods[name] == baseline]
        return names[0] if len(names) == 1 else None


def key_label(key: Mapping[str, str]) -> str:
    """The values of a key with commas between."""
    return ", ".join(filter(None, key.values()))


def shared_tasks(runs: pd.DataFrame) -> list[SharedTasks]:
    """Every model, protocol, recipe and budget at which two or more arms share two or more tasks.

    Arms that are off their budget on any task are left out.
    """
    pools = []
    for key, group in named_across_tasks(runs).groupby(SHARED_KEYS, sort=True):
        group, off = within_budget(group)
        arms = common_scores(group)
        if len(arms) >= 2:
            tasks = next(iter(arms.values())).columns
            citations = sorted(set(group["citation"][group["task"].isin(tasks)]) - {""})
            methods = dict(zip(group["shown"], group["method"], strict=True))
            place, lacking = dict(zip(SHARED_KEYS, key, strict=True)), left_out(group, list(arms), list(tasks))
            pools.append(SharedTasks(place, arms, methods, citations, off, lacking))
    return pools


def unshared(runs: pd.DataFrame) -> list[str]:
    """A line for every place with several arms and tasks that is in no pool, because its arms share too few tasks."""
    lines = []
    for key, group in named_across_tasks(runs).groupby(SHARED_KEYS, sort=True):
        group, _ = within_budget(group)
        tasks = group.groupby("shown")["task"].agg(set)
        if len(tasks) > 1 and group["task"].nunique() > 1 and not common_scores(group):
            listed = "; ".join(f"{name}: {', '.join(sorted(of))}" for name, of in tasks.items())
            label = key_label(dict(zip(SHARED_KEYS, key, strict=True)))
            lines.append(f"{label}: no means over tasks, the arms share fewer than two tasks or no seed ({listed}).")
    return lines


def left_out(runs: pd.DataFrame, arms: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The arms outside of a pool and why, and the tasks outside of it with the arms that lack them."""
    of = {str(name): set(arm["task"]) for name, arm in runs.groupby("shown", sort=True)}
    lines = []
    for name in sorted(set(of) - set(arms)):
        reason = "has runs of different data" if len(of[name]) > 1 else f"has {', '.join(of[name])} only"
        lines.append(f"{name}, which {reason}")
    for task in sorted(set(runs["task"]) - set(tasks)):
        if lack := [name for name in arms if task not in of[name]]:
            lines.append(f"{task}, which {' and '.join(lack)} {'lacks' if len(lack) == 1 else 'lack'}")
    return lines


def within_budget(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of arms that keep their budget on every task, and the names of the other arms."""
    off = sorted(set(runs["shown"][runs["off_budget"]]))
    return runs[~runs["shown"].isin(off)], off


def common_scores(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Scores (seeds, tasks) of every arm, cut to what all arms have; arms that mix data are left out."""
    tables = {
        str(name): arm.pivot(index="seed", columns="task", values="score")
        for name, arm in runs.groupby("shown", sort=True)
        if not arm.duplicated(["task", "seed"]).any() and arm["task"].nunique() > 1
    }
    if len(tables) < 2:
        return {}
    tasks = sorted(set.intersection(*(set(table.columns) for table in tables.values())))
    whole = {name: table[tasks].dropna() for name, table in tables.items()}
    seeds = sorted(set.intersection(*(set(table.index) for table in whole.values())))
    return {name: table.loc[seeds] for name, table in whole.items()} if len(tasks) > 1 and seeds else {}


def mean_ranks(pool: SharedTasks) -> tuple[Friedman, float]:
    """Friedman's test over the tasks' means, and Nemenyi's critical difference at 0.05, for three arms or more."""
    means = np.stack([table.to_numpy(float).mean(axis=0) for table in pool.arms.values()], axis=1)  # (tasks, methods)
    return friedman(means), critical_difference(len(pool.arms), len(means))
