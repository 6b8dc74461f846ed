"""The papers' tables from our runs, with the published numbers beside them.

What is unusual: a row is one method at one budget under one protocol, and a cell one exact configuration apart from
its seed, as in `analysis.sections.comparison`. A cell that would mix two is left empty and says so. Missing runs are
counted, and a
note holds the command that makes them. A difference to a published number is taken only where model, task, budget and
protocol match; everywhere else the two stand side by side with the reason why they cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table, signed, signed_range
from analysis.reading.arms import NAMES, short_recipe
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.settings import command
from analysis.sections.arms import (
    LEAST_FOR_INTERVAL,
    ROW,
    note_manifests,
    place_of,
    protocol_notes,
)
from analysis.sections.paper_layouts import LAYOUTS, Column, Layout
from analysis.sections.published_numbers import Published, published
from analysis.stats.seeds import summary, t_interval
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
from typing import TYPE_CHECKING

from analysis.output.figure import _file
from analysis.output.section import Section

if TYPE_CHECKING:
    import pandas as pd


UNVERIFIED = "§"


def paper_tables(runs: pd.DataFrame) -> dict[str, Table]:
    """A table per suite and model of which there are runs, by a name for files.

    Args:
        runs: from `analysis.reading.runs.load_runs`.
    """
    if not len(runs):
        return {}
    runs = runs.assign(shown=runs["row_name"], recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    tables = {}
    for layout in LAYOUTS:
        ours = runs[runs["task"].isin(layout.tasks())]
        for model, of_model in ours.groupby("model", sort=True):
            tables[f"{layout.suite}_{model}"] = paper_table(of_model, layout, published())
    return tables


def paper_table(runs: pd.DataFrame, layout: Layout, known: Sequence[Published] = ()) -> Table:
    """One suite on one model in the paper's layout.

    Args:
        runs: of one model, with the column "shown"; runs of other tasks are ignored.
        layout: the columns.
        known: published rows; those of another suite or model are ignored.

    Raises:
        UserError: there is no run, or there are several models.
    """
    import pandas as pd

    runs = runs[runs["task"].isin(layout.tasks())]
    if not len(runs) or runs["model"].nunique() > 1:
        raise UserError(f"a table of {layout.title} needs runs of one model: type --task and a store with such runs")
    model = str(runs["model"].iloc[0])
    known = [row for row in known if row.suite == layout.suite and row.model == model]
    done = set(runs["task"]) | {task for row in known for task, _ in row.values}
    columns = [column for column in layout.columns if any(task in done for task, _ in column.parts)]
    notes: list[str] = []
    records: list[dict[str, Any]] = []
    rows = []
    for key, arm in sorted(runs.groupby(ROW, sort=False), key=_order):
        seeds = sorted(set(runs["seed"][runs["protocol"] == arm["protocol"].iloc[0]]))
        cells = {column.title: _Cell(arm, runs, column, seeds, notes) for column in columns}
        rows.append(_our_row(arm, layout, cells))
        records += [record for cell in cells.values() for record in cell.records(dict(zip(ROW, key, strict=True)))]
    for row in known:
        rows.append(_their_row(row, layout, columns))
        records += _their_records(row)
    for _, cell in runs.groupby(["task", "protocol"], sort=True):
        note_manifests(cell, place_of(cell), notes)
    protocols = sorted(set(runs["protocol"]))
    shown = list(dict.fromkeys(title for row in rows for title in row))
    if runs["recipe"].nunique() < 2:
        shown.remove("Recipe")
    order = ["Method", "Recipe", "Budget", "Parameters", "Protocol", "n", *(column.title for column in columns)]
    shown = [title for title in order if title in shown] + [title for title in shown if title not in order]
    heads = _heads(runs, layout, known, columns)
    caption = f"{layout.title} with {model}, protocol {', '.join(protocols)}."
    frame = pd.DataFrame(records).assign(model=model, suite=layout.suite)
    return Table(caption, shown, [[row.get(title, "") for title in shown] for row in rows], heads + notes, frame)


class _Cell:
    """Our runs of one row in one column.

    Args:
        arm: runs of the row. runs: of the whole table. seeds: that any arm has under this protocol; all are expected,
            on every task of the table, but an arm with turned knobs is expected only where it was run.
        notes: gets a line for what is missing or mixed.
    """

    def __init__(
        self, arm: pd.DataFrame, runs: pd.DataFrame, column: Column, seeds: list[int], notes: list[str]
    ) -> None:
        self.column, self.seeds = column, seeds
        self.scores: list[dict[int, float]] = []  # of every part, by seed
        self.mixed = False
        self.missing: dict[str, list[int]] = {}
        self.splits = {}
        for task, metric in column.parts:
            own = arm[arm["task"] == task]
            if own[["arm", "fingerprint"]].drop_duplicates().shape[0] > 1:
                self.mixed = True
                notes.append(
                    f"{arm['shown'].iloc[0]}, {task}: runs on different data are not averaged; filter the stores."
                )
            values = {int(s): points(m, metric) for s, m in zip(own["seed"], own["metrics"], strict=True)}
            self.scores.append({seed: value for seed, value in values.items() if value is not None})
            self.splits[task] = ", ".join(sorted(set(own["split"])))
            lacking = [seed for seed in seeds if seed not in set(own["seed"])]
            wanted = len(own) or (task in set(runs["task"]) and "[" not in arm["shown"].iloc[0])
            if lacking and wanted and task not in self.missing:
                self.missing[task] = lacking
                notes.append(_missing_note(arm, runs, task, lacking))

    def means(self) -> list[float] | None:
        """The mean of every part, None where one is missing."""
        if self.mixed or not all(self.scores):
            return None
        return [math.fsum(values.values()) / len(values) for values in self.scores]

    def by_seed(self) -> dict[int, float]:
        """The column's value of every seed that has all parts."""
        if self.mixed or not all(self.scores):
            return {}
        common = set.intersection(*(set(values) for values in self.scores))
        return {seed: sum(v[seed] for v in self.scores) / len(self.scores) for seed in common}

    def text(self) -> str:
        """87.14 ± 0.31, 90.1/90.3 ± 0.2/0.1, or what is missing."""
        if self.mixed:
            return "mixed"
        lacking = sum(map(len, self.missing.values()))
        means = self.means()
        if means is None:
            return f"{lacking} missing" if lacking else ""
        spreads = [summary(list(values.values())).sd for values in self.scores]
        text = "/".join(f"{mean:.2f}" for mean in means)
        if not any(math.isnan(sd) for sd in spreads):
            text += " ± " + "/".join(f"{sd:.2f}" for sd in spreads)
        return text + (f" ({lacking} missing)" if lacking else "")

    def records(self, key: dict[str, Any]) -> list[dict[str, Any]]:
        """Numbers for the CSV, one per part that has any."""
        found = []
        for (task, metric), values in zip(self.column.parts, self.scores, strict=True):
            if not values and task not in self.missing:
                continue
            s = summary(list(values.values())) if values and not self.mixed else None
            found.append(
                {"row": "ours", **key, "task": task, "metric": metric, "split": self.splits[task], "n": len(values)}
                | ({"mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high} if s else {})
                | {"seeds": " ".join(map(str, sorted(values))), "missing": len(self.missing.get(task, []))}
            )
        return found


def points(metrics: dict[str, float], metric: str) -> float | None:
    """A metric of a run; "correlation" is the mean of Pearson and Spearman."""
    if metric == "correlation":
        both = [metrics.get("pearson"), metrics.get("spearman")]
        return None if both[0] is None or both[1] is None else (both[0] + both[1]) / 2
    return metrics.get(metric)


def _missing_note(arm: pd.DataFrame, runs: pd.DataFrame, task: str, lacking: list[int]) -> str:
    """How many runs a cell lacks, and the command, with the settings of the task's other runs."""
    first = arm.iloc[0]
    own, others = arm[arm["task"] == task], runs[(runs["task"] == task) & (runs["protocol"] == first["protocol"])]
    model = own if len(own) else others if len(others) else runs[runs["task"] == task]
    settings = {**model["settings"].iloc[0], "protocol": first["settings"].get("protocol")}
    settings["method"] = first["settings"]["method"]
    typed = command(settings, first["budget"], lacking)
    where = ", ".join(p for p in (first["shown"], first["budget"], task, first["protocol"]) if p and p != NO_BUDGET)
    return f"Missing: {len(lacking)} runs of {where}; make them with: {typed}"


def _our_row(arm: pd.DataFrame, layout: Layout, cells: dict[str, _Cell]) -> dict[str, str]:
    first = arm.iloc[0]
    counts = sorted({len(values) for cell in cells.values() for values in cell.scores if values})
    flags = {flag for flags in arm["flags"] for flag in flags}
    collapsed = sum("collapsed" in f for f in arm["flags"])
    name = first["shown"] + ("" if arm["verified"].all() else UNVERIFIED)
    row = {
        "Method": name
        + (f" ({collapsed} collapsed)" if collapsed else "")
        + (" (off budget)" if "off budget" in flags else ""),
        "Recipe": str(first["recipe"]),
        "Budget": "" if first["budget"] == NO_BUDGET else str(first["budget"]),
        "Parameters": f"{arm['params_final'].mean():,.0f}",
        "Protocol": str(first["protocol"]),
        "n": "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "0",
    }
    row |= {title: cell.text() for title, cell in cells.items()}
    for title, titles in _averages(layout, list(cells.values())):
        values = [cells[t].by_seed() for t in titles]
        common = set.intersection(*(set(v) for v in values)) if all(values) else set()
        means = [sum(v[seed] for v in values) / len(values) for seed in sorted(common)]
        row[title] = _mean_text(means)
    if layout.group_means:
        row["Mean of groups"] = _mean_of_groups(layout, cells)
    return row


def _averages(layout: Layout, cells: Sequence[_Cell]) -> list[tuple[str, list[str]]]:
    """(title, columns) of every average: over the columns that our runs fill anywhere in the table."""
    if not layout.average:
        return []
    columns = [cell.column for cell in cells]
    if not layout.group_means:
        return [(_average_title(layout, columns), [column.title for column in columns])]
    groups = dict.fromkeys(column.group for column in columns)
    return [(f"{group} mean", [c.title for c in columns if c.group == group]) for group in groups]


def _average_title(layout: Layout, columns: Sequence[Column]) -> str:
    return "Avg" if len(columns) == len(layout.columns) else f"Avg of {len(columns)}"


def _mean_of_groups(layout: Layout, cells: dict[str, _Cell]) -> str:
    groups = [titles for _, titles in _averages(layout, list(cells.values()))]
    values = [[cells[title].by_seed() for title in titles] for titles in groups]
    if not all(all(group) for group in values):
        return ""
    common = set.intersection(*(set(v) for group in values for v in group))
    return _mean_text(
        [sum(sum(v[s] for v in group) / len(group) for group in values) / len(values) for s in sorted(common)]
    )


def _mean_text(means: list[float]) -> str:
    if not means:
        return ""
    s = summary(means)
    return f"{s.mean:.2f}" + ("" if math.isnan(s.sd) else f" ± {s.sd:.2f}")


# -- published rows ------------------------------------------------------------------------------------------


def _their_row(row: Published, layout: Layout, columns: Sequence[Column]) -> dict[str, str]:
    shown = {
        "Method": f"{row.label}, published" + ("" if row.values else " (not found)"),
        "Budget": "" if row.budget == NO_BUDGET else row.budget,
        "Parameters": row.params,
        "Protocol": row.protocol or "not stated",
    }
    for column in columns:
        values = [_their_value(row, part) for part in column.parts]
        shown[column.title] = "/".join("–" if v is None else f"{v:.2f}" for v in values) if any(values) else ""
    if layout.average and not layout.group_means and row.average is not None and len(columns) == len(layout.columns):
        shown[_average_title(layout, columns)] = f"{row.average:.2f}"
    return shown


def _their_value(row: Published, part: tuple[str, str]) -> float | None:
    task, metric = part
    return points({m: value for (t, m), value in row.values.items() if t == task}, metric) or row.values.get(part)


def _their_records(row: Published) -> list[dict[str, Any]]:
    return [
        {"row": "published", "shown": row.label, "budget": row.budget, "protocol": row.protocol, "task": task,
         "metric": metric, "mean": value, "source": row.source}
        for (task, metric), value in row.values.items()
    ]  # fmt: skip


def against_published(runs: pd.DataFrame, known: Sequence[Published] | None = None) -> Table | None:
    """Our numbers beside every published one of the same method, model, task, metric and, where stated, budget.

    Returns:
        A table in which a difference stands only where budget and protocol are stated and match; None for no pair.
    """
    import pandas as pd

    known = published() if known is None else known
    runs = runs[runs["model"].isin({row.model for row in known})].reset_index(drop=True)
    if not len(runs):
        return None
    runs = runs.assign(shown=runs["row_name"], recipe=[short_recipe(recipe) for recipe in runs["recipe"]])
    records = []
    for row in known:
        ours = runs[(runs["method"] == row.method) & (runs["model"] == row.model)]
        ours = ours[(ours["budget"] == row.budget) | (not row.budget)]
        for (task, metric), value in row.values.items():
            for key, arm in sorted(ours[ours["task"] == task].groupby(ROW, sort=False), key=_order):
                found = [p for m in arm["metrics"] if (p := points(m, metric)) is not None]
                if found and arm[["arm", "fingerprint"]].drop_duplicates().shape[0] == 1:
                    records.append(_meeting(row, task, metric, value, arm, found) | dict(zip(ROW, key, strict=True)))
    if not records:
        return None
    columns = ["Method", "Task", "Metric", "Budget", "Protocol", "n", "Ours", "Published", "Source", "Difference"]
    rows = [
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
    return Table("Our numbers beside published ones.", columns, rows, notes, frame)


def _meeting(
    row: Published, task: str, metric: str, value: float, arm: pd.DataFrame, found: list[float]
) -> dict[str, Any]:
    first = arm.iloc[0]
    s = summary(found)
    record = {"task": task, "metric": metric, "n": s.n, "mean": s.mean, "published": value, "source": row.source}
    if reasons := list(_reasons(row, first, arm)):
        return record | {
            "comparable": False,
            "reason": "; ".join(reasons),
            "text": "not comparable: " + "; ".join(reasons),
        }
    gap = s.mean - value
    record |= {"comparable": True, "difference": gap}
    if s.n < LEAST_FOR_INTERVAL:
        return record | {"text": f"{signed(gap)} (no interval below {LEAST_FOR_INTERVAL} seeds)"}
    low, high = (end - value for end in t_interval(found))
    text = signed(gap) + signed_range(low, high)
    return record | {"low": low, "high": high, "text": text}


def _reasons(row: Published, ours: pd.Series, arm: pd.DataFrame) -> Iterable[str]:
    """Why a published number and ours are not of the same thing."""
    if not row.budget:
        yield "budget in ranks not stated"
    if not row.protocol:
        yield "protocol not stated"
    elif row.protocol != ours["protocol"]:
        yield f"protocol {row.protocol} there"
    if not arm["verified"].all():
        yield "our data is not the official one"


# -- around the table ----------------------------------------------------------------------------------------


def _order(item: tuple[tuple[Any, ...], pd.DataFrame]) -> tuple[Any, ...]:
    """Protocol, budget by size, then methods in the usual order with LoRA first."""
    (shown, budget, protocol, recipe), arm = item
    method = arm["method"].iloc[0]
    rank = -1 if method == "lora" else list(NAMES).index(method) if method in NAMES else len(NAMES)
    digits = "".join(filter(str.isdigit, budget))
    return (protocol, recipe, int(digits or 0), budget, rank, shown)


def _heads(runs: pd.DataFrame, layout: Layout, known: Sequence[Published], columns: Sequence[Column]) -> list[str]:
    """What a reader must know before anything else."""
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
        notes.append("† reconstructed, not checked against its authors' code or its paper in full (docs/methods.md).")
    if known:
        notes.append(
            "Published rows are copied, not measured here, and not comparable unless the table beside says so."
        )
    sources: dict[tuple[str, str], list[str]] = {}
    for row in known:
        sources.setdefault((row.source, row.remark), []).append(row.label)
    for (source, remark), labels in sources.items():
        names = "; ".join(dict.fromkeys(labels))
        notes.append(f"Published: {names}: from {source}" + (f"; {remark}" if remark else "") + ".")
    return notes


def _paper(runs: pd.DataFrame) -> list[Section]:
    from analysis.sections.ablations import ablations, published_ablations
    from analysis.sections.papers import against_published, paper_tables

    sections = []
    tables = {f"paper_{_file([name])}": table for name, table in paper_tables(runs).items()}
    if tables:
        met = against_published(runs)
        sections.append(Section("The papers' tables", tables | ({"beside_published": met} if met else {})))
    changes = ablations(runs)
    if changes is not None:
        sections.append(Section("Ablations", {"ablations": changes} | published_ablations()))
    return sections
