"""Score against cost, a panel per kind of cost; a line joins the arms on the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Look, Looks
from analysis.reading.result_row import NO_BUDGET
from analysis.sections.arms import budget_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {  # column of the comparison -> what an axis says, and what one unit of it is
    "params_final": ("adapter parameters (thousands)", 1e3),
    "step_seconds_median": ("step time (ms)", 1e-3),
    "peak_memory_mib": ("peak memory (MiB)", 1.0),
    "adapter_bytes": ("adapter file (KiB)", 1024.0),
}
SIZE = 6.0  # of a marker; several budgets have sizes from the smallest to the largest of SIZES
SIZES = (4.0, 9.5)


def draw_pareto(arms: pd.DataFrame, looks: Looks, path: Path, title: str = "", data: str = "") -> list[Path]:
    """Draws score against every cost that was measured and differs between arms (of `task_costs` or `suite_costs`)."""
    from matplotlib.lines import Line2D

    costs = [cost for cost in COSTS if arms[cost].notna().any() and arms[cost].nunique() > 1]
    if not costs:
        return []
    style = {name: looks.of(name, method) for name, method in zip(arms["shown"], arms["method"], strict=True)}
    sizes = _sizes(arms)
    columns = min(2, len(costs))
    rows = -(-len(costs) // columns)
    labels = {method: wrapped(method, 26 if len(style) < 9 else 40) for method in style}
    lines = sum(label.count("\n") + 1 for label in labels.values()) + len(sizes) + 1
    figure = new_figure(4.2 * columns + (2.4 if len(style) < 9 else 3.4), max(3.2 * rows, 0.19 * lines) + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, cost in zip(axes.flat, costs, strict=False):
        _panel(axis, arms[arms[cost].notna()], cost, style, sizes)
    for axis in axes.flat[len(costs) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{arms['metric'].iloc[0]} (points)")
    handles: list[Any] = [
        Line2D([], [], color=look.ink, marker=look.marker, linestyle="", label=labels[method])
        for method, look in style.items()
    ]
    handles += [
        Line2D([], [], color="0.4", marker="o", markersize=size, linestyle="", label=f"budget {budget}")
        for budget, size in sizes.items()
    ]
    handles.append(Line2D([], [], color="0.6", linewidth=1.2, label="no arm beats these"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, path, title, data, "Bars: standard deviation over seeds. ")


def _sizes(arms: pd.DataFrame) -> dict[str, float]:
    """Marker size of every budget, larger for a larger one."""
    budgets = sorted(set(arms["budget"]) - {NO_BUDGET}, key=budget_order)
    sizes = np.linspace(*SIZES, len(budgets)) if len(budgets) > 1 else [SIZE] * len(budgets)
    return dict(zip(budgets, sizes, strict=True))


def _panel(axis: Axes, arms: pd.DataFrame, cost: str, style: dict[str, Look], sizes: dict[str, float]) -> None:
    label, unit = COSTS[cost]
    x, y = arms[cost].to_numpy(float) / unit, arms["score_mean"].to_numpy(float)
    best = sorted(zip(x[pareto_front(x, y)], y[pareto_front(x, y)], strict=True))
    axis.plot(*zip(*best, strict=True), color="0.6", linewidth=1.2, zorder=1)
    for position, value, row in zip(x, y, arms.to_dict("records"), strict=True):
        look = style[row["shown"]]
        sd = row["score_sd"] if row["score_sd"] == row["score_sd"] else None
        size = sizes.get(row["budget"], SIZE)
        axis.errorbar(
            position, value, yerr=sd, color=look.ink, marker=look.marker, markersize=size, linewidth=0.8, capsize=2,
            zorder=2, alpha=0.85,
        )  # fmt: skip
    if x.min() > 0 and x.max() > 20 * x.min():
        axis.set_xscale("log")
    else:
        axis.locator_params(axis="x", nbins=5)  # large numbers of a small range must not touch
    axis.set_xlabel(label)
    axis.margins(0.12)
    axis.grid(linewidth=0.3)


def pareto_front(cost: ArrayLike, score: ArrayLike) -> NDArray[np.bool_]:
    """Boolean mask of the Pareto front: points that no other point beats in cost or score without losing in the other.

    Args:
        cost: (points,), low is good.
        score: (points,), high is good.
    """
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"the same (points,) are needed twice, {x.shape} and {y.shape} were given")
    as_good = (x[None] <= x[:, None]) & (y[None] >= y[:, None])  # [i, j]: j is as good as i in both
    better = (x[None] < x[:, None]) | (y[None] > y[:, None])  # in one of them
    return np.asarray(~(as_good & better).any(axis=1), dtype=np.bool_)
