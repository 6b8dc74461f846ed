"""Scores by rank, for methods that train one model for several ranks (DyLoRA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, mean_sd
from analysis.reading.arms import CELL
from analysis.reading.stored import Stored
from analysis.stats.seeds import summary


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """A table of score by rank; nothing without such runs."""
    runs = stored.runs[stored.runs["by_rank"].map(bool)] if len(stored.runs) else stored.runs
    if not len(runs):
        return []
    return [Section("Scores by rank", {"scores_by_rank": by_rank(runs)})]


def by_rank(runs: pd.DataFrame) -> Table:
    """Mean and standard deviation over seeds of every arm, task and rank.

    Args:
        runs: rows of `load_runs` whose `by_rank` is not empty.
    """
    records: list[dict[str, Any]] = []
    for key, arm in runs.groupby([*CELL, "shown"], sort=True):
        for rank in sorted(set().union(*arm["by_rank"])):
            scores = [scores[rank] for scores in arm["by_rank"] if rank in scores]
            s = summary(scores)
            cell = dict(zip([*CELL, "shown"], key, strict=True))
            records.append(cell | {"metric": arm.iloc[0]["metric"], "rank": rank, "n": s.n, "mean": s.mean, "sd": s.sd})
    frame = pd.DataFrame(records)
    titles = ["Task", "Model", "Budget", "Protocol", "Method", "n", *(f"r = {r}" for r in sorted(set(frame["rank"])))]
    rows = []
    for (task, protocol, model, _, budget, shown), cells in frame.groupby([*CELL, "shown"], sort=True):
        texts = {f"r = {c['rank']}": mean_sd(c["mean"], c["sd"]) for c in cells.to_dict("records")}
        texts |= {"Task": task, "Model": model, "Budget": budget, "Protocol": protocol, "Method": shown}
        rows.append([{**texts, "n": str(cells["n"].max())}.get(title, "") for title in titles])
    note = "One model read with its first r ranks; its result in other tables is that of the budget's rank."
    return Table("Scores by rank, means over seeds with standard deviations.", titles, rows, [note], frame)
