"""Ablations: one method with a knob turned, against the same method as configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, mean_sd, signed, signed_range
from analysis.reading.arms import CELL, NAMES
from analysis.reading.result_row import digest
from analysis.reading.settings import changed_knobs, told_apart
from analysis.reading.stored import Stored
from analysis.sections.published_numbers import published_file
from analysis.stats.seeds import summary

PUBLISHED_FILES = ("adalora_table4_ablation_importance", "adalora_table5_ablation_components")


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The ablations among the runs and the published ones; empty if no method has an ablation."""
    table = ablations(stored.runs)
    return [] if table is None else [Section("Ablations", {"ablations": table} | published_ablations())]


def ablations(runs: pd.DataFrame) -> Table | None:
    """Arms that differ only in the knobs of their method, beside the arm with no knob turned.

    Returns:
        None if no method has two arms that are otherwise alike.
    """
    rests = [digest({k: v for k, v in s.items() if k not in ("method", "numerics")}) for s in runs["settings"]]
    records: list[dict[str, Any]] = []
    without: list[str] = []
    for _, cell in runs.assign(rest=rests).groupby([*CELL, "method", "rest", "fingerprint"], sort=True):
        if cell["arm"].nunique() < 2:
            continue
        first = cell.drop_duplicates("arm")
        knobs = told_apart([changed_knobs(settings) for settings in first["settings"]])
        changes = dict(zip(first["arm"], [", ".join(turned) for turned in knobs], strict=True))
        arms = dict(list(cell.assign(change=[changes[arm] for arm in cell["arm"]]).groupby("change", sort=True)))
        if len(arms) < 2:
            continue
        base = dict(zip(arms[""]["seed"], arms[""]["score"], strict=True)) if "" in arms else {}
        records += [_record(change, arm, base) for change, arm in arms.items()]
        if "" not in arms:
            name, task = NAMES.get(first["method"].iloc[0], first["method"].iloc[0]), first["task"].iloc[0]
            without.append(f"{name} on {task} has no run as configured, so its rows have no difference.")
    if not records:
        return None
    columns = ["Method", "Task", "Protocol", "Budget", "Change", "n", "Score", "Difference"]
    rows = [
        [NAMES.get(r["method"], r["method"]), r["task"], r["protocol"], r["budget"], r["change"] or "as configured",
         str(r["n"]), mean_sd(r["mean"], r["sd"]), r["text"]]
        for r in records
    ]  # fmt: skip
    notes = [
        "Scores are points, mean ± standard deviation (ddof 1) over n seeds. The difference is to the same method as "
        "configured, paired by seed, with a 95 % t interval from 3 seeds on. It covers seeds only and is no test.",
        *dict.fromkeys(without),
    ]
    return Table("Ablations.", columns, rows, notes, pd.DataFrame(records).drop(columns="text"))


def _record(change: str, arm: pd.DataFrame, base: dict[int, float]) -> dict[str, Any]:
    first, s = arm.iloc[0], summary(arm["score"])
    record = {key: first[key] for key in (*CELL, "method", "variant")}
    record |= {"change": change, "n": s.n, "mean": s.mean, "sd": s.sd, "text": ""}
    pairs = [score - base[seed] for seed, score in zip(arm["seed"], arm["score"], strict=True) if seed in base]
    if not change or not pairs:
        return record
    d = summary(pairs)
    text = signed(d.mean) + signed_range(d.low, d.high)
    text += f" (n={d.n})" if d.n != s.n else ""
    numbers = {"diff_n": d.n, "diff_mean": d.mean, "diff_low": d.low, "diff_high": d.high}
    return record | numbers | {"text": text}


def published_ablations() -> dict[str, Table]:
    """AdaLoRA's two tables as printed. No readable source has ElaLoRA's."""
    tables = {}
    for name in PUBLISHED_FILES:
        source, frame = published_file(name)
        printed = frame.drop(columns="verified")
        columns = ["Method", *(_title(column) for column in printed.columns[1:])]
        rows = [["" if cell == "-" else cell for cell in row] for row in printed.to_numpy().tolist()]
        notes = [
            f"Copied from {source}. Not measured here, and not comparable: its protocol is not stated.",
            "ElaLoRA's own ablation numbers were found in no source that could be read; none are shown.",
        ]
        tables[f"published_{name}"] = Table("Published ablations of AdaLoRA.", columns, rows, notes, frame)
    return tables


def _title(column: str) -> str:
    """SST-2, 0.08 % from sst2_008."""
    task, _, share = column.partition("_")
    task = {"sst2": "SST-2", "rte": "RTE", "cola": "CoLA", "mnli": "MNLI"}[task]
    return f"{task}, 0.{share[1:]} %"
