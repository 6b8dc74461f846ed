"""What a score costs: adapter parameters, time of a step, peak memory, size of the adapter's file, and ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.output.figure import file_name, source_of
from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.stored import Stored
from analysis.sections.arms import AT_ONCE, named_across_tasks, start_to_end, timed_apart
from analysis.sections.charts import cost_charts, looks_of
from analysis.sections.comparison import REFERENCES, compared
from analysis.sections.cost_figures import draw_pareto
from analysis.sections.paper_layouts import LAYOUTS
from analysis.sections.shared_tasks import common_scores, key_label, within_budget
from analysis.stats.seeds import summary

FIGURE_KEYS = ["task", "model", "protocol", "recipe"]  # one figure each, over all budgets
SUITE_KEYS = ["suite", "model", "protocol", "recipe"]


class SuiteCosts(NamedTuple):
    """Arms of one suite, model, protocol and recipe, over the tasks and seeds that all of them have.

    Attributes:
        key: suite, model, protocol and recipe.
        arms: a row per arm and budget with its mean score and costs.
        tasks: in the means.
        off: names of arms off their budget, which are left out.
    """

    key: dict[str, str]
    arms: pd.DataFrame
    tasks: list[str]
    off: list[str]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of costs, and score against each of them, by task and over a suite."""
    table = compared(stored)
    section = Section("Cost", {"cost": cost_table(table)})
    citations = stored.runs.groupby("task")["citation"].agg(set)
    looks = looks_of(stored)
    for suite in suite_costs(stored.runs):
        title = f"Mean score against cost: {key_label(suite.key)}"
        data = source_of(sorted(set().union(*citations[suite.tasks]) - {""}))
        stem = f"pareto_mean_{file_name(suite.key.values())}"
        caption = f"{title}. Tasks: {', '.join(suite.tasks)}"
        caption += f". Off the budget and left out: {', '.join(suite.off)}" if suite.off else ""
        drawn = draw_pareto(suite.arms, looks, folder / stem, title, data) if folder is not None else []
        section.charts += cost_charts(suite.arms, looks, caption, dict.fromkeys(drawn[-1:], title))
    for key, arms in task_costs(table):
        title = f"Score against cost: {key_label(key)}"
        path, data = f"pareto_{file_name(key.values())}", str(arms["citation"].iloc[0])
        drawn = draw_pareto(arms, looks, folder / path, title, data) if folder is not None else []
        section.charts += cost_charts(arms, looks, title, dict.fromkeys(drawn[-1:], title))
    return [section]


def _arms(compared: Table) -> pd.DataFrame:
    return compared.frame[~compared.frame["method"].isin(REFERENCES)]


def task_costs(compared: Table) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Arms with mean score and costs, by task, model, protocol and recipe, if there are two or more."""
    return [
        (dict(zip(FIGURE_KEYS, key, strict=True)), arms.reset_index(drop=True))
        for key, arms in _arms(compared).groupby(FIGURE_KEYS, sort=True)
        if len(arms) > 1
    ]


def suite_costs(runs: pd.DataFrame) -> list[SuiteCosts]:
    """Arms with mean score and costs over the tasks of a suite.

    Only tasks and seeds that every arm has enter the means, so that all points are of the same tasks. A suite with one
    such task is left out, and so are arms that are off their budget on any task. The score's standard deviation is over
    seeds, of a seed's mean over tasks.
    """
    suites = [_suite(task, settings) for task, settings in zip(runs["task"], runs["settings"], strict=True)]
    rows = named_across_tasks(runs).assign(suite=suites, shown=runs["row_name"] + "\t" + runs["budget"])
    costs = []
    for key, group in rows.groupby(SUITE_KEYS, sort=True):
        group, off = within_budget(group)
        if any(timed_apart(cell) for _, cell in group.groupby(["task", "budget"])):
            group = group.assign(step_seconds=math.nan)
        scores = common_scores(group)
        if not key[0] or len(scores) < 2:
            continue
        arms = pd.DataFrame([_suite_arm(group[group["shown"] == name], table) for name, table in scores.items()])
        tasks = list(next(iter(scores.values())).columns)
        names = [name.replace("\t", " at ") for name in off]
        costs.append(SuiteCosts(dict(zip(SUITE_KEYS, key, strict=True)), arms, tasks, names))
    return costs


def _suite_arm(runs: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Mean score and costs of one arm over the tasks and seeds of its scores (seeds, tasks)."""
    runs = runs[runs["task"].isin(scores.columns) & runs["seed"].isin(scores.index)]
    name, method, budget = runs[["row_name", "method", "budget"]].iloc[0]
    by_seed = summary(scores.mean(axis=1))
    return {
        "shown": name, "method": method, "budget": budget, "n": len(scores),
        "metric": f"Mean score over {len(scores.columns)} tasks",
        "score_mean": by_seed.mean, "score_sd": by_seed.sd, "score_low": by_seed.low, "score_high": by_seed.high,
        **{column: runs[column].mean() for column in ("params_final", "peak_memory_mib", "adapter_bytes")},
        "step_seconds_median": runs.groupby("task")["step_seconds"].median().mean(),
    }  # fmt: skip


def _suite(task: str, settings: dict[str, Any]) -> str:
    """The suite that the task's settings name, or the paper's table that contains the task, or ""."""
    config = settings.get("task")
    named = config.get("suite") if isinstance(config, dict) else None
    return str(named or next((layout.suite for layout in LAYOUTS if task in layout.tasks()), ""))


def cost_table(compared: Table) -> Table:
    """Score, ranks and parameters at the start, at the peak and at the end, time, memory and file of every arm."""
    arms = _arms(compared)
    sizes = [f"{count}_{when}" for count in ("rank_sum", "params") for when in ("initial", "peak", "final")]
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "n", "Score", "Rank sum", "Parameters",
        "Head", "Other trained", "Step ms", "Training s", "Memory MiB", "Adapter KiB",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"], str(r["n"]), f"{r['score_mean']:.2f}"]
        + [start_to_end(r, count) for count in ("rank_sum", "params")]
        + [_number(r[size]) for size in ("head_params", "other_params")]
        + [_number(1000 * r["step_seconds_median"]), _number(r["train_seconds_median"]), _number(r["peak_memory_mib"])]
        + [_number(r["adapter_bytes"] / 1024)]
        for r in arms.to_dict("records")
    ]
    notes = [
        "Means over seeds; step and training time are medians. Rank sum and parameters are start → end where they "
        "differ, with the peak where it was above both; parameters are the adapter's, head and other trained parts "
        "apart. Memory is the accelerator's and empty on a CPU.",
        "Times of runs on other machines or thread counts do not compare; the comparison table names such runs.",
    ]
    if any("at once" in cell for row in rows for cell in row):
        notes.append(AT_ONCE)
    if "data_pass_seconds_median" in arms:
        passes = arms.dropna(subset=["data_pass_seconds_median"])
        arms_read = [f"{r['shown']} {r['data_pass_seconds_median']:.1f} s" for r in passes.to_dict("records")]
        notes.append(
            "Training time includes what these methods read of the training items before the first step, for ranks, a "
            f"start or a dev batch: {', '.join(dict.fromkeys(arms_read))}."
        )
    names = [
        "task", "protocol", "model", "recipe", "budget", "shown", "n", "score_mean", *sizes, "head_params",
        "other_params", "step_seconds_median", "train_seconds_median", "peak_memory_mib", "adapter_bytes",
    ]  # fmt: skip
    return Table("What every arm costs.", columns, rows, notes, arms[names].reset_index(drop=True))


def _number(value: Any) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
