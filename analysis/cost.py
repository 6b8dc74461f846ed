"""What a score costs: adapter parameters, time of a step, peak memory, size of the adapter's file, and ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.table import Table

if TYPE_CHECKING:
    import pandas as pd

PLACE = ["task", "model", "protocol", "recipe"]
COSTS = {  # column of the comparison -> what an axis says, and what one unit of it is
    "params_final": ("adapter parameters (thousands)", 1e3),
    "step_seconds_median": ("step time (ms)", 1e-3),
    "peak_memory_mib": ("peak memory (MiB)", 1.0),
    "adapter_bytes": ("adapter file (KiB)", 1024.0),
}


def pareto_front(cost: ArrayLike, score: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point beats: none costs as little or less and scores as high or higher, one of both truly.

    Args:
        cost: (points,), low is good.
        score: (points,), high is good.
    """
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"the same (points,) are needed twice, {x.shape} and {y.shape} were given")
    as_good = (x[None] <= x[:, None]) & (y[None] >= y[:, None])  # [i, j]: j is as good as i in both
    truly = (x[None] < x[:, None]) | (y[None] > y[:, None])
    beaten = np.asarray((as_good & truly).any(axis=1), dtype=np.bool_)
    return ~beaten


def points_of(compared: Table) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """For every task, model, protocol and recipe: where that is, and its arms with mean score and costs.

    Args:
        compared: from `analysis.table.comparison`.
    """
    arms = compared.frame[compared.frame["method"] != "majority"]
    return [
        (dict(zip(PLACE, key, strict=True)), cell.reset_index(drop=True))
        for key, cell in arms.groupby(PLACE, sort=True)
        if len(cell) > 1
    ]


def cost_table(compared: Table) -> Table:
    """Score, ranks and parameters at the start, at the peak and at the end, time, memory and file of every arm.

    Args:
        compared: from `analysis.table.comparison`.
    """
    arms = compared.frame[compared.frame["method"] != "majority"]
    sizes = [f"{count}_{when}" for count in ("rank_sum", "params") for when in ("initial", "peak", "final")]
    columns = [
        "Task", "Protocol", "Model", "Budget", "Method", "n", "Score",
        "Rank sum start", "Rank sum peak", "Rank sum end", "Parameters start", "Parameters peak", "Parameters end",
        "Head", "Other trained", "Step ms", "Training s", "Memory MiB", "Adapter KiB",
    ]  # fmt: skip
    rows = [
        [r["task"], r["protocol"], r["model"], r["budget"], r["shown"], str(r["n"]), f"{r['score_mean']:.2f}"]
        + [_shown(r[size]) for size in [*sizes, "head_params", "other_params"]]
        + [_shown(1000 * r["step_seconds_median"]), _shown(r["train_seconds_median"]), _shown(r["peak_memory_mib"])]
        + [_shown(r["adapter_bytes"] / 1024)]
        for r in arms.to_dict("records")
    ]
    notes = [
        "Means over seeds; step and training time are medians. Parameters are the adapter's, head and other trained "
        "parts apart. Memory is the accelerator's and empty on a CPU.",
        "Times of runs on other machines or thread counts do not compare; the comparison table names such runs.",
    ]
    kept = [
        "task",
        "protocol",
        "model",
        "recipe",
        "budget",
        "shown",
        "n",
        "score_mean",
        *sizes,
        "head_params",
        "other_params",
    ]
    kept += ["step_seconds_median", "train_seconds_median", "peak_memory_mib", "adapter_bytes"]
    return Table("What every arm costs.", columns, rows, notes, arms[kept].reset_index(drop=True))


def _shown(value: Any) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
