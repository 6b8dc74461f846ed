"""What was learned and forgotten over sequences of classes or domains: a table and figures for every cell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.figure import file_name
from analysis.output.looks import Looks
from analysis.output.section import Section
from analysis.output.table import Table, mean_sd
from analysis.reading.arms import CELL
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.rounds import load_rounds
from analysis.reading.stored import Stored
from analysis.sections.arms import RECONSTRUCTED, method_order
from analysis.sections.charts import looks_of
from analysis.sections.increment_figures import draw_accuracy, draw_matrices, draw_ranks
from analysis.sections.matrix_types import type_order, types_of
from analysis.sections.published_numbers import published_file
from analysis.stats.seeds import Array, summary

MEASURES = {
    "final": "Final accuracy", "anytime_accuracy": "Anytime accuracy", "forgetting": "Forgetting",
    "forward_transfer": "Forward transfer",
}  # fmt: skip
BENCHMARKS = {  # of the paper, by task
    "imagenet_r": "ImageNet-R", "imagenet_a": "ImageNet-A", "domainnet": "DomainNet", "cifar100_full": "CIFAR-100",
}  # fmt: skip
WITHOUT_BUDGET = [name for name in CELL if name != "budget"]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The sequences of every task, model, protocol and recipe; arms without a budget stand beside all budgets."""
    runs = stored.runs
    of_parts = runs[in_parts(runs)]
    found = []
    for key, cell in of_parts.groupby(WITHOUT_BUDGET, sort=False):
        title = f"{key[0]}, {key[2]}, {key[1]}"
        stem = file_name([str(part) for part in key])
        joint = joint_runs(runs, cell)
        section = Section(f"Sequences: {title}", {f"increments_{stem}": increments_table(cell, joint, title)})
        if folder is not None:
            _draw(cell, joint, looks_of(stored), folder, stem, title, section)
        found.append(section)
    return found


def in_parts(runs: pd.DataFrame) -> Any:
    """Which runs are sequences of several parts, (runs,)."""
    return np.array([parts is not None for parts in runs["increments"]], dtype=bool)


def joint_runs(runs: pd.DataFrame, cell: pd.DataFrame) -> pd.DataFrame:
    """The runs on all classes at once that have the model, protocol, recipe and data of a cell."""
    first = cell.iloc[0]
    same = (runs["fingerprint"] == first["fingerprint"]) & ~in_parts(runs)
    for name in ("model", "protocol", "recipe", "split"):
        same &= runs[name] == first[name]
    return runs[same & (runs["steps"] == first["steps"])]


def measured(arm: pd.DataFrame) -> dict[str, list[float]]:
    """The measures of the runs of an arm, by name; those that a run lacks are NaN."""
    parts = [parts or {} for parts in arm["increments"]]
    others = {name: [part.get(name, math.nan) for part in parts] for name in MEASURES if name != "final"}
    return {"final": list(arm["score"])} | others


def increments_table(cell: pd.DataFrame, joint: pd.DataFrame, title: str) -> Table:
    """The measures of every arm, of the joint runs, and the published numbers."""
    rows, records = [], []
    arms = [(name, arm, "") for name, arm in cell.groupby(["shown", "budget"], sort=False)]
    arms += [(name, arm, ", all classes at once") for name, arm in joint.groupby(["shown", "budget"], sort=False)]
    arms.sort(key=lambda each: (each[2], method_order(each[1]["method"].iloc[0])))
    for (name, budget), arm, more in arms:
        texts, record = [], {"where": title, "arm": name + more, "budget": budget, "seeds": len(arm)}
        for measure, values in measured(arm).items():
            known = not np.isnan(values).any()
            found = summary(values) if known else None
            text = "" if found is None else mean_sd(found.mean, found.sd) + interval(found.low, found.high)
            texts.append(text.replace("-", "−"))
            record |= {measure: found.mean if found else math.nan, f"{measure}_sd": found.sd if found else math.nan}
            record |= {f"{measure}_low": found.low if found else math.nan}
            record |= {f"{measure}_high": found.high if found else math.nan}
        rows.append([f"{name}{more}", "" if budget == NO_BUDGET else budget, str(len(arm)), *texts])
        records.append(record)
    rows += published_rows(cell)
    columns = ["Method", "Budget", "Seeds", *MEASURES.values()]
    shown = [number for number, _ in enumerate(columns) if number < 3 or any(row[number] for row in rows)]
    notes = [
        "Points, mean ± standard deviation over seeds with a 95 % t interval from 3 seeds on. A seed also draws the "
        "order in which parts arrive, unless task.class_order=label. Final accuracy: over all items after the last "
        "part. Anytime accuracy: mean over parts of the accuracy over all items seen by then. Forgetting: mean loss "
        "since the best earlier reading of a part. Forward transfer: what earlier parts add before a part is trained.",
        "Arms of one budget train the same rank in each part; those with a piece for each part end with their sum.",
    ]
    if cell["reconstructed"].any():
        notes.append(RECONSTRUCTED)
    if published_rows(cell):
        notes.append(
            "Published rows are copied from SD-LoRA, arXiv 2501.13198, Tables 2, 3 and 4 (means over 5 runs), "
            "second-hand ones from a digest of its Table 6; none was measured here."
        )
    notes += published_costs(cell)
    return Table(
        f"Sequences: {title}.", [columns[n] for n in shown], [[row[n] for n in shown] for row in rows], notes,
        pd.DataFrame(records),
    )  # fmt: skip


def interval(low: float, high: float) -> str:
    """ " [81.20, 83.10]" behind a mean, or nothing where there is none."""
    return "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"


def published_rows(cell: pd.DataFrame) -> list[list[str]]:
    """The rows of SD-LoRA's tables for the benchmark and the number of parts of a cell, its ablation last."""
    benchmark, parts = _benchmark(cell)
    data = published_file("sdlora_table2_3_6")[1]
    names = (f"{benchmark} N={parts}", benchmark)  # CIFAR-100's number of parts is not stated
    rows = []
    for row in data[data["benchmark"].isin(names)].to_dict("records"):
        source = "published" if row["verified"] == "yes" else "second-hand"
        rows.append(_published(f"{row['method']}, {source}", row["acc"], row["aaa"]))
    ablation = published_file("sdlora_table4_5")[1]
    if benchmark == "ImageNet-R" and f"acc_n{parts}" in ablation:
        for row in ablation[(ablation["table"] == "4") & (ablation["row"] != "SD-LoRA")].to_dict("records"):
            rows.append(_published(f"{row['row']}, published", row[f"acc_n{parts}"], row[f"aaa_n{parts}"]))
    return rows


def published_costs(cell: pd.DataFrame) -> list[str]:
    """A note with the costs of SD-LoRA's Table 5, for the benchmark that they were measured on."""
    if _benchmark(cell) != ("ImageNet-R", 20):
        return []
    data = published_file("sdlora_table4_5")[1]
    costs = [
        f"{row['row']} {float(row['gflops']):.2f}, {float(row['params_M']):.2f}, {float(row['stored_features_M']):.2f}"
        for row in data[data["table"] == "5"].to_dict("records")
    ]
    return [
        "Published costs (SD-LoRA's Table 5: GFLOPs, million trained parameters, million stored features): "
        f"{'; '.join(costs)}."
    ]


def _benchmark(cell: pd.DataFrame) -> tuple[str | None, int]:
    """A cell's benchmark as SD-LoRA's tables name it, or None, and its number of parts."""
    settings, parts = cell.iloc[0]["settings"], cell.iloc[0]["increments"]
    return BENCHMARKS.get((settings.get("task") or {}).get("name", "")), len(parts["ends"])


def _published(label: str, final: object, anytime: object) -> list[str]:
    return [label, "", "5", f"{float(str(final)):.2f}", f"{float(str(anytime)):.2f}", "", ""]


def ranks_after_parts(run: dict[str, Any]) -> dict[str, list[float]]:
    """Mean rank of a matrix of each type in the last step of every part; empty for a method without ranks."""
    rounds = load_rounds(run["folder"])
    if not rounds or not run["places"]:
        return {}
    kinds = dict(zip(run["places"], types_of(list(run["places"]), run["places"]), strict=True))
    curves: dict[str, list[float]] = {kind: [] for kind in sorted(set(kinds.values()), key=type_order)}
    for end in run["increments"]["ends"]:
        ranks = [line for line in rounds if line["step"] < end - 1][-1]["ranks"]
        for kind, curve in curves.items():
            curve.append(float(np.mean([ranks[name] for name, own in kinds.items() if own == kind])))
    return curves


def mean_matrix(arm: pd.DataFrame) -> Array:
    """The accuracy matrix, mean over runs, (parts, parts)."""
    return np.mean([parts["matrix"] for parts in arm["increments"]], axis=0)


def _draw(
    cell: pd.DataFrame, joint: pd.DataFrame, looks: Looks, folder: Path, stem: str, title: str, section: Section
) -> None:
    """Adds the figures of a cell to its section."""
    several = cell["budget"].replace(NO_BUDGET, np.nan).nunique() > 1
    label = cell["shown"] + (" " + cell["budget"] if several else "")
    arms = {str(name): arm for name, arm in cell.groupby(label, sort=False)}
    arms = dict(sorted(arms.items(), key=lambda each: method_order(each[1]["method"].iloc[0])))
    source, what = str(cell["citation"].iloc[0]), str(cell["increments"].iloc[0]["kind"])
    seen = {
        name: (looks.of(name, arm["method"].iloc[0]), np.array([parts["seen"] for parts in arm["increments"]]))
        for name, arm in arms.items()
    }
    lines = {f"{name}, all at once": float(arm["score"].mean()) for name, arm in joint.groupby("shown", sort=False)}
    caption = f"Accuracy as {what} arrive: {title}"
    section.figures[draw_accuracy(seen, lines, folder / f"increments_{stem}", caption, source)[-1]] = caption
    caption = f"Accuracy on every part after every part: {title}"
    matrices = {name: mean_matrix(arm) for name, arm in arms.items()}
    section.figures[draw_matrices(matrices, folder / f"increments_matrix_{stem}", caption, source)[-1]] = caption
    curves = {name: _mean_curves(arm) for name, arm in arms.items()}
    curves = {name: curve for name, curve in curves.items() if any(len(set(ranks)) > 1 for ranks in curve.values())}
    if curves:
        caption = f"Ranks as {what} arrive: {title}"
        section.figures[draw_ranks(curves, folder / f"increments_ranks_{stem}", caption, source)[-1]] = caption


def _mean_curves(arm: pd.DataFrame) -> dict[str, list[float]]:
    """`ranks_after_parts`, mean over runs."""
    found = [ranks_after_parts(run) for run in arm.to_dict("records")]
    return {kind: np.mean([curves[kind] for curves in found], axis=0).tolist() for kind in found[0]}
