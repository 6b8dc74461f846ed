"""How the runs of every arm ended: done, open, collapsed, or failed and in which way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.folders import CRASH, FAILURES, Unfinished
from analysis.reading.stored import Stored
from experiments.store.name import short_id

ENDINGS = (CRASH, *FAILURES.values())


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of endings, if a run failed, stopped or collapsed, and the runs that a study lacks."""
    study = stored.declared
    table = failures(stored.runs, stored.unfinished, None if study is None else study.cells)
    lines = [] if study is None else study.gaps(stored.known)
    return [Section("How the runs ended", {"failures": table} if table is not None else {}, lines=lines)]


def failures(runs: pd.DataFrame, unfinished: Sequence[Unfinished], cells: pd.DataFrame | None = None) -> Table | None:
    """Counts how the runs of every arm ended.

    Args:
        runs, unfinished: from `load_runs`.
        cells: a study's runs, to count by its arms; None counts by the arms that folders name.

    Returns:
        None if no run failed, stopped or collapsed.
    """
    named = [] if cells is None else zip(cells["id"], cells["arm"], strict=True)
    arms = {short_id(run): arm for run, arm in named if run}
    counts: dict[str, dict[str, int]] = {}

    def of(folder: str) -> dict[str, int] | None:
        run = Unfinished(folder, "", "")
        name = run.arm if cells is None else arms.get(run.short_id, "")
        return counts.setdefault(name, dict.fromkeys(("done", "open", "collapsed", *ENDINGS), 0)) if name else None

    for folder, collapsed in zip(runs["folder"], runs["collapsed"], strict=True):
        if (count := of(folder)) is not None:
            count["done"] += 1
            count["collapsed"] += bool(collapsed)
    for run in unfinished:
        if (count := of(run.folder)) is not None:
            count[run.ending or "open"] += 1
    if not any(sum(count.values()) - count["done"] for count in counts.values()):
        return None
    records: list[dict[str, Any]] = []
    for arm, count in sorted(counts.items()):
        failed = sum(count[ending] for ending in ENDINGS)
        ended = failed + count["done"]
        records.append({"arm": arm, **count, "failure_rate": failed / ended if ended else math.nan})
    columns = ["Arm", "Done", "Open", "Crash", "NaN", "Over budget", "Method failed", "Failure rate", "Collapsed"]
    rows = [
        [r["arm"], *(str(r[key]) for key in ("done", "open", *ENDINGS)),
         "" if math.isnan(r["failure_rate"]) else f"{100 * r['failure_rate']:.1f} %", str(r["collapsed"])]
        for r in records
    ]  # fmt: skip
    notes = [
        "Failures have no score: crashes, losses that are not finite, budget overruns, methods that did not act.",
        "A collapsed run gives every item the same answer; it is done, keeps its score and enters every mean and test.",
    ]
    return Table("How the runs ended, by arm.", columns, rows, notes, pd.DataFrame(records))
