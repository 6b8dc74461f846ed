"""Our numbers beside published ones, with a difference only if both measure the same thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.output.table import Table, signed, signed_range
from analysis.sections.arms import LEAST_FOR_INTERVAL, named_across_tasks
from analysis.sections.paper_cells import points, table_rows
from analysis.sections.published_numbers import Published, published
from analysis.stats.seeds import summary


def against_published(runs: pd.DataFrame, rows: Sequence[Published] | None = None) -> Table | None:
    """Compares our runs with every published number of the same method, model, task, metric and, if stated, budget.

    Args:
        rows: published ones; None means all.

    Returns:
        A table in which a difference stands only if budget and protocol are stated and match; None for no pair.
    """
    rows = published() if rows is None else rows
    if not len(runs):
        return None
    runs = named_across_tasks(runs[runs["model"].isin({row.model for row in rows})])
    records = []
    for row in rows:
        ours = runs[(runs["method"] == row.method) & (runs["model"] == row.model)]
        ours = ours[(ours["budget"] == row.budget) | (not row.budget)]
        for (task, metric), value in row.values.items():
            for key, arm in table_rows(ours[ours["task"] == task]):
                scores = [p for m in arm["metrics"] if (p := points(m, metric)) is not None]
                if scores and arm[["arm", "fingerprint"]].drop_duplicates().shape[0] == 1:
                    records.append(_pair(row, task, metric, value, arm, scores) | key)
    if not records:
        return None
    columns = ["Method", "Task", "Metric", "Budget", "Protocol", "n", "Ours", "Published", "Source", "Difference"]
    text = [
        [r["shown"], r["task"], r["metric"], r["budget"], r["protocol"], str(r["n"]), f"{r['mean']:.2f}",
         f"{r['published']:.2f}", r["source"], r["text"]]
        for r in records
    ]  # fmt: skip
    notes = [
        "A difference is shown only where method, model, task, budget and protocol match. Its 95 % t interval covers "
        "our seeds only, not those of the published number, and is no test.",
        "Training settings of a published number may differ from ours even where a difference is shown.",
    ]
    frame = pd.DataFrame(records).drop(columns="text")
    return Table("Our numbers beside published ones.", columns, text, notes, frame)


def _pair(
    row: Published, task: str, metric: str, value: float, arm: pd.DataFrame, scores: list[float]
) -> dict[str, Any]:
    s = summary(scores)
    record = {"task": task, "metric": metric, "n": s.n, "mean": s.mean, "published": value, "source": row.source}
    if reason := "; ".join(_obstacles(row, arm)):
        return record | {"comparable": False, "reason": reason, "text": f"not comparable: {reason}"}
    gap = s.mean - value
    record |= {"comparable": True, "difference": gap}
    if s.n < LEAST_FOR_INTERVAL:
        return record | {"text": f"{signed(gap)} (no interval below {LEAST_FOR_INTERVAL} seeds)"}
    low, high = s.low - value, s.high - value
    return record | {"low": low, "high": high, "text": signed(gap) + signed_range(low, high)}


def _obstacles(row: Published, arm: pd.DataFrame) -> Iterable[str]:
    """Why a published number and ours do not measure the same thing."""
    if not row.budget:
        yield "budget in ranks not stated"
    if not row.protocol:
        yield "protocol not stated"
    elif row.protocol != arm["protocol"].iloc[0]:
        yield f"protocol {row.protocol} there"
    if row.obstacle:
        yield row.obstacle
    if not arm["verified"].all():
        yield "our data is not the official one"
