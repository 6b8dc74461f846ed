"""What a score costs: adapter parameters, time of a step, peak memory, size of the adapter's file, and ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table
from analysis.reading.arms import short_recipe
from analysis.sections.arms import start_to_end
from analysis.sections.paper_layouts import LAYOUTS
from analysis.sections.shared_tasks import complete, within_budget

if TYPE_CHECKING:
    import pandas as pd
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.output.figure import _file, _looks
from analysis.output.section import Section

if TYPE_CHECKING:
    import pandas as pd


PLACE = ["task", "model", "protocol", "recipe"]


def points_of(compared: Table) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """For every task, model, protocol and recipe: where that is, and its arms with mean score and costs.

    Args:
        compared: from `analysis.sections.comparison.comparison`.
    """
    arms = compared.frame[compared.frame["method"] != "majority"]
    return [
        (dict(zip(PLACE, key, strict=True)), cell.reset_index(drop=True))
        for key, cell in arms.groupby(PLACE, sort=True)
        if len(cell) > 1
    ]


def suite_points(runs: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame, list[str], list[str]]]:
    """For every suite, model, protocol and recipe: where, its arms with mean score and costs, the tasks, arms left out.

    Only tasks and seeds that every arm has are in the means, so that all points are of the same tasks; a place with one
    such task is left out, and so are arms that are off their budget on any task, which are named. The score's standard
    deviation is over seeds, of a seed's mean over tasks.

    Args:
        runs: from `load_runs`.
    """
    import pandas as pd

    suites = [_suite(task, settings) for task, settings in zip(runs["task"], runs["settings"], strict=True)]
    known = runs.assign(suite=suites, recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    known["shown"] = known["row_name"] + "\t" + known["budget"]
    found = []
    for key, cell in known.groupby(["suite", *PLACE[1:]], sort=True):
        cell, off = within_budget(cell)
        arms = complete(cell)
        if not key[0] or len(arms) < 2:
            continue
        tasks, seeds = (list(axis) for axis in (next(iter(arms.values())).columns, next(iter(arms.values())).index))
        rows = []
        for name, scores in arms.items():
            own = cell[(cell["shown"] == name) & cell["task"].isin(tasks) & cell["seed"].isin(seeds)]
            by_seed = scores.mean(axis=1)
            costs = {column: own[column].mean() for column in ("params_final", "peak_memory_mib", "adapter_bytes")}
            costs["step_seconds_median"] = own.groupby("task")["step_seconds"].median().mean()
            shown, budget = own[["row_name", "budget"]].iloc[0]
            row = {"shown": shown, "budget": budget, "metric": f"Mean score over {len(tasks)} tasks", "n": len(seeds)}
            rows.append(row | {"score_mean": by_seed.mean(), "score_sd": by_seed.std(ddof=1)} | costs)
        place = dict(zip(["suite", *PLACE[1:]], key, strict=True))
        found.append((place, pd.DataFrame(rows), tasks, [name.replace("\t", " at ") for name in off]))
    return found


def _suite(task: str, settings: dict[str, Any]) -> str:
    """The suite that the run's task names, else the paper's table that has it; empty where neither is."""
    given = settings.get("task")
    named = given.get("suite") if isinstance(given, dict) else None
    return str(named or next((layout.suite for layout in LAYOUTS if task in layout.tasks()), ""))


def cost_table(compared: Table) -> Table:
    """Score, ranks and parameters at the start, at the peak and at the end, time, memory and file of every arm.

    Args:
        compared: from `analysis.sections.comparison.comparison`.
    """
    arms = compared.frame[compared.frame["method"] != "majority"]
    sizes = [f"{count}_{when}" for count in ("rank_sum", "params") for when in ("initial", "peak", "final")]
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "n", "Score", "Rank sum", "Parameters",
        "Head", "Other trained", "Step ms", "Training s", "Memory MiB", "Adapter KiB",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"], str(r["n"]), f"{r['score_mean']:.2f}"]
        + [start_to_end(r, count) for count in ("rank_sum", "params")]
        + [_shown(r[size]) for size in ("head_params", "other_params")]
        + [_shown(1000 * r["step_seconds_median"]), _shown(r["train_seconds_median"]), _shown(r["peak_memory_mib"])]
        + [_shown(r["adapter_bytes"] / 1024)]
        for r in arms.to_dict("records")
    ]
    notes = [
        "Means over seeds; step and training time are medians. Rank sum and parameters are start → end where they "
        "differ, with the peak where it was above both; parameters are the adapter's, head and other trained parts "
        "apart. Memory is the accelerator's and empty on a CPU.",
        "Times of runs on other machines or thread counts do not compare; the comparison table names such runs.",
    ]
    kept = ["task", "protocol", "model", "recipe", "budget", "shown", "n", "score_mean", *sizes]
    kept += ["head_params", "other_params"]
    kept += ["step_seconds_median", "train_seconds_median", "peak_memory_mib", "adapter_bytes"]
    return Table("What every arm costs.", columns, rows, notes, arms[kept].reset_index(drop=True))


def _shown(value: Any) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"


def _cost(runs: pd.DataFrame, table: Table, folder: Path | None) -> list[Section]:
    """The table of costs, and score against each of them, by task and over a suite; no folder draws nothing."""
    from analysis.sections.cost import cost_table, points_of, suite_points

    drawn: dict[Path, str] = {}

    if folder is not None:
        from analysis.output.figure import source_of
        from analysis.sections.cost_figures import draw_pareto

        for place, arms, tasks, off in suite_points(runs):
            title = f"Mean score against cost: {_words(place)}"
            data = source_of(sorted(set(runs["citation"][runs["task"].isin(tasks)]) - {""}))
            paths = draw_pareto(arms, folder / f"pareto_mean_{_file(place.values())}", title, data, _looks(table))
            caption = f"{title}. Tasks: {', '.join(tasks)}"
            caption += f". Off the budget and left out: {', '.join(off)}" if off else ""
            drawn |= {svg: caption for svg in paths if svg.suffix == ".svg"}
        for place, arms in points_of(table):
            title = f"Score against cost: {_words(place)}"
            data = str(arms["citation"].iloc[0])
            paths = draw_pareto(arms, folder / f"pareto_{_file(place.values())}", title, data, _looks(table))
            drawn |= {svg: title for svg in paths if svg.suffix == ".svg"}
    return [Section("Cost", {"cost": cost_table(table)}, drawn)]


def _words(place: Mapping[str, str]) -> str:
    return ", ".join(part for part in place.values() if part)
