"""Learning curves: mean over seeds of loss and held-out score by step, with the range of the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Look
from analysis.reading.curves import Curve, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ARMS = 12


def draw_curves(
    arms: Mapping[str, tuple[Look, Sequence[Curve]]],
    guessing: float,
    metric: str,
    path: Path,
    title: str,
    data: str,
) -> list[Path]:
    """Draws the training loss of every arm, and its held-out score where runs evaluated while they trained.

    Args:
        arms: name -> look, and curves of its runs.
        guessing: loss of the best constant answer, drawn as a line; NaN for none.
        metric: of the scores.
    """  # fmt: skip
    scored = any(curve.scores for _, curves in arms.values() for curve in curves)
    figure = new_figure(9.6 if scored else 6.4, 3.6 + 0.2 * max(0, len(arms) - 8))
    axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for name, (look, curves) in arms.items():
        handles[wrapped(name, 28)] = _band(axes[0], [curve.loss for curve in curves], look)
        if scored:
            _band(axes[1], [curve.scores for curve in curves if curve.scores], look)
    if not math.isnan(guessing):
        handles["guessing"] = axes[0].axhline(guessing, color="0.4", linewidth=1.0, linestyle=":")
    axes[0].set_ylabel("training loss")
    if scored:
        axes[1].set_ylabel(f"held-out {metric} (points)")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(linewidth=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, path, title, data, "Lines: means over seeds; bands: from the lowest to the highest. ")


def _band(axis: Axes, runs: Sequence[Points], look: Look) -> Any:
    """Draws the mean over the runs at the steps that all of them have, and their range; returns the line."""
    steps = sorted(set.intersection(*({step for step, _ in points} for points in runs))) if runs else []
    values = np.array([[dict(points)[step] for step in steps] for points in runs]).reshape(len(runs), len(steps))
    at = np.array(steps) + 1
    mean = values.mean(axis=0) if len(runs) else values.sum(axis=0)
    if len(runs) > 1:
        axis.fill_between(at, values.min(axis=0), values.max(axis=0), color=look.ink, alpha=0.15, linewidth=0)
    return axis.plot(at, mean, color=look.ink, linestyle=look.line, linewidth=1.4)[0]
