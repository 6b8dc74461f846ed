"""Methods x tasks x budgets over many stores: a row for each method at each place, a column for each budget."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.output.table import Table, mean_sd, signed, signed_range
from analysis.reading.result_row import digest
from analysis.reading.stored import Stored
from analysis.sections.arms import LEAST_FOR_INTERVAL, budget_order, method_order, named_across_tasks, place_of
from analysis.stats.seeds import summary

PLACE = ["task", "model", "protocol", "steps", "place"]


def grid(stored: Stored) -> Table:
    """Every arm's score at its place, with the paired difference to the baseline of the same place and budget."""
    runs = named_across_tasks(stored.runs)
    prints = zip(runs["settings"], runs["fingerprint"], strict=True)
    runs = runs.assign(place=[digest([place_of(settings), data]) for settings, data in prints])
    tried = stored.tuning.groupby(["task", "method"]).size()
    budgets = sorted(set(runs["budget"]), key=budget_order)
    rows = []
    for _, at in runs.groupby(PLACE):
        for _, arm in sorted(at.groupby("shown"), key=lambda item: (method_order(item[1]["method"].iloc[0]), item[0])):
            spent = int(tried.get((at["task"].iloc[0], arm["method"].iloc[0]), 0))
            rows.append(_row(arm, at, budgets, stored.baseline, spent))
    columns = ["Place", "Method", *budgets, "Learning rate", "Tuning runs", "Flags"]
    frame = runs.groupby([*PLACE, "shown", "budget"])["score"].agg(["size", "mean", "std"]).reset_index()
    return Table("Contributed runs, methods by task and budget.", columns, rows, _notes(stored.baseline), frame)


def _row(arm: pd.DataFrame, at: pd.DataFrame, budgets: list[str], baseline: str, spent: int) -> list[str]:
    first = arm.iloc[0]
    where = f"{first['task']}, {first['model']}, {first['protocol']}, {first['steps']} steps ({first['place'][:6]})"
    base = at[at["method"] == baseline]
    cells = [_cell(arm[arm["budget"] == budget], base[base["budget"] == budget]) for budget in budgets]
    rates = sorted({s["trainer"]["lr"] for s in arm["settings"] if "lr" in s.get("trainer", {})})
    alone = "no partner yet" if at["arm"].nunique() == 1 else ""
    return [where, first["shown"], *cells, ", ".join(f"{rate:g}" for rate in rates), str(spent or ""), alone]


def _notes(baseline: str) -> list[str]:
    return [
        "A place is data, model, protocol and every setting but the method, its budget, learning rate and weight "
        "decay; six digits stand for it. Rows of one place compare, rows of two places do not.",
        f"Points on the reported split: mean ± standard deviation over n seeds. Δ: paired difference to {baseline} at "
        f"the same place and budget; from {LEAST_FOR_INTERVAL} seeds on with a 95 % t interval over seeds, which is no "
        "test.",
        "Tuning runs: runs of protocol=tune that the contributions spent on this task and method.",
    ]


def _cell(repeats: pd.DataFrame, base: pd.DataFrame) -> str:
    if not len(repeats):
        return ""
    text = f"{mean_sd(repeats['score'].mean(), repeats['score'].std())} (n={len(repeats)})"
    if base["arm"].nunique() != 1 or base["arm"].iloc[0] == repeats["arm"].iloc[0] or repeats["arm"].nunique() != 1:
        return text
    paired = repeats.set_index("seed")["score"] - base.set_index("seed")["score"]
    gaps: Any = paired.dropna().to_numpy()
    if not len(gaps):
        return text
    if len(gaps) < LEAST_FOR_INTERVAL:
        return f"{text}, Δ {', '.join(map(signed, gaps))}"
    mean = summary(gaps)
    return f"{text}, Δ {signed(mean.mean)}{signed_range(mean.low, mean.high)}"
