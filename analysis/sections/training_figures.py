"""Learning curves: mean over seeds of loss and held-out score by step, with the range of the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.figure import COLOURS, new_figure, numbered, save_figure, wrapped
from analysis.reading.curves import Curve, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ARMS = 12
STYLES = ("-", "--")  # of the first eight arms, and of the others


def draw_curves(
    arms: Mapping[str, Sequence[Curve]],
    names: Sequence[str],
    guessing: float,
    metric: str,
    path: Path,
    title: str,
    data: str,
) -> list[Path]:
    """Draws the training loss of every arm, and its held-out score where runs evaluated while they trained.

    Args:
        arms: name -> curves of its runs.
        names: all arms of the report, which fix the colours.
        guessing: loss of the best constant answer, drawn as a line; NaN for none.
        metric: of the scores.
    """  # fmt: skip
    numbers = numbered([*names, *arms])
    scored = any(curve.scores for curves in arms.values() for curve in curves)
    figure = new_figure(9.6 if scored else 6.4, 3.6 + 0.2 * max(0, len(arms) - 8))
    axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for name in sorted(arms, key=numbers.__getitem__):
        colour, style = COLOURS[numbers[name] % len(COLOURS)], STYLES[numbers[name] // len(COLOURS) % len(STYLES)]
        curves = arms[name]
        handles[wrapped(name, 28)] = _band(axes[0], [curve.loss for curve in curves], colour, style)
        if scored:
            _band(axes[1], [curve.scores for curve in curves if curve.scores], colour, style)
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


def _band(axis: Axes, runs: Sequence[Points], colour: str, style: str) -> Any:
    """Draws the mean over the runs at the steps that all of them have, and their range; returns the line."""
    steps = sorted(set.intersection(*({step for step, _ in points} for points in runs))) if runs else []
    values = np.array([[dict(points)[step] for step in steps] for points in runs]).reshape(len(runs), len(steps))
    at = np.array(steps) + 1
    mean = values.mean(axis=0) if len(runs) else values.sum(axis=0)
    if len(runs) > 1:
        axis.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    return axis.plot(at, mean, color=colour, linestyle=style, linewidth=1.4)[0]
