"""Forest plot of a study's declared comparisons: each mean difference with its intervals, around zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.output.figure import new_figure, save_figure


def draw_forest(frame: pd.DataFrame, path: Path, title: str = "", margin: float | None = None) -> list[Path]:
    """Draws one line for each comparison that has a difference; returns the files, none without such a comparison.

    Args:
        frame: `Confirmation.table.frame`: "arm", "baseline", "budget", "mean", "low", "high", "claim", in points, and
            "ink", the colour of the arm (`Look.ink`). With "low_items" and "high_items", a thin line for the interval
            over seeds and items; "mean_TASK" as small ticks.
        path: of the figure, without suffix.
        title: above it.
        margin: of equivalence, in points, drawn as a band around zero.
    """
    if "mean" not in frame or frame["mean"].isna().all():
        return []
    shown = frame.dropna(subset="mean")[::-1]
    tasks = [name for name in frame.columns if name.startswith("mean_") and name != "mean_worst"]
    figure = new_figure(6.4, 1.5 + 0.42 * len(shown))
    axis = figure.subplots()
    axis.axvline(0, color="0.4", linewidth=1)
    if margin is not None:
        axis.axvspan(-margin, margin, color="0.92", zorder=0, label=f"equivalence margin {margin:g}")
    for at, row in enumerate(shown.to_dict("records")):
        if "low_items" in row and np.isfinite(row["low_items"]):
            axis.plot([row["low_items"], row["high_items"]], [at, at], color=row["ink"], linewidth=1)
        axis.plot([row["low"], row["high"]], [at, at], color=row["ink"], linewidth=3.5, solid_capstyle="butt")
        filled = row["ink"] if row["claim"] else "white"
        axis.plot(row["mean"], at, "o", color=row["ink"], markerfacecolor=filled)
        axis.plot([row[task] for task in tasks], [at] * len(tasks), "|", color="0.45", markersize=9)
    one_base = shown["baseline"].nunique() == 1
    names = shown["arm"] if one_base else shown["arm"] + " - " + shown["baseline"]
    axis.set_yticks(range(len(shown)), (names + ", " + shown["budget"]).tolist())
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.set_xlabel(f"Difference to {shown['baseline'].iloc[0]} (points)" if one_base else "Difference (points)")
    axis.spines[["top", "right"]].set_visible(False)
    remark = (
        "Thick: 95 % interval over seeds. Thin: over seeds and items. Ticks: single tasks. Filled: a claim is made."
    )
    return save_figure(figure, path, title, "", remark)
