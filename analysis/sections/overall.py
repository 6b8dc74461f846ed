"""Methods over all tasks that they share: pooled means, robust means, and ranks. Descriptive, no source of claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table, p_equation
from analysis.reading.stored import Stored
from analysis.sections import overall_figures
from analysis.sections.charts import looks_of
from analysis.sections.shared_tasks import (
    LEAST_SEEDS_FOR_BOOTSTRAP,
    SHARED_KEYS,
    SharedTasks,
    mean_ranks,
    shared_tasks,
    unshared,
)  # fmt: skip
from analysis.stats.seeds import win_tie_loss
from analysis.stats.tasks import cliques, interquartile_mean, probability_of_improvement, stratified_bootstrap_t


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table over all tasks, and ranks and profiles of every pool of tasks that is large enough for them."""
    pools = shared_tasks(stored.runs)
    table, lines = overall(pools, stored.baseline), unshared(stored.runs)
    if table is None:
        return [Section("Over all tasks", lines=lines)] if lines else []
    section = Section("Over all tasks", {"overall": table}, lines=lines)
    if folder is not None:
        for pool in pools:
            _draw(pool, stored, folder, section)
    return [section]


def _draw(pool: SharedTasks, stored: Stored, folder: Path, section: Section) -> None:
    """Adds the pool's figures to the section, or the reasons why there are none."""
    stem, size = file_name(pool.key.values()), f"{len(pool.tasks)} tasks: {pool.label}"
    if reason := overall_figures.why_not_ranks(pool):
        section.lines.append(reason)
    else:
        title = f"Mean ranks over {size}"
        section.figures[overall_figures.draw_ranks(pool, folder / f"mean_ranks_{stem}", title)[-1]] = title
    if reason := overall_figures.why_not_profiles(pool):
        section.lines.append(reason)
    else:
        title = f"Performance profiles over {size}"
        path, looks = folder / f"profiles_{stem}", looks_of(stored)
        section.figures[overall_figures.draw_profiles(pool, stored.baseline, looks, path, title)[-1]] = title


def overall(pools: list[SharedTasks], baseline: str = "lora", level: float = 0.95) -> Table | None:
    """The arms of every pool.

    Args:
        pools: from `shared_tasks`.
        baseline: the method that wins and chances of improvement are counted against.
        level: of the intervals.
    """
    if not pools:
        return None
    records = [record for pool in pools for record in _records(pool, baseline, level)]
    columns = [
        "Model", "Protocol", "Recipe", "Budget", "Method", "Tasks", "n", "Mean", "Middle half", "P(above)", "W/T/L",
    ]  # fmt: skip
    rows = [
        [*(str(r[k]) for k in SHARED_KEYS), r["shown"], str(r["tasks"]), str(r["n"]),
         f"{r['mean']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if "low" in r else ""), f"{r['iqm']:.2f}",
         f"{r['above']:.2f}" if "above" in r else "", r.get("wtl", "")]
        for r in records
    ]  # fmt: skip
    notes = [
        "Over the tasks and seeds that all arms of a row's place share. Mean: over tasks, with a stratified "
        f"bootstrap-t interval ({level:.0%}, from {LEAST_SEEDS_FOR_BOOTSTRAP} seeds on). Middle half: mean of that "
        "half of all runs.",
        f"P(above): chance that a run scores above one of {baseline} on the same task. W/T/L: tasks with a higher, "
        "equal and lower mean. All descriptive: no test of a claim, and nothing reaches beyond these tasks.",
    ]
    for pool in pools:
        if pool.off:
            left_out = ", ".join(pool.off)
            notes.append(f"{pool.label}: off the budget and outside of all means, ranks and figures: {left_out}.")
        if pool.lacking:
            notes.append(f"{pool.label}: left out: {'; '.join(pool.lacking)}.")
        if len(pool.arms) >= 3:
            notes.append(_ranks(pool))
    return Table("Over all tasks.", columns, rows, notes, pd.DataFrame(records))


def _records(pool: SharedTasks, baseline: str, level: float) -> list[dict[str, Any]]:
    base = pool.baseline_arm(baseline)
    records = []
    for name, table in pool.arms.items():
        x = table.to_numpy(float)
        record: dict[str, Any] = pool.key | {"shown": name, "tasks": x.shape[1], "n": x.shape[0]}
        record |= {"mean": float(x.mean()), "iqm": interquartile_mean(x)}
        if x.shape[0] >= LEAST_SEEDS_FOR_BOOTSTRAP:
            record["low"], record["high"] = stratified_bootstrap_t(x, np.random.default_rng(0), level, 1_999)
        if base is not None and name != base:
            y = pool.arms[base].to_numpy(float)
            record["above"] = probability_of_improvement(x, y)
            record["wtl"] = "/".join(map(str, win_tie_loss(x.mean(axis=0) - y.mean(axis=0))))
        records.append(record)
    return records


def _ranks(pool: SharedTasks) -> str:
    """Friedman's test over tasks, and which arms its critical difference does not separate."""
    names = list(pool.arms)
    test, bound = mean_ranks(pool)
    ranks = ", ".join(f"{names[i]} {test.mean_ranks[i]:.2f}" for i in np.argsort(test.mean_ranks, kind="stable"))
    groups = "; ".join(", ".join(names[i] for i in group) for group in cliques(test.mean_ranks, bound)) or "none"
    return (
        f"{pool.label}: mean ranks over {len(pool.tasks)} tasks (1 is highest) {ranks}; Friedman "
        f"{p_equation(test.p)}, critical difference {bound:.2f} (Nemenyi, 0.05), not told apart: {groups}."
    )
