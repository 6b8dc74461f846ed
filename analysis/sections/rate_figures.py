"""Score against learning rate, a line per arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Look, Looks
from analysis.sections.rate_frames import ArmCurve, panels_of


def draw_rates(arms: Sequence[ArmCurve], looks: Looks, metric: str, path: Path, title: str, data: str) -> list[Path]:
    """Draws the curves: standard errors as bars, unstable rates hollow, the best rate as a larger marker.

    Arms that differ in a setting, such as two warm-ups, have a panel for each of its values.
    """
    panels = panels_of(arms)
    figure = new_figure(8.4 if len(panels) == 1 else 2.4 + 4.2 * len(panels), 3.8 + 0.2 * max(0, len(arms) - 10))
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (setting, panel) in zip(axes, panels, strict=True):
        for line in panel:
            _draw_arm(axis, line.arm, looks.of(line.alike, line.arm.method), wrapped(line.label, 30))
        if not math.isnan(constant := arms[0].constant):
            axis.axhline(constant, color="0.4", linewidth=1.0, linestyle=":", label="constant answer")
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_title(setting, fontsize=9)
        axis.grid(linewidth=0.3)
    axes[0].set_ylabel(f"{metric} (points)")
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside right center", frameon=False, fontsize=8)
    remark = "Means over seeds with standard errors. Large: the best rate. Hollow: most runs are unstable. "
    return save_figure(figure, path, title, data, remark)


def _draw_arm(axis: Any, arm: ArmCurve, look: Look, label: str) -> None:
    mean, error = arm.scores.mean(), arm.scores.std(ddof=1) / math.sqrt(len(arm.scores))
    rates = list(mean.index)
    axis.plot(rates, mean, color=look.ink, linestyle=look.line, linewidth=1.3, label=label)
    for rate in rates:
        spread = None if math.isnan(error[rate]) else error[rate]
        axis.errorbar(
            rate, mean[rate], yerr=spread, color=look.ink, capsize=2, linewidth=0.8, marker="o",
            markersize=8.5 if rate == arm.curve.best else 4.5,
            markerfacecolor="white" if arm.unstable[rate] > 0.5 else look.ink,
        )  # fmt: skip
