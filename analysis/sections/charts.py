"""Data of the page's charts, from the frames of the sections. `analysis/output/charts.js` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.chart import MOST_VALUES, Chart
from analysis.output.looks import Look, Looks
from analysis.output.table import p_value
from analysis.reading.curves import Curve, Points
from analysis.reading.stored import Stored
from analysis.sections.arms import method_order
from analysis.sections.cost_figures import COSTS, pareto_front
from analysis.sections.rank_courses import Course, filled
from analysis.sections.rate_frames import ArmCurve, panels_of

MOST_POINTS = 200  # of one curve


@lru_cache(maxsize=1)
def looks_of(stored: Stored) -> Looks:
    """The looks of all arms of a report: one for a name over tasks, and the same for its names within tasks."""
    rows = stored.runs.assign(order=[method_order(method) for method in stored.runs["method"]])
    rows = rows.drop_duplicates(["row_name", "shown"]).sort_values(["order", "row_name"])
    return Looks(zip(rows["row_name"], rows["method"], rows["shown"], strict=True))


def rank_map_chart(
    arms: Sequence[tuple[str, Look, pd.DataFrame, Mapping[int, Course]]], centre: float, caption: str,
    files: Mapping[Path, str],
) -> Chart:  # fmt: skip
    """Ranks by layer and type at every round, arms side by side.

    Args:
        arms: of each its name, look, map of final ranks (layers, types), and the course of every seed.
        centre: the rank without colour: the budget's mean rank.
        caption, files: of the chart.
    """
    values = sum(course.ranks.size for *_, courses in arms for course in courses.values())
    whole = values <= MOST_VALUES
    panels = [_rank_panel(*arm, with_seeds=whole) for arm in arms]
    return Chart("rank_map", caption, {"centre": centre, "arms": panels, "whole": whole}, files)


def _rank_panel(
    name: str, look: Look, final: pd.DataFrame, courses: Mapping[int, Course], with_seeds: bool
) -> dict[str, Any]:
    """One arm: layers, types, steps, and by seed and in the mean a list of ranks, layer by layer, for every step."""
    matrices = [(kind, layer) for layer in final.index for kind in final.columns]
    steps = sorted({step for course in courses.values() for step in course.steps})
    every = {f"seed {seed}": filled(course, steps, matrices) for seed, course in courses.items()}
    mean = np.stack(list(every.values())).mean(axis=0)
    shown = {f"mean of {len(every)} seeds": np.round(mean, 2)} if len(every) > 1 else {}
    shown |= every if with_seeds or len(every) == 1 else {}
    still = all(np.array_equal(rounds, rounds[:1].repeat(len(steps), 0), equal_nan=True) for rounds in every.values())
    return {
        "name": name, "colour": look.colour, "layers": list(map(str, final.index)),
        "types": list(map(str, final.columns)), "steps": steps[:1] if still else steps,
        "courses": {seed: (rounds[:1] if still else rounds).tolist() for seed, rounds in shown.items()},
    }  # fmt: skip


def look_of(looks: Looks, runs: pd.DataFrame) -> Look:
    """The look of the arm that these runs belong to."""
    return looks.of(str(runs["row_name"].iloc[0]), str(runs["method"].iloc[0]))


def curves_chart(
    arms: Mapping[str, tuple[Look, Mapping[int, Curve]]], guessing: float, metric: str, caption: str,
    files: Mapping[Path, str],
) -> Chart:  # fmt: skip
    """Loss and held-out score by step: mean and range over seeds, and every seed.

    Args:
        arms: by name, the look and the curve of every seed.
        guessing: loss of the best constant answer, NaN for none.
        metric: of the scores.
        caption, files: of the chart.
    """
    values = sum(len(c.loss) + len(c.scores) for _, curves in arms.values() for c in curves.values())
    with_seeds = values <= MOST_VALUES
    panels = []
    for axis, part in (("training loss", "loss"), (f"held-out {metric} (points)", "scores")):
        series = [
            _series(name, look, {seed: getattr(curve, part) for seed, curve in curves.items()}, with_seeds)
            for name, (look, curves) in arms.items()
        ]
        series = [one for one in series if one["x"]]
        if series:
            rule = {"value": guessing, "label": "guessing"} if part == "loss" and not math.isnan(guessing) else None
            panels.append({"y": axis, "rule": rule, "series": series})
    return Chart(
        "lines", caption, {"x": "step", "band": "lowest to highest seed", "panels": panels, "whole": with_seeds}, files
    )


def _series(name: str, look: Look, runs: Mapping[int, Points], with_seeds: bool) -> dict[str, Any]:
    """Mean, range and single seeds at the steps that all runs have, thinned to `MOST_POINTS`."""
    found = {seed: dict(points) for seed, points in runs.items() if points}
    steps = sorted(set.intersection(*map(set, found.values()))) if found else []
    steps = steps[:: -(-len(steps) // MOST_POINTS) or 1]
    table = np.array([[points[step] for step in steps] for points in found.values()]).reshape(len(found), len(steps))
    one = {"name": name, **look._asdict(), "x": [step + 1 for step in steps]}
    if steps:
        one["mean"] = table.mean(axis=0).tolist()
        if len(found) > 1:
            one |= {"low": table.min(axis=0).tolist(), "high": table.max(axis=0).tolist()}
            single = zip(found, table.tolist(), strict=True) if with_seeds else ()
            one["seeds"] = {f"seed {seed}": values for seed, values in single}
    return one


def rates_chart(arms: Sequence[ArmCurve], looks: Looks, metric: str, caption: str, files: Mapping[Path, str]) -> Chart:
    """Score by learning rate: mean with its standard error, and every seed; panels as in `panels_of`."""
    constant = arms[0].constant
    rule = None if math.isnan(constant) else {"value": constant, "label": "constant answer"}
    panels = []
    for setting, panel in panels_of(arms):
        series = []
        for label, alike, arm in panel:
            mean, error = arm.scores.mean(), arm.scores.std(ddof=1) / math.sqrt(len(arm.scores))
            series.append(
                {"name": label, **looks.of(alike, arm.method)._asdict(), "x": list(mean.index), "mean": mean.tolist()}
                | {"low": (mean - error).tolist(), "high": (mean + error).tolist(), "best": arm.curve.best}
                | {"open": [arm.unstable[rate] > 0.5 for rate in mean.index]}
                | {"seeds": {f"seed {seed}": row.tolist() for seed, row in arm.scores.iterrows()}}
            )
        y = f"{metric} (points){f', {setting}' if setting else ''}"
        panels.append({"y": y, "rule": rule, "series": series})
    hint = "Large: the best rate. Hollow: most runs are unstable."
    data = {"x": "learning rate", "log": True, "band": "standard error", "panels": panels, "dots": hint}
    return Chart("lines", caption, data, files)


def cost_charts(arms: pd.DataFrame, looks: Looks, caption: str, files: Mapping[Path, str]) -> list[Chart]:
    """Score with its interval against every cost that was measured and differs; no chart where no cost does."""
    panels = []
    for cost, (label, unit) in COSTS.items():
        known = arms[arms[cost].notna()]
        if not len(known) or known[cost].nunique() < 2:
            continue
        x, y = known[cost].to_numpy(float) / unit, known["score_mean"].to_numpy(float)
        points = [
            {"name": row["shown"], **looks.of(row["shown"], row["method"])._asdict(), "budget": row["budget"]}
            | {"x": at, "y": score, "n": row["n"], "low": row["score_low"], "high": row["score_high"]}
            for row, at, score in zip(known.to_dict("records"), x, y, strict=True)
        ]
        front = sorted({(a, b) for a, b in zip(x[pareto_front(x, y)], y[pareto_front(x, y)], strict=True)})
        log = bool(x.min() > 0 and x.max() > 20 * x.min())
        panels.append({"x": label, "log": log, "points": points, "front": [list(pair) for pair in front]})
    metric = f"{arms['metric'].iloc[0]} (points)"
    return [Chart("points", caption, {"y": metric, "panels": panels}, files)] if panels else []


def forest_chart(
    rows: Iterable[Mapping[str, Any]],
    baseline: str | None,
    margin: float | None,
    caption: str,
    files: Mapping[Path, str],
) -> Chart | None:
    """Differences around zero; None without a row.

    Args:
        rows: each with name, colour, mean, n, and where known low and high (over seeds), low_items and high_items (over
            seeds and items), tasks (mean difference by task), p and p_corrected, claim.
        baseline: what all the differences are to; None where the names say it.
        margin: of equivalence, in points; None for none.
        caption, files: of the chart.
    """
    shown = [dict(row) for row in rows]
    for row in shown:
        row |= {key: p_value(row[key], exact=True) for key in ("p", "p_corrected") if key in row}
    x = "difference (points)" if baseline is None else f"difference to {baseline} (points)"
    data = {"x": x, "margin": margin, "rows": shown}
    return Chart("forest", caption, data, files) if shown else None
