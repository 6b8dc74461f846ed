"""Score against learning rate, a line per arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Looks
from analysis.sections.rate_frames import ArmCurve


def draw_rates(arms: Sequence[ArmCurve], looks: Looks, metric: str, path: Path, title: str, data: str) -> list[Path]:
    """Draws the curves: standard errors as bars, unstable rates hollow, the best rate as a larger marker."""
    figure = new_figure(8.4, 3.8 + 0.2 * max(0, len(arms) - 10))
    axis = figure.subplots()
    for arm in arms:
        look = looks.of(arm.name, arm.method)
        mean, error = arm.scores.mean(), arm.scores.std(ddof=1) / math.sqrt(len(arm.scores))
        rates = list(mean.index)
        axis.plot(rates, mean, color=look.ink, linestyle=look.line, linewidth=1.3, label=wrapped(arm.name, 30))
        for rate in rates:
            spread = None if math.isnan(error[rate]) else error[rate]
            axis.errorbar(
                rate, mean[rate], yerr=spread, color=look.ink, capsize=2, linewidth=0.8, marker="o",
                markersize=8.5 if rate == arm.curve.best else 4.5,
                markerfacecolor="white" if arm.unstable[rate] > 0.5 else look.ink,
            )  # fmt: skip
    if not math.isnan(constant := arms[0].constant):
        axis.axhline(constant, color="0.4", linewidth=1.0, linestyle=":", label="constant answer")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"{metric} (points)")
    axis.grid(linewidth=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    remark = "Means over seeds with standard errors. Large: the best rate. Hollow: most runs are unstable. "
    return save_figure(figure, path, title, data, remark)
