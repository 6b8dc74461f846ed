"""Arms that were run at three learning rates or more, as curves over the seeds that all their rates have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.reading.arms import CELL, with_names
from analysis.reading.curves import load_curve, stability_of
from analysis.reading.result_row import digest
from analysis.reading.runs import rows_of
from analysis.sections.arms import method_order
from analysis.stats.rates import RateCurve, rate_curve

LEAST_RATES = 3
USABLE = "usable"
READ = ("seed", "rate", "folder", "metric", "guessing", "settings", "steps")  # for the share of unstable runs


class ArmCurve(NamedTuple):
    """One arm's scores by learning rate.

    Attributes:
        name: within its cell, without the rate.
        method: of the arm.
        scores: index seeds, columns rates in rising order; no gaps.
        unstable: share of unstable runs at every rate; NaN where no losses were logged.
        dropped: rates that lack seeds the others have, for instance because their runs failed.
        constant: score of a constant answer; NaN if unknown.
        curve: what the scores say.
    """

    name: str
    method: str
    scores: pd.DataFrame
    unstable: dict[float, float]
    dropped: list[float]
    constant: float
    curve: RateCurve

    @property
    def parts(self) -> tuple[str, str]:
        """The method's name, and the settings that tell the arm from others of that name; "" where there are none."""
        plain, _, settings = self.name.partition(" [")
        return plain, settings.removesuffix("]")

    @property
    def stable(self) -> float | None:
        """The rate with the highest mean of those at which at most half of the runs are unstable; None if none is."""
        calm = [rate for rate in self.scores.columns if not self.unstable[rate] > 0.5]
        if self.curve.best in calm:  # also of two rates with the same mean
            return self.curve.best
        return max(calm, key=lambda rate: self.scores[rate].mean(), default=None)

    @property
    def verdict(self) -> str:
        """ "usable", or why the best rate carries no comparison."""
        if self.curve.edge:
            return "best at the edge: extend the grid"
        if self.unstable[self.curve.best] > 0.5:
            return "best where most runs are unstable: lower rates or a longer warm-up"
        return USABLE


def rate_curves(runs: pd.DataFrame) -> list[tuple[pd.DataFrame, list[ArmCurve]]]:
    """Every cell with arms at three rates or more, and the curves of these arms.

    Args:
        runs: rows of `load_runs`, with the column rate.
    """
    settings = [_without_rate(tree) for tree in runs["settings"]]
    runs = with_names(runs.assign(settings=settings, arm=[digest(tree) for tree in settings]))
    cells = []
    for _, cell in runs.groupby(CELL, sort=True):
        groups = [arm for _, arm in cell.groupby(["arm", "fingerprint"], sort=False)]
        groups.sort(key=lambda arm: (method_order(arm["method"].iloc[0]), arm["shown"].iloc[0]))
        arms = [curve for arm in groups if (curve := _arm(arm)) is not None]
        if arms:
            cells.append((cell, arms))
    return cells


class Line(NamedTuple):
    """An arm in a panel: its label there, and the name of the arm whose look it has."""

    label: str
    alike: str
    arm: ArmCurve


def panels_of(arms: Sequence[ArmCurve]) -> list[tuple[str, list[Line]]]:
    """The arms by the settings that tell those of one method apart, such as two warm-ups; a method looks alike in all.

    All arms in one panel, of no name, where a setting would have a single arm.
    """
    panels: dict[str, list[Line]] = {}
    first: dict[str, str] = {}
    for arm in arms:
        method, setting = arm.parts
        panels.setdefault(setting, []).append(Line(method, first.setdefault(method, arm.name), arm))
    apart = len(panels) > 1 and all(len(panel) > 1 for panel in panels.values())
    return list(panels.items()) if apart else [("", [Line(arm.name, arm.name, arm) for arm in arms])]


def _arm(arm: pd.DataFrame) -> ArmCurve | None:
    if arm["rate"].nunique() < LEAST_RATES:
        return None
    scores = arm.groupby(["seed", "rate"])["score"].mean().unstack()
    most = scores.notna().sum().max()
    whole = scores.loc[:, scores.notna().sum() == most].dropna()
    if whole.shape[1] < LEAST_RATES or not len(whole):
        return None
    seeds = set(whole.index)
    read = [run for run in rows_of(arm, *READ) if run["seed"] in seeds]
    unstable = {rate: _unstable([run for run in read if run["rate"] == rate]) for rate in whole}
    constant = float(arm["majority"].iloc[0])
    curve = rate_curve([float(rate) for rate in whole.columns], whole.to_numpy(float), constant)
    dropped = [float(rate) for rate in scores.columns if rate not in whole]
    name, method = map(str, arm[["shown", "method"]].iloc[0])
    return ArmCurve(name, method, whole, unstable, dropped, constant, curve)


def _unstable(runs: Sequence[dict[str, Any]]) -> float:
    """Share of unstable runs among those with logged losses."""
    curves = [(run, curve) for run in runs if (curve := load_curve(run)).loss]
    return sum(stability_of(*pair).unstable for pair in curves) / len(curves) if curves else math.nan


def _without_rate(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "trainer": {key: value for key, value in tree.get("trainer", {}).items() if key != "lr"}}
