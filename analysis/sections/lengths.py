"""Difference against length of training: does an arm gain on the baseline, or lose, when both train longer?

An arm is read where it and the baseline were run at the same two lengths or more. Learning rates may differ, as tuning
chooses them for each length; everything else is alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.chart import Chart
from analysis.output.figure import file_name
from analysis.output.looks import Looks
from analysis.output.section import Section
from analysis.output.table import Table, signed, signed_range
from analysis.reading.arms import NAMES, with_names
from analysis.reading.result_row import digest
from analysis.reading.settings import given_ranks
from analysis.reading.stored import Stored
from analysis.sections.arms import budget_order, method_order, place_of
from analysis.sections.charts import looks_of
from analysis.sections.length_figures import draw_lengths
from analysis.stats.seeds import summary

LENGTH = ("max_steps", "epochs")  # of the trainer's settings
PLACE = ["task", "model", "protocol", "recipe"]


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """Table, figure and charts; nothing unless an arm and the baseline were run at two lengths or more."""
    frame = lengths(stored.runs, stored.baseline)
    if frame.empty:
        return []
    base, looks = NAMES.get(stored.baseline, stored.baseline), looks_of(stored)
    section = Section("Length of training", {"lengths": _table(frame, base)})
    for place, rows in frame.groupby(PLACE, sort=True):
        title, files = f"Difference to {base} against length: {', '.join(place[:3])}", {}
        if folder is not None:
            path = folder / f"lengths_{file_name(place)}"
            files = {draw_lengths(rows, looks, base, path, title)[-1]: title}
        section.charts.append(_chart(rows, looks, base, title, files))
    return [section]


def lengths(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Paired differences to the baseline of every arm, budget and length.

    Args:
        runs: rows of `load_runs`.
        baseline: the method to compare against; of several arms of it, the one whose ranks no other run gave.

    Returns:
        A row for each task, model, protocol, recipe, budget, arm and number of steps: name, method, steps, n, mean, low
        and high (95 % t interval over seeds), gaps by seed, mean scores and rates of both. Only arms that were
        run at two lengths at some budget; their other budgets are there with what they have. A length at which an arm
        has several runs of a seed, as in a rate curve, is left out.
    """
    if runs.empty:
        return pd.DataFrame()
    alike = [_without_length(tree) for tree in runs["settings"]]
    named = with_names(runs.assign(settings=alike, arm=[digest(tree) for tree in alike]))
    named = named.assign(
        rate=[float(tree.get("trainer", {}).get("lr", float("nan"))) for tree in runs["settings"]],
        place=[digest(place_of(tree)) for tree in alike],
        is_base=[m == baseline and not given_ranks(tree) for m, tree in zip(runs["method"], alike, strict=True)],
    )
    rows = [row for _, at in named.groupby([*PLACE, "place", "fingerprint"], sort=True) for row in _of_place(at)]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    counts = frame.groupby([*PLACE, "name", "budget"])["steps"].transform("nunique")
    longest = counts.groupby([frame[key] for key in (*PLACE, "name")]).transform("max")
    return frame[longest > 1].reset_index(drop=True)


def _of_place(at: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of runs that differ in method, budget, length and learning rate only."""
    for budget in sorted(set(at["budget"]), key=budget_order):
        for steps, cell in at[at["budget"] == budget].groupby("steps", sort=True):
            base = cell[cell["is_base"]].set_index("seed")
            arms = [arm for _, arm in cell[~cell["is_base"]].groupby("arm", sort=False)]
            for arm in sorted(arms, key=lambda arm: (method_order(arm["method"].iloc[0]), arm["shown"].iloc[0])):
                by_seed = arm.set_index("seed")
                gaps = _gaps(by_seed, base)
                if not gaps:
                    continue
                s, first = summary(list(gaps.values())), arm.iloc[0]
                yield {key: first[key] for key in (*PLACE, "method", "metric", "citation")} | {
                    "budget": budget, "name": first["shown"], "row_name": first["row_name"], "steps": int(steps),
                    "n": s.n, "mean": s.mean, "low": s.low, "high": s.high, "gaps": gaps,
                    "score": float(by_seed.loc[list(gaps), "score"].mean()),
                    "score_base": float(base.loc[list(gaps), "score"].mean()),
                    "rate": float(first["rate"]), "rate_base": float(base["rate"].iloc[0]),
                }  # fmt: skip


def _gaps(arm: pd.DataFrame, base: pd.DataFrame) -> dict[int, float]:
    """Differences by seed; none where an arm has several runs of one seed."""
    if not (arm.index.is_unique and base.index.is_unique):
        return {}
    both = sorted(set(arm.index) & set(base.index))
    return {int(seed): float(arm.loc[seed, "score"] - base.loc[seed, "score"]) for seed in both}


def _without_length(tree: dict[str, Any]) -> dict[str, Any]:
    trainer = {key: value for key, value in tree.get("trainer", {}).items() if key not in (*LENGTH, "lr")}
    return {**tree, "trainer": trainer}


def _table(frame: pd.DataFrame, base: str) -> Table:
    columns = ["Task", "Model", "Protocol", "Budget", "Method", "Steps", "n", "Score", base, "Difference"]
    columns += ["Rate", f"Rate of {base}"]
    rows = [
        [r["task"], r["model"], r["protocol"], r["budget"], r["name"], f"{r['steps']:,}", str(r["n"]),
         f"{r['score']:.2f}", f"{r['score_base']:.2f}", signed(r["mean"]) + signed_range(r["low"], r["high"]),
         f"{r['rate']:g}", f"{r['rate_base']:g}"]
        for r in frame.to_dict("records")
    ]  # fmt: skip
    notes = [
        f"Mean scores of the arm and of {base} over the seeds of both, in points, and the difference, paired by seed, "
        "with a 95 % t interval over seeds; not tested.",
        "Rates are those of the runs; where they differ, so may what a difference comes from.",
    ]
    return Table("Difference against length of training.", columns, rows, notes, frame.drop(columns="gaps"))


def _chart(frame: pd.DataFrame, looks: Looks, base: str, caption: str, files: dict[Path, str]) -> Chart:
    """A panel for each budget, a line for each arm."""
    panels = []
    for budget, panel in frame.groupby("budget", sort=False):
        series = []
        for name, arm in panel.groupby("name", sort=False):
            seeds = sorted(set.intersection(*(set(gaps) for gaps in arm["gaps"])))
            one = looks.of(str(arm["row_name"].iloc[0]), str(arm["method"].iloc[0]))._asdict()
            one |= {"name": name, "x": arm["steps"].tolist(), "mean": arm["mean"].tolist()}
            one |= {"low": arm["low"].tolist(), "high": arm["high"].tolist()}
            series.append(one | {"seeds": {f"seed {seed}": [gaps[seed] for gaps in arm["gaps"]] for seed in seeds}})
        rule = {"value": 0, "label": base}
        panels.append({"y": f"difference to {base} (points), {budget}", "rule": rule, "series": series})
    data = {"x": "steps", "log": True, "band": "95 % interval", "panels": panels, "dots": ""}
    return Chart("lines", caption, data, files)
