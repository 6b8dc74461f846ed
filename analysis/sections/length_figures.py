"""Difference to the baseline against length of training, a panel for each budget."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Looks
from analysis.sections.arms import budget_order

APART = 0.05  # of the x axis's decade, between arms at one length


def draw_lengths(frame: pd.DataFrame, looks: Looks, base: str, path: Path, title: str) -> list[Path]:
    """Draws the differences of one task, with their intervals over seeds.

    Args:
        frame: of `lengths`, one task, model, protocol and recipe.
        looks: of the arms.
        base: name of the baseline.
        path: of the figure, without suffix.
        title: above it.

    Returns:
        The files.
    """
    budgets = sorted(set(frame["budget"]), key=budget_order)
    figure = new_figure(2.6 + 2.7 * len(budgets), 3.6)
    axes = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    names, steps = list(dict.fromkeys(frame["name"])), sorted(set(frame["steps"]))
    for axis, budget in zip(axes, budgets, strict=True):
        axis.axhline(0, color="0.4", linewidth=1)
        for name, arm in frame[frame["budget"] == budget].groupby("name", sort=False):
            look = looks.of(str(arm["row_name"].iloc[0]), str(arm["method"].iloc[0]))
            shift = 10 ** (APART * (names.index(name) - (len(names) - 1) / 2))
            axis.errorbar(
                arm["steps"] * shift, arm["mean"], yerr=[arm["mean"] - arm["low"], arm["high"] - arm["mean"]],
                color=look.ink, linestyle=look.line, marker=look.marker, markersize=5, linewidth=1.3, capsize=2,
                label=wrapped(str(name), 30),
            )  # fmt: skip
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(steps, [f"{step:,}" for step in steps])
        axis.set_xlim(steps[0] / 1.7, steps[-1] * 1.7)
        axis.set_title(budget, fontsize=9)
        axis.set_xlabel("steps")
        axis.grid(linewidth=0.3)
    axes[0].set_ylabel(f"difference to {base} (points)")
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside right center", frameon=False, fontsize=8)
    data = "; ".join(sorted({text for text in frame["citation"] if text}))
    return save_figure(figure, path, title, data, "Paired by seed, with 95 % t intervals over seeds. ")
