"""Arms over all tasks that they share: mean ranks with their critical difference, and performance profiles.

A figure is drawn only if it can show something: `why_not_ranks` and `why_not_profiles` hold the reason against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.output.figure import new_figure, save_figure, source_of, wrapped
from analysis.output.looks import Look, Looks
from analysis.output.table import p_equation
from analysis.sections.shared_tasks import SharedTasks, mean_ranks
from analysis.stats.seeds import Array
from analysis.stats.tasks import cliques, performance_profile, profile_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SEEDS_FOR_PROFILE = 3
THRESHOLDS = 201


def why_not_ranks(pool: SharedTasks) -> str:
    """The reason why no critical-difference diagram is drawn, or ""."""
    if len(pool.arms) < 3:
        return f"No critical-difference diagram of {pool.label}: it compares three arms or more."
    _, bound = mean_ranks(pool)
    if bound > len(pool.arms) - 1:
        return (
            f"No critical-difference diagram of {pool.label}: with {len(pool.arms)} arms over "
            f"{len(pool.tasks)} tasks no two mean ranks can be {bound:.2f} apart, the critical difference."
        )
    return ""


def why_not_profiles(pool: SharedTasks) -> str:
    """The reason why no performance profile is drawn, or ""."""
    if pool.seeds < LEAST_SEEDS_FOR_PROFILE:
        return f"No performance profile of {pool.label}: its bands need {LEAST_SEEDS_FOR_PROFILE} common seeds."
    return ""


def draw_ranks(pool: SharedTasks, path: Path, title: str = "") -> list[Path]:
    """Critical-difference diagram (Demsar, JMLR 2006): mean ranks on a line, bars join arms not separated."""
    test, bound = mean_ranks(pool)
    order = np.argsort(test.mean_ranks, kind="stable")
    names = [wrapped(name, 34) for name in pool.arms]
    arms, half = len(names), -(-len(names) // 2)
    bars = cliques(test.mean_ranks, bound)
    top = 0.5 + 0.32 * len(bars)  # of the first label, below the bars
    step = 0.42 * max(name.count("\n") + 1 for name in names)
    bottom = top + step * half
    figure = new_figure(9.0, 0.5 * (bottom + 2.2) + 0.9)
    axis = figure.subplots()
    axis.set(xlim=(1, arms), ylim=(bottom, -1.5))
    axis.axis("off")
    axis.plot([1, arms], [0, 0], color="black", linewidth=1.2)
    for rank in range(1, arms + 1):
        axis.plot([rank, rank], [-0.14, 0], color="black", linewidth=1.2)
        axis.text(rank, -0.24, str(rank), ha="center", va="bottom", fontsize=9)
    axis.plot([1, 1 + bound], [-1.05, -1.05], color="black", linewidth=1.6, marker="|", markersize=8)
    axis.text(1 + bound / 2, -1.15, f"critical difference {bound:.2f}", ha="center", va="bottom", fontsize=9)
    for number, bar in enumerate(bars):
        ends = [test.mean_ranks[bar[0]] - 0.03, test.mean_ranks[bar[-1]] + 0.03]
        axis.plot(ends, [0.32 + 0.32 * number] * 2, color="#D55E00", linewidth=4, solid_capstyle="butt", clip_on=False)
    for position, arm in enumerate(order):
        left = position < half
        height = top + step * (position if left else arms - 1 - position) + 0.1
        edge, side = (1 - 0.012 * arms, "right") if left else (arms + 0.012 * arms, "left")
        rank = test.mean_ranks[arm]
        axis.plot([rank, rank, edge], [0, height, height], color="0.25", linewidth=0.9, clip_on=False)
        label = f"{names[arm]}  {rank:.2f}" if left else f"{rank:.2f}  {names[arm]}"
        axis.text(edge + (-0.008 if left else 0.008) * arms, height, label, ha=side, va="center", fontsize=9)
    joined = "Bars join arms whose mean ranks are less than that apart. " if bars else ""
    remark = (
        f"Mean rank over {len(pool.tasks)} tasks, 1 is the highest score. {joined}"
        f"Friedman {p_equation(test.p)}; Nemenyi at 0.05. "
    )
    return save_figure(figure, path, title, source_of(pool.citations), remark)


def draw_profiles(pool: SharedTasks, baseline: str, looks: Looks, path: Path, title: str = "") -> list[Path]:
    """Share of runs above each threshold, averaged over tasks, with a bootstrap band over seeds.

    Args:
        pool: of `LEAST_SEEDS_FOR_PROFILE` seeds or more.
        baseline: the method whose mean on a task is the 0 of that task; the mean of all arms if it has not one arm.
        looks: of the arms.
    """
    scores = {name: table.to_numpy(float) for name, table in pool.arms.items()}  # (seeds, tasks)
    base = pool.baseline_arm(baseline)
    centre = np.mean([scores[base]] if base else list(scores.values()), axis=(0, 1))  # (tasks,)
    shifted = {name: x - centre for name, x in scores.items()}
    ends = [f(x) for x in shifted.values() for f in (np.min, np.max)]
    room = 0.04 * (max(ends) - min(ends)) or 1.0
    thresholds = np.linspace(min(ends) - room, max(ends) + room, THRESHOLDS)
    figure = new_figure(9.0, 4.2)
    axis = figure.subplots()
    for name, x in shifted.items():
        _profile(axis, name, x, thresholds, looks.of(name, pool.methods[name]))
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    zero = f"the mean of {base}" if base else "the mean of all arms"
    axis.set_xlabel(f"points above {wrapped(zero, 60)} on the task")
    axis.set_ylabel("share of runs above")
    axis.set(xlim=(thresholds[0], thresholds[-1]), ylim=(-0.02, 1.02))
    axis.grid(linewidth=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, handlelength=3.2)
    remark = (
        f"{len(pool.tasks)} tasks, {pool.seeds} seeds. Bands: 95 % at each threshold, seeds resampled within "
        "each task; with few seeds they are too narrow. "
    )
    return save_figure(figure, path, title, source_of(pool.citations), remark)


def _profile(axis: Axes, name: str, x: Array, thresholds: Array, look: Look) -> None:
    low, high = profile_band(x, thresholds, np.random.default_rng(0))
    share = performance_profile(x, thresholds)
    axis.fill_between(thresholds, low, high, color=look.ink, alpha=0.13, linewidth=0)
    axis.plot(thresholds, share, color=look.ink, linestyle=look.line, linewidth=1.5, label=wrapped(name, 28))
