"""Score against learning rate: every arm's best rate, how sure the choice is, its plateau and where it breaks.

A difference between methods at one rate each is also one between their rates. So every arm that was run at three
rates or more is read as a curve, tuning runs included, and a best rate at the edge of its grid, or at which training
was unstable, carries no comparison.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.arms import CELL
from analysis.reading.stored import Stored
from analysis.sections.arms import cell_label, cell_stem
from analysis.sections.charts import looks_of, rates_chart
from analysis.sections.rate_figures import draw_rates
from analysis.sections.rate_frames import ArmCurve, rate_curves


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The rate curves of every cell, of a study's tuning too; nothing without an arm at three rates or more."""
    runs = pd.concat([frame for frame in (stored.runs, stored.tuning) if len(frame)], ignore_index=True)
    rates = [settings.get("trainer", {}).get("lr", math.nan) for settings in runs["settings"]]
    cells = rate_curves(runs.assign(rate=rates))
    if not cells:
        return []
    section = Section("Learning rates", {"rates": rates_table(cells)})
    for cell, arms in cells:
        title, files = f"Score against learning rate: {cell_label(cell)}", {}
        metric, data = str(cell["metric"].iloc[0]), str(cell["citation"].iloc[0])
        if folder is not None:
            path = folder / f"rates_{file_name(cell_stem(cell))}"
            files = {draw_rates(arms, looks_of(stored), metric, path, title, data)[-1]: title}
        section.charts.append(rates_chart(arms, looks_of(stored), metric, title, files))
    return [section]


def rates_table(cells: list[tuple[pd.DataFrame, list[ArmCurve]]]) -> Table:
    """Best rate, plateau and cliff of every arm."""
    records: list[dict[str, Any]] = []
    notes = [
        "Best: the rate with the highest mean over the seeds that all rates have. Choice: standard error of the choice "
        "as a factor, from resampled seeds. Best stable: the best of the rates at which at most half of the runs are "
        "unstable, and its score. Plateau: the unbroken stretch of rates around the best with means within 1 point of "
        "it. Cliff: the first rate above it that keeps less than half of the gain over a constant answer.",
        "A best rate at the edge of its grid, or where most runs are unstable (see Training), carries no comparison.",
    ]
    for cell, arms in cells:
        for arm in arms:
            curve, mean = arm.curve, arm.scores.mean()
            records.append(
                {key: cell[key].iloc[0] for key in CELL}
                | {"shown": arm.name, "rates": len(mean), "lowest": mean.index[0], "highest": mean.index[-1]}
                | {"n": len(arm.scores), "best": curve.best, "score": mean[curve.best], "edge": curve.edge}
                | {"stable": arm.stable, "stable_score": math.nan if arm.stable is None else mean[arm.stable]}
                | {"error": curve.error, "plateau_low": curve.plateau[0], "plateau_high": curve.plateau[1]}
                | {"cliff": curve.cliff, "unstable": arm.unstable[curve.best], "verdict": arm.verdict}
            )
            if arm.dropped:
                rates = ", ".join(f"{rate:g}" for rate in arm.dropped)
                notes.append(f"{cell_label(cell)}: {arm.name} lacks seeds at {rates}, which its curve leaves out.")
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "Rates", "n", "Best", "Score", "Choice", "Best stable",
        "Plateau", "Cliff", "Verdict",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"],
         f"{r['rates']}: {r['lowest']:g} to {r['highest']:g}", str(r["n"]), f"{r['best']:g}", f"{r['score']:.2f}",
         f"×/÷ {r['error']:.2f}" if r["n"] > 1 else "", _stable(r), _range(r["plateau_low"], r["plateau_high"]),
         "" if r["cliff"] is None else f"{r['cliff']:g}", r["verdict"]]
        for r in records
    ]  # fmt: skip
    return Table("The best learning rate of every arm.", columns, rows, notes, pd.DataFrame(records))


def _stable(record: dict[str, Any]) -> str:
    return "none" if record["stable"] is None else f"{record['stable']:g}: {record['stable_score']:.2f}"


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
