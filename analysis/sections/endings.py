"""How the runs of every arm ended: done, open, collapsed, or failed and in which way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.folders import CRASH, FAILURES, Unfinished
from analysis.reading.runs import rows_of
from analysis.reading.settings import form_of
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
    arms = None if cells is None else {short_id(run): arm for run, arm in zip(cells["id"], cells["arm"], strict=True)}
    finished = [
        Unfinished(run["folder"], "", "", form=form_of(run["settings"])) for run in rows_of(runs, "folder", "settings")
    ]
    endings = [(run, "done") for run in finished]
    endings += [(run, "collapsed") for run, collapsed in zip(finished, runs["collapsed"], strict=True) if collapsed]
    endings += [(run, run.ending or "open") for run in unfinished]
    counts: dict[str, Counter[str]] = {}
    for run, ending in endings:
        if arm := run.arm if arms is None else arms.get(run.short_id, ""):
            counts.setdefault(arm, Counter())[ending] += 1
    if not any(count.total() - count["done"] for count in counts.values()):
        return None
    records: list[dict[str, Any]] = []
    for arm, count in sorted(counts.items()):
        failed = sum(count[ending] for ending in ENDINGS)
        ended = failed + count["done"]
        record = {"arm": arm} | {key: count[key] for key in ("done", "open", "collapsed", *ENDINGS)}
        records.append(record | {"failure_rate": failed / ended if ended else math.nan})
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
