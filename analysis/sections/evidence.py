"""What the runs of one declared comparison hold: paired scores, failures, sizes and settings of both arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading.arms import name_of
from analysis.reading.curves import load_curve, stability_of
from analysis.sections.arms import TUNED, listed, training_differences
from analysis.sections.items import Answers
from analysis.stats.seeds import Array
from analysis.stats.verdicts import Evidence
from experiments.store.name import short_id

Key = tuple[str, str, int]  # arm, task, seed


@dataclass(frozen=True)
class Runs:
    """The runs of the two arms of a contrast at one budget.

    Attributes:
        arm, base: as the study names them.
        budget: of both.
        tasks, seeds: that are planned.
        present: the finished runs; lost: how the failed ones ended; open: those that are still to come.
    """

    arm: str
    base: str
    budget: str
    tasks: list[str]
    seeds: list[int]
    present: dict[Key, dict[str, Any]]
    lost: dict[Key, str]
    open: list[Key]

    def of(self, arm: str, task: str | None = None) -> list[dict[str, Any]]:
        """The finished runs of an arm."""
        return [run for (name, at, _), run in self.present.items() if name == arm and task in (None, at)]

    def name(self, arm: str) -> str:
        """The arm's method and variant; the study's name for an arm without a run."""
        runs = self.of(arm)
        return name_of(runs[0]) if runs else arm

    def scores(self, arm: str, failed: Mapping[str, float] | None = None) -> Array:
        """(seeds, tasks); NaN for a run without a score, or the task's score in `failed` for one that failed."""

        def score(key: Key) -> float:
            if key in self.present:
                return float(self.present[key]["score"])
            return failed[key[1]] if failed is not None and key in self.lost else math.nan

        return np.array([[score((arm, task, seed)) for task in self.tasks] for seed in self.seeds])

    def constant(self) -> dict[str, float]:
        """The score of the constant answer on each task; 0 where none is stored."""
        of_tasks = {task: [run for (_, at, _), run in self.present.items() if at == task] for task in self.tasks}
        found = {task: [run["majority"] for run in runs] for task, runs in of_tasks.items()}
        return {task: values[0] if values and not math.isnan(values[0]) else 0.0 for task, values in found.items()}

    @property
    def gaps(self) -> Array:
        return self.scores(self.arm) - self.scores(self.base)

    @property
    def whole(self) -> list[int]:
        """The seeds that both arms have on every task."""
        return [seed for seed, row in zip(self.seeds, self.gaps, strict=True) if not np.isnan(row).any()]

    def evidence(self) -> Evidence | None:
        """For the tests; None while a run is open, or where no seed is whole."""
        if self.open or not self.whole:
            return None
        constant = self.constant()
        worst = self.scores(self.arm, constant) - self.scores(self.base, constant) if self.lost else None
        floor = np.array([constant[task] for task in self.tasks])
        drops = np.stack([np.nanmean(self.scores(arm), axis=0) - floor for arm in (self.arm, self.base)])
        return Evidence(self.gaps, worst, drops)

    def failures(self, arm: str) -> Counter[str]:
        """How many runs of an arm failed in which way."""
        return Counter(ending for (name, _, _), ending in self.lost.items() if name == arm)

    def sizes(self, count: str = "params_final") -> dict[str, tuple[float, float]]:
        """Mean parameters of the arm and the baseline by task, where both have a run."""
        sides = {task: [[run[count] for run in self.of(a, task)] for a in (self.arm, self.base)] for task in self.tasks}
        return {task: (float(np.mean(a)), float(np.mean(b))) for task, (a, b) in sides.items() if a and b}

    def rates(self, arm: str) -> dict[str, list[float]]:
        """The learning rates of an arm by task."""
        found = {task: {lr for run in self.of(arm, task) if (lr := rate(run)) is not None} for task in self.tasks}
        return {task: sorted(values) for task, values in found.items() if values}

    def items(self, answers: Answers) -> dict[str, Array | None]:
        """Points by task, (seeds, items), 2 of both or more; None where scores are no shares of items that are read."""
        tables: dict[str, Array | None] = {}
        for task in self.tasks:
            pairs = [(self.present[self.arm, task, seed], self.present[self.base, task, seed]) for seed in self.whole]
            table = answers.differences(pairs)
            tables[task] = table if table is not None and min(table.shape) > 1 else None
        return tables


def collect(
    part: pd.DataFrame, done: Mapping[str, Any], failed: Mapping[str, str], pair: tuple[str, str], budget: str
) -> Runs:
    """The runs of one comparison.

    Args:
        part: the study's cells of its confirmatory part.
        done: finished runs by id; failed: how the failed ones ended, by short id.
        pair, budget: the comparison.
    """
    at = part[(part["budget"] == budget) & part["arm"].isin(pair)]
    ids = {(c["arm"], c["task"], int(c["seed"])): c["id"] for c in at.to_dict("records")}
    lost = {k: failed[short_id(run)] for k, run in ids.items() if run and run not in done and short_id(run) in failed}
    return Runs(
        *pair, budget, sorted(set(at["task"])), sorted({int(seed) for seed in at["seed"]}),
        {key: done[run] for key, run in ids.items() if run in done}, lost,
        [key for key, run in ids.items() if run not in done and key not in lost],
    )  # fmt: skip


def rate(run: Mapping[str, Any]) -> float | None:
    """The learning rate of a run, None where its settings name none."""
    value = run["settings"].get("trainer", {}).get("lr")
    return float(value) if isinstance(value, int | float) else None


def no_claim(present: Sequence[dict[str, Any]]) -> str:
    """The reasons why these runs support no claim, or ""."""
    reasons = []
    recipes = sorted({run["recipe"] or "none" for run in present if not run["recipe"].startswith("matched")})
    if recipes:
        reasons.append(f"recipe {', '.join(recipes)} is not matched")
    if any(not run["verified"] for run in present):
        reasons.append("the data is not the official one")
    if any(run["off_budget"] for run in present):
        reasons.append("an arm is off its budget")
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for run in present:
        by_task.setdefault(run["task"], []).append(run)
    unlike: dict[str, dict[str, None]] = {}  # setting: its values, in order
    for of_task in by_task.values():
        for key, values in training_differences(run["settings"] for run in of_task).items():
            unlike.setdefault(key, {}).update(dict.fromkeys(values))
    if untuned := {key: list(values) for key, values in unlike.items() if key not in TUNED}:
        reasons.append(f"the arms were not trained alike ({listed(untuned)})")
    if any(len({run["fingerprint"] for run in of_task}) > 1 for of_task in by_task.values()):
        reasons.append("the arms saw different data")
    return "; ".join(reasons)


def unstable(run: Mapping[str, Any]) -> bool | None:
    """Whether a run trained above the loss of guessing for long; None where it logged no losses."""
    curve = load_curve(run)
    return stability_of(run, curve).unstable if curve.loss else None


@dataclass(frozen=True)
class Unstable:
    """How many of an arm's runs on a task, at a learning rate, are unstable."""

    task: str
    name: str
    lr: str
    wild: int
    of: int

    @property
    def most(self) -> bool:
        """Whether more than half are."""
        return 2 * self.wild > self.of

    @property
    def reason(self) -> str:
        """Why the arm supports no claim where most are."""
        return (
            f"{self.wild} of {self.of} runs of {self.name} on {self.task} are unstable at a learning rate of {self.lr}"
        )


def unstable_arms(present: Sequence[dict[str, Any]]) -> list[Unstable]:
    """The arms that have unstable runs, task by task."""
    arms: dict[tuple[str, str, str], list[bool]] = {}
    for run in present:
        if (wild := unstable(run)) is not None:
            key = (run["task"], name_of(run), f"{rate(run) or 0:g}")
            arms.setdefault(key, []).append(wild)
    return [Unstable(*key, sum(runs), len(runs)) for key, runs in sorted(arms.items()) if any(runs)]
