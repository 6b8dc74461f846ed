"""Our runs in the rows and cells of a paper's table: means, missing runs, and the command that makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.reading.result_row import NO_BUDGET
from analysis.reading.settings import command
from analysis.sections.arms import budget_order, method_order
from analysis.sections.paper_layouts import Column
from analysis.stats.seeds import summary

ROW_KEYS = ["shown", "budget", "protocol", "recipe"]


def table_rows(runs: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Key and runs (of `named_across_tasks`) of every row, by protocol, recipe, budget and method."""

    def order(row: tuple[dict[str, Any], pd.DataFrame]) -> tuple[Any, ...]:
        key, arm = row
        method = arm["method"].iloc[0]
        return key["protocol"], key["recipe"], *budget_order(key["budget"]), method_order(method), key["shown"]

    rows = [(dict(zip(ROW_KEYS, key, strict=True)), arm) for key, arm in runs.groupby(ROW_KEYS, sort=False)]
    return sorted(rows, key=order)


class PaperCell:
    """Our runs of one row in one column.

    Args:
        arm: runs of the row.
        runs: runs of the whole table.
        column: of the table.
        seeds: that any arm has under this protocol. All are expected on every task of the table, but an arm with turned
            knobs is expected only on the tasks where it was run.
        notes: gets a line for everything missing or mixed.
    """

    def __init__(
        self, arm: pd.DataFrame, runs: pd.DataFrame, column: Column, seeds: list[int], notes: list[str]
    ) -> None:
        self.column, self.seeds = column, seeds
        self.scores: list[dict[int, float]] = []  # of every part, by seed
        self.mixed = False
        self.missing: dict[str, list[int]] = {}
        self.splits = {}
        for task, metric in column.parts:
            cell = arm[arm["task"] == task]
            if cell[["arm", "fingerprint"]].drop_duplicates().shape[0] > 1:
                self.mixed = True
                notes.append(
                    f"{arm['shown'].iloc[0]}, {task}: runs on different data are not averaged; filter the stores."
                )
            values = {int(s): points(m, metric) for s, m in zip(cell["seed"], cell["metrics"], strict=True)}
            self.scores.append({seed: value for seed, value in values.items() if value is not None})
            self.splits[task] = ", ".join(sorted(set(cell["split"])))
            lacking = [seed for seed in seeds if seed not in set(cell["seed"])]
            expected = len(cell) or (task in set(runs["task"]) and "[" not in arm["shown"].iloc[0])
            if lacking and expected and task not in self.missing:
                self.missing[task] = lacking
                notes.append(_missing_note(arm, runs, task, lacking))

    def by_seed(self) -> dict[int, float]:
        """The column's value of every seed that has all parts."""
        if self.mixed or not all(self.scores):
            return {}
        common = set.intersection(*(set(values) for values in self.scores))
        return {seed: sum(v[seed] for v in self.scores) / len(self.scores) for seed in common}

    def text(self) -> str:
        """87.14 ± 0.31, 90.1/90.3 ± 0.2/0.1, or the number of missing runs."""
        if self.mixed:
            return "mixed"
        lacking = sum(map(len, self.missing.values()))
        if not all(self.scores):
            return f"{lacking} missing" if lacking else ""
        parts = [summary(list(values.values())) for values in self.scores]
        text = "/".join(f"{math.fsum(values.values()) / len(values):.2f}" for values in self.scores)
        if not any(math.isnan(part.sd) for part in parts):
            text += " ± " + "/".join(f"{part.sd:.2f}" for part in parts)
        return text + (f" ({lacking} missing)" if lacking else "")

    def records(self, key: dict[str, Any]) -> list[dict[str, Any]]:
        """Numbers for the CSV, one per part that has any."""
        rows = []
        for (task, metric), values in zip(self.column.parts, self.scores, strict=True):
            if not values and task not in self.missing:
                continue
            s = summary(list(values.values())) if values and not self.mixed else None
            rows.append(
                {"row": "ours", **key, "task": task, "metric": metric, "split": self.splits[task], "n": len(values)}
                | ({"mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high} if s else {})
                | {"seeds": " ".join(map(str, sorted(values))), "missing": len(self.missing.get(task, []))}
            )
        return rows


def points(metrics: Mapping[str, float], metric: str) -> float | None:
    """A metric of a run; "correlation" is the mean of Pearson and Spearman."""
    if metric == "correlation":
        both = [metrics.get("pearson"), metrics.get("spearman")]
        return None if both[0] is None or both[1] is None else (both[0] + both[1]) / 2
    return metrics.get(metric)


def _missing_note(arm: pd.DataFrame, runs: pd.DataFrame, task: str, lacking: list[int]) -> str:
    """How many runs a cell lacks, and the command, with the settings of the task's other runs."""
    first = arm.iloc[0]
    of_task = runs[runs["task"] == task]
    candidates = (arm[arm["task"] == task], of_task[of_task["protocol"] == first["protocol"]], of_task)
    example = next(rows for rows in candidates if len(rows))
    settings = {**example["settings"].iloc[0], "protocol": first["settings"].get("protocol")}
    settings["method"] = first["settings"]["method"]
    typed = command(settings, first["budget"], lacking)
    parts = (first["shown"], first["budget"], task, first["protocol"])
    label = ", ".join(part for part in parts if part and part != NO_BUDGET)
    return f"Missing: {len(lacking)} runs of {label}; make them with: {typed}"
