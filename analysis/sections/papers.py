"""The papers' tables from our runs, with the published numbers beside them.

A row is one method at one budget under one protocol, and a cell one exact configuration apart from its seed. A cell
that would mix two configurations is left empty and says so. Missing runs are counted, and a note holds the command that
makes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table, leaders, mean_sd
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.stored import Stored
from analysis.sections.arms import RECONSTRUCTED, cell_notes, named_across_tasks, protocol_notes
from analysis.sections.beside_published import against_published
from analysis.sections.paper_cells import PaperCell, points, table_rows
from analysis.sections.paper_layouts import LAYOUTS, Column, Layout
from analysis.sections.published_numbers import Published, published
from analysis.stats.seeds import summary

OFF_BUDGET = " (off budget)"
UNVERIFIED = "§"  # marks numbers on stand-in data
FIRST_COLUMNS = ["Method", "Recipe", "Budget", "Parameters", "Protocol", "n"]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The papers' tables of which there are runs, and our numbers beside published ones."""
    tables = {f"paper_{file_name([name])}": table for name, table in paper_tables(stored.runs).items()}
    if not tables:
        return []
    beside = against_published(stored.runs)
    return [Section("The papers' tables", tables | ({"beside_published": beside} if beside else {}))]


def paper_tables(runs: pd.DataFrame) -> dict[str, Table]:
    """A table for every suite and model of which there are runs, by a name for files."""
    tables: dict[str, Table] = {}
    for layout in LAYOUTS if len(runs) else ():
        of_suite = named_across_tasks(runs[runs["task"].isin(layout.tasks())])
        for model, of_model in of_suite.groupby("model", sort=True):
            tables[f"{layout.suite}_{model}"] = _paper_table(of_model, layout, str(model))
    return tables


def _paper_table(runs: pd.DataFrame, layout: Layout, model: str) -> Table:
    """One suite on one model in the paper's layout, with every published row."""
    printed = [row for row in published() if row.suite == layout.suite and row.model == model]
    tasks = set(runs["task"]) | {task for row in printed for task, _ in row.values}
    columns = [column for column in layout.columns if any(task in tasks for task, _ in column.parts)]
    notes: list[str] = []
    records: list[dict[str, Any]] = []
    rows = []
    for key, arm in table_rows(runs):
        seeds = sorted(set(runs["seed"][runs["protocol"] == key["protocol"]]))
        cells = {column.title: PaperCell(arm, runs, column, seeds, notes) for column in columns}
        rows.append(_our_row(arm, layout, cells))
        records += [record for cell in cells.values() for record in cell.records(key)]
    for row in printed:
        rows.append(_published_row(row, layout, columns))
        records += _published_records(row)
    for _, cell in runs.groupby(["task", "protocol"], sort=True):
        notes += cell_notes(cell)
    caption = f"{layout.title} with {model}, protocol {', '.join(sorted(set(runs['protocol'])))}."
    titles = list(dict.fromkeys([*FIRST_COLUMNS, *(column.title for column in columns), *(t for r in rows for t in r)]))
    if runs["recipe"].nunique() < 2:
        titles.remove("Recipe")
    frame = pd.DataFrame(records).assign(model=model, suite=layout.suite)
    text = [[row.get(title, "") for title in titles] for row in rows]
    return Table(
        caption,
        titles,
        text,
        _notes(runs, layout, printed, columns) + notes,
        frame,
        _leaders(titles, rows[: len(rows) - len(printed)]),
    )


def _leaders(titles: Sequence[str], ours: Sequence[Mapping[str, str]]) -> dict[tuple[int, int], int]:
    """The highest two of our means in every column of one number, among rows of one protocol and budget."""
    places = [None if OFF_BUDGET in row["Method"] else (row["Protocol"], row["Budget"]) for row in ours]
    found: dict[tuple[int, int], int] = {}
    for column, title in enumerate(titles):
        if title not in FIRST_COLUMNS:
            cells = [re.match(r"[\d.]+(?=[^/]*$)", row.get(title, "")) for row in ours]
            found |= leaders(places, [float(cell[0]) if cell else math.nan for cell in cells], column)
    return found


def _our_row(arm: pd.DataFrame, layout: Layout, cells: Mapping[str, PaperCell]) -> dict[str, str]:
    first = arm.iloc[0]
    counts = sorted({len(values) for cell in cells.values() for values in cell.scores if values})
    collapsed = arm["collapsed"].sum()
    row = {
        "Method": first["shown"]
        + ("" if arm["verified"].all() else UNVERIFIED)
        + (f" ({collapsed} collapsed)" if collapsed else "")
        + (OFF_BUDGET if arm["off_budget"].any() else ""),
        "Recipe": str(first["recipe"]),
        "Budget": "" if first["budget"] == NO_BUDGET else str(first["budget"]),
        "Parameters": f"{arm['params_final'].mean():,.0f}",
        "Protocol": str(first["protocol"]),
        "n": "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "0",
    }
    row |= {title: cell.text() for title, cell in cells.items()}
    averages = _averages(layout, [cell.column for cell in cells.values()])
    for title, titles in averages:
        row[title] = _mean_over_seeds([_mean_by_seed([cells[t].by_seed() for t in titles])])
    if layout.group_means:
        row["Mean of groups"] = _mean_over_seeds([_mean_by_seed([cells[t].by_seed() for t in g]) for _, g in averages])
    return row


def _averages(layout: Layout, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Title of every average and titles of the columns in it; columns are those that have runs or published numbers."""
    if not layout.average:
        return []
    if not layout.group_means:
        return [(_average_title(layout, columns), [column.title for column in columns])]
    groups = dict.fromkeys(column.group for column in columns)
    return [(f"{group} mean", [c.title for c in columns if c.group == group]) for group in groups]


def _average_title(layout: Layout, columns: Sequence[Column]) -> str:
    return "Avg" if len(columns) == len(layout.columns) else f"Avg of {len(columns)}"


def _mean_by_seed(cells: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over cells for every seed that is in all of them."""
    common = set.intersection(*(set(cell) for cell in cells))
    return {seed: sum(cell[seed] for cell in cells) / len(cells) for seed in sorted(common)}


def _mean_over_seeds(groups: Sequence[Mapping[int, float]]) -> str:
    means = list(_mean_by_seed(groups).values())
    s = summary(means) if means else None
    return mean_sd(s.mean, s.sd) if s else ""


def _published_row(row: Published, layout: Layout, columns: Sequence[Column]) -> dict[str, str]:
    cells = {
        "Method": f"{row.label}, published" + ("" if row.values or row.average is not None else " (not found)"),
        "Budget": "" if row.budget == NO_BUDGET else row.budget,
        "Parameters": row.params,
        "Protocol": row.protocol or "not stated",
    }
    for column in columns:
        values = [_published_value(row, part) for part in column.parts]
        cells[column.title] = "/".join("–" if v is None else f"{v:.2f}" for v in values) if any(values) else ""
    if layout.average and not layout.group_means and row.average is not None and len(columns) == len(layout.columns):
        cells[_average_title(layout, columns)] = f"{row.average:.2f}"
    return cells


def _published_value(row: Published, part: tuple[str, str]) -> float | None:
    task, metric = part
    return points({m: value for (t, m), value in row.values.items() if t == task}, metric) or row.values.get(part)


def _published_records(row: Published) -> list[dict[str, Any]]:
    return [
        {"row": "published", "shown": row.label, "budget": row.budget, "protocol": row.protocol, "task": task,
         "metric": metric, "mean": value, "source": row.source}
        for (task, metric), value in row.values.items()
    ]  # fmt: skip


def _notes(runs: pd.DataFrame, layout: Layout, printed: Sequence[Published], columns: Sequence[Column]) -> list[str]:
    splits = ", ".join(sorted(set(runs["split"])))
    notes = [
        f"Points on the {splits} split: mean ± standard deviation (ddof 1) over n seeds. Expected are all seeds that "
        "any arm has under its protocol."
    ]
    notes += protocol_notes(runs)
    if layout.average:
        over = "the groups" if layout.group_means else "the columns"
        notes.append(f"Averages are means over {over} of the table, per seed, of seeds that have every task in it.")
    absent = [column.title for column in layout.columns if column not in columns]
    absent += [c.title for c in columns if not any(task in set(runs["task"]) for task, _ in c.parts)]
    if absent:
        notes.append(f"No run of: {', '.join(absent)}.")
    if not runs["verified"].all():
        names = ", ".join(sorted(set(runs["task"][~runs["verified"]])))
        notes.append(f"{UNVERIFIED} not the official data (stand-in or subset): {names}. No result on the benchmark.")
    if runs["reconstructed"].any():
        notes.append(RECONSTRUCTED)
    if printed:
        notes.append(
            "Published rows are copied, not measured here, and not comparable unless the table beside says so."
        )
    sources: dict[tuple[str, str], list[str]] = {}
    for row in printed:
        sources.setdefault((row.source, row.remark), []).append(row.label)
    for (source, remark), labels in sources.items():
        names = "; ".join(dict.fromkeys(labels))
        notes.append(f"Published: {names}: from {source}" + (f"; {remark}" if remark else "") + ".")
    return notes
