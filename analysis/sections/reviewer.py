"""One table for a reviewer: what every arm scores beside all that it costs, tuning included."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, mean_sd
from analysis.reading.arms import CELL
from analysis.reading.stored import Stored
from analysis.sections.arms import budget_order, method_order, timed_apart
from analysis.stats.seeds import summary

NOTES = [
    "Score: mean over seeds and its 95 % t interval, from 3 seeds on. An empty cell was not recorded: older results "
    "lack operations, tokens and optimizer state, and a CPU has no accelerator memory.",
    "Memory: peak of the accelerator. Operations: matrix products, attention and convolutions of the forward and "
    "backward pass of the first batch, with the ranks at the end; counted, so they depend on no machine. Optimizer: "
    "moments and step counters at the end. Means over seeds.",
    "Training time and tokens a second (inputs without padding) are medians, and compare only on one machine without "
    "other work; they are withheld where arms were timed in different sessions.",
    "Tuning: hours of training and evaluation of the runs that chose this arm's learning rate, shared by its budgets. "
    "Empty for an arm that takes another arm's rate.",
]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of all finished runs."""
    return [Section("For reviewers: score and every cost", {"reviewer": reviewer_table(stored.runs, stored.tuning)})]


def reviewer_table(runs: pd.DataFrame, tuning: pd.DataFrame) -> Table:
    """A row for every arm.

    Args:
        runs: rows of `load_runs` with names.
        tuning: those of the tuning runs; may be empty.
    """
    hours = tuning_hours(tuning)
    records = []
    for _, cell in runs.groupby(CELL, sort=False):
        apart = timed_apart(cell)
        for _, arm in cell.groupby(["arm", "fingerprint"], sort=False):
            records.append(_record(arm, apart, hours.get(recipe_key(arm.iloc[0]), math.nan)))
    frame = pd.DataFrame(sorted(records, key=_order))
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "n", "Score", "Parameters", "Memory MiB", "GFLOP a step",
        "Training s", "Tokens/s", "Optimizer KiB", "Adapter KiB", "Tuning h",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"], str(r["n"]), _score(r)]
        + [_text(r["params"]), _text(r["peak_memory_mib"]), _text(r["step_flops"] / 1e9, 2)]
        + [_text(r["train_seconds"]), _text(r["tokens_per_second"])]
        + [_text(r["optimizer_bytes"] / 1024), _text(r["adapter_bytes"] / 1024), _text(r["tuning_hours"], 2)]
        for r in frame.to_dict("records")
    ]
    return Table("Score beside memory, operations, time, sizes and tuning.", columns, rows, NOTES, frame)


def tuning_hours(tuning: pd.DataFrame) -> dict[str, float]:
    """Hours of training and evaluation of the tuning runs, by `recipe_key`."""
    hours: dict[str, float] = {}
    for run in tuning.to_dict("records"):
        key = recipe_key(run)
        hours[key] = hours.get(key, 0.0) + (run["train_seconds"] + run["eval_seconds"]) / 3600
    return hours


def recipe_key(run: Any) -> str:
    """What a run shares with the trials that chose its learning rate: task, model, and all settings but that rate.

    The rank budget is left out, because rates may be tuned at one budget for all, and so is the run that gives a
    transplant its ranks, which was trained under the same protocol as the transplant.
    """
    settings = run["settings"]
    method = {k: v for k, v in settings.get("method", {}).items() if not k.startswith("ranks_from")}
    method["transplant"] = "ranks_from" in settings.get("method", {})
    trainer = {key: value for key, value in settings.get("trainer", {}).items() if key not in ("lr", "evaluations")}
    return json.dumps([run["task"], run["model"], method, trainer], sort_keys=True)


def _record(arm: pd.DataFrame, apart: bool, hours: float) -> dict[str, Any]:
    first, score = arm.iloc[0], summary(arm["score"])
    speed = (arm["train_tokens"] / arm["train_seconds"]).median()
    return (
        {key: first[key] for key in (*CELL, "method", "shown")}
        | {"n": score.n, "score_mean": score.mean, "score_low": score.low, "score_high": score.high}
        | {"params": arm["params_final"].mean()}
        | {name: arm[name].mean() for name in ("peak_memory_mib", "step_flops", "optimizer_bytes", "adapter_bytes")}
        | {"train_seconds": math.nan if apart else arm["train_seconds"].median()}
        | {"tokens_per_second": math.nan if apart else speed, "tuning_hours": hours}
    )


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    return (
        record["task"], record["protocol"], record["model"], record["recipe"], *budget_order(record["budget"]),
        method_order(record["method"]), record["shown"],
    )  # fmt: skip


def _score(record: dict[str, Any]) -> str:
    if math.isnan(record["score_low"]):
        return mean_sd(record["score_mean"], math.nan)
    return f"{record['score_mean']:.2f} [{record['score_low']:.2f}, {record['score_high']:.2f}]"


def _text(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"
