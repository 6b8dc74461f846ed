"""How the runs trained: loss and held-out score by step, and which runs trained above the loss of guessing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.arms import CELL
from analysis.reading.curves import Curve, is_regression, load_curve, stability_of
from analysis.reading.runs import rows_of
from analysis.reading.stored import Stored
from analysis.sections.arms import by_method, cell_label, cell_stem, method_order
from analysis.sections.charts import curves_chart, look_of, looks_of
from analysis.sections.training_figures import MOST_ARMS, draw_curves
from experiments.store.finished import DID_NOT_LEARN

ROW = [*CELL, "shown", "method"]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of stability, and the learning curves of every cell; nothing for runs without logged losses."""
    read = rows_of(stored.runs, "id", "folder", "metric")
    curves = {run["id"]: curve for run in read if (curve := load_curve(run)).loss}
    runs = stored.runs[stored.runs["id"].isin(curves)]
    if not len(runs):
        return []
    section = Section("Training", {"training": training_table(runs, curves)})
    for _, cell in runs.groupby(CELL, sort=False):
        _draw(cell, curves, stored, folder, section)
    return [section]


def training_table(runs: pd.DataFrame, curves: dict[str, Curve]) -> Table:
    """Stability of every arm.

    Args:
        runs: rows of `load_runs` with logged losses; curves: theirs, by id.
    """
    read = rows_of(runs, "id", "guessing", "settings", "steps")
    readings = [stability_of(run, curves[run["id"]]) for run in read]
    runs = runs.assign(
        above=[reading.above for reading in readings],
        rise=[reading.rise for reading in readings],
        unstable=[reading.unstable for reading in readings],
        flat=[DID_NOT_LEARN in flags for flags in runs["flags"]],
        last=[curves[run].loss[-1][1] for run in runs["id"]],
    )
    records: list[dict[str, Any]] = [
        dict(zip(ROW, key, strict=True))
        | {"n": len(arm), "last": arm["last"].mean(), "above": arm["above"].mean(), "rise": arm["rise"].max()}
        | {"unstable": int(arm["unstable"].sum()), "flat": int(arm["flat"].sum())}
        for key, arm in runs.groupby(ROW, sort=False)
    ]
    records.sort(key=lambda r: (*(str(r[key]) for key in CELL), method_order(r["method"])))
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "n", "Last loss", "Above guessing %", "Largest rise",
        "Unstable runs", "Learned nothing",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"], str(r["n"]), f"{r['last']:.3f}",
         "" if math.isnan(r["above"]) else f"{100 * r['above']:.0f}", f"{r['rise']:.2f}",
         *(f"{r[key]} of {r['n']}" if r[key] else "" for key in ("unstable", "flat"))]
        for r in records
    ]  # fmt: skip
    notes = [
        "Last loss: mean training loss over the last logged steps. Above guessing: share of the steps after warm-up "
        "whose logged loss is more than 5 % above that of the best constant answer, mean over runs. Largest rise: of "
        "the logged loss above an earlier one, over all runs. Unstable: more than a tenth of the steps above guessing.",
        "Rank decisions and scores of an unstable run say little about its method: lower its learning rate, or "
        "lengthen its warm-up, before comparing (docs/studies.md).",
    ]
    if any(is_regression(run) for run in read):
        notes.insert(1, "A regression's first descent, from answers near zero, does not count as above guessing.")
    return Table("How the runs trained.", columns, rows, notes, pd.DataFrame(records))


def _draw(cell: pd.DataFrame, curves: dict[str, Curve], stored: Stored, folder: Path | None, section: Section) -> None:
    """Adds the learning curves of a cell to the section, or the reason why there are none."""
    label, looks = cell_label(cell), looks_of(stored)
    arms = {
        name: (look_of(looks, arm), {int(seed): curves[run] for seed, run in zip(arm["seed"], arm["id"], strict=True)})
        for name, arm in by_method(cell.sort_values("seed"))
    }
    if len(arms) > MOST_ARMS:
        section.lines.append(
            f"No learning curves of {label}: {len(arms)} arms are more than the {MOST_ARMS} that one figure can show; "
            "choose some with --method."
        )
        return
    title = f"Learning curves: {label}"
    losses = [loss for loss in cell["guessing"] if not math.isnan(loss)]
    line = sum(losses) / len(losses) if losses else math.nan
    metric, data = str(cell["metric"].iloc[0]), str(cell["citation"].iloc[0])
    files = {}
    if folder is not None:
        path = folder / f"training_{file_name(cell_stem(cell))}"
        of_arms = {name: (look, list(runs.values())) for name, (look, runs) in arms.items()}
        files = {draw_curves(of_arms, line, metric, path, title, data)[-1]: title}
    section.charts.append(curves_chart(arms, line, metric, title, files))
