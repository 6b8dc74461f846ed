"""What the comparison table says first: every arm's difference to the baseline, in sentences and as a chart.

No test was declared for these differences, so a sentence states a difference with its interval and claims nothing.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.output.chart import Chart
from analysis.output.table import signed, signed_range
from analysis.reading.arms import NAMES
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.stored import Stored
from analysis.sections.charts import forest_chart, looks_of

MOST_LINES = 3
MOST_ROWS = 18
UNTESTED = "No test was declared for these runs, so nothing is claimed."


def difference_lines(frame: pd.DataFrame, baseline: str) -> list[str]:
    """A sentence for each difference of the comparison table's frame, up to `MOST_LINES`."""
    rows = _differences(frame)
    lines = [_sentence(row, NAMES.get(baseline, baseline)) for row in rows[:MOST_LINES]]
    if len(rows) > MOST_LINES:
        lines.append(f"The table has {len(rows) - MOST_LINES} more differences. {UNTESTED}")
    elif lines:
        lines[-1] += f" {UNTESTED}"
    return lines


def difference_chart(stored: Stored, frame: pd.DataFrame) -> Chart | None:
    """The differences of the comparison table around zero, the first `MOST_ROWS` of them."""
    looks, rows = looks_of(stored), []
    several = frame["task"].nunique() > 1
    for row in _differences(frame)[:MOST_ROWS]:
        where = [row["task"]] if several else []
        where += [row["budget"]] if row["budget"] != NO_BUDGET else []
        rows.append(
            {"name": ", ".join([row["shown"], *where]), "colour": looks.of(row["shown"], row["method"]).colour}
            | {"mean": _mean(row), "n": row["diff_n"], "low": row["diff_low"], "high": row["diff_high"]}
            | {"seeds": [float(gap) for gap in row["diffs"].split()]}
        )
    base, whole = NAMES.get(stored.baseline, stored.baseline), len(_differences(frame))
    caption = f"Differences to {base}, by seed and in the mean"
    caption += f", the first {MOST_ROWS} of {whole}" if whole > MOST_ROWS else ""
    return forest_chart(rows, base, None, caption, {})


def _differences(frame: pd.DataFrame) -> list[dict[str, Any]]:
    if "diffs" not in frame:
        return []
    return [dict(row) for row in frame[frame["diffs"].notna()].to_dict("records")]


def _mean(row: dict[str, Any]) -> float:
    gaps = [float(gap) for gap in row["diffs"].split()]
    return sum(gaps) / len(gaps)


def _sentence(row: dict[str, Any], base: str) -> str:
    at = f" at {row['budget']}" if row["budget"] != NO_BUDGET else ""
    head = f"{row['shown']} minus {base} on {row['task']}{at}: {signed(_mean(row))} points"
    n = row["diff_n"]
    if reach := signed_range(row["diff_low"], row["diff_high"]):
        return f"{head}, 95 % t interval{reach} over {n} seeds."
    gaps = " and ".join(signed(float(gap)) for gap in row["diffs"].split())
    return f"{head} over {n} seed{'s' if n > 1 else ''}{f' ({gaps})' if n > 1 else ''}, too few for an interval."
