""""""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.folders import CRASH, FAILURES, Unfinished
from analysis.reading.stored import Stored

if TYPE_CHECKING:
    import pandas as pd

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
if TYPE_CHECKING:
    import pandas as pd


def _endings(stored: Stored) -> list[Section]:
    from analysis.sections.endings import failures

    declared = stored.declared
    ended = failures(stored.runs, stored.unfinished, None if declared is None else declared.cells)
    lines = [] if declared is None else declared.gaps(stored.known)
    return [Section("How the runs ended", {"failures": ended} if ended is not None else {}, lines=lines)]


ENDINGS = (CRASH, *FAILURES.values())


def failures(runs: pd.DataFrame, unfinished: Sequence[Unfinished], cells: pd.DataFrame | None = None) -> Table | None:
    """How many runs of every arm ended, and how.

    Args:
        runs, unfinished: from `load_runs`.
        cells: a study's runs, whose arms are then counted; without, arms are named as their folders.

    Returns:
        None where no run failed, stopped or collapsed.
    """
    import pandas as pd

    arms = {} if cells is None else {run[:10]: arm for run, arm in zip(cells["id"], cells["arm"], strict=True) if run}
    counts: dict[str, dict[str, int]] = {}

    def of(folder: str) -> dict[str, int] | None:
        run = Unfinished(folder, "", "")
        name = run.arm if cells is None else arms.get(run.short_id, "")
        return counts.setdefault(name, dict.fromkeys(("done", "open", "collapsed", *ENDINGS), 0)) if name else None

    for folder, flags in zip(runs["folder"], runs["flags"], strict=True):
        if (count := of(folder)) is not None:
            count["done"] += 1
            count["collapsed"] += "collapsed" in flags
    for run in unfinished:
        if (count := of(run.folder)) is not None:
            count[run.ending or "open"] += 1
    if not any(sum(count.values()) - count["done"] for count in counts.values()):
        return None
    records: list[dict[str, Any]] = [
        {"arm": arm, **count, "failure_rate": _rate(sum(count[e] for e in ENDINGS), count["done"])}
        for arm, count in sorted(counts.items())
    ]
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


def _rate(failed: int, done: int) -> float:
    return failed / (failed + done) if failed + done else math.nan
