"""Statistics over several tasks: pooled intervals, robust means, and ranks of methods.

What is unusual: as in rliable (Agarwal et al., NeurIPS 2021) arrays are (runs, tasks) and runs are resampled
within each task (stratified), so that tasks stay what they are and only seeds are uncertain. No statement here
reaches beyond the tasks at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.stats.seeds import Array, Interval, studentised


class Friedman(NamedTuple):
    """Friedman's test over blocks, and the average rank of every method (1 is the highest score)."""

    statistic: float
    p: float
    f_statistic: float
    f_p: float
    mean_ranks: Array


def table(scores: ArrayLike, least: int = 1) -> Array:
    """Checks and returns (runs, tasks).

    Raises:
        ValueError: another shape, fewer than `least` runs, no task, or a value that is not finite.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < least or not x.shape[1]:
        raise ValueError(f"scores (runs, tasks) with at least {least} runs are needed, shape {x.shape} was given")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} scores are not finite")
    return x


def stratified_bootstrap(
    scores: ArrayLike,
    rng: Generator,
    statistic: Callable[[Array], float] | None = None,
    level: float = 0.95,
    resamples: int = 2_000,
) -> Interval:
    """Percentile interval of a statistic of (runs, tasks), runs drawn anew within each task.

    Like every percentile interval it is too short for few runs; for the mean use `stratified_bootstrap_t`.

    Args:
        scores: (runs, tasks).
        rng: draws the resamples.
        statistic: (runs, tasks) -> float, None for the mean.
        level: of the interval.
        resamples: how many.
    """
    x = table(scores, least=2)
    drawn = _drawn(x, rng, resamples)  # (resamples, runs, tasks)
    values = drawn.mean(axis=(1, 2)) if statistic is None else np.array([statistic(one) for one in drawn])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def stratified_bootstrap_t(scores: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 9_999) -> Interval:
    """Studentised interval for the mean over tasks of (runs, tasks), at least 4 runs."""
    x = table(scores, least=4)
    drawn = _drawn(x, rng, resamples)
    return studentised(float(x.mean()), float(_pooled_error(x)), drawn.mean(axis=(1, 2)), _pooled_error(drawn), level)


def _drawn(x: Array, rng: Generator, resamples: int) -> Array:
    runs, tasks = x.shape
    index = rng.integers(0, runs, (resamples, runs, tasks))
    return np.take_along_axis(x[None], index, axis=1)


def _pooled_error(x: Array) -> Array:
    """Standard error of the mean over tasks of (..., runs, tasks), tasks independent given the seeds drawn."""
    variances = x.var(axis=-2, ddof=1) / x.shape[-2]  # (..., tasks)
    return np.sqrt(variances.sum(axis=-1)) / x.shape[-1]


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all runs of all tasks: a quarter, rounded down, is cut at either end."""
    x = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    cut = x.size // 4
    return float(x[cut : x.size - cut].mean())


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Chance that a run of the first beats one of the second on the same task, ties half, averaged over tasks.

    Args:
        first: (runs, tasks).
        second: (other runs, tasks).
    """
    x, y = table(first), table(second)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the tasks differ: {x.shape[1]} and {y.shape[1]}")
    signs = np.sign(x[:, None, :] - y[None, :, :])  # (runs, other runs, tasks)
    return float((signs.mean() + 1) / 2)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """Share of runs above each threshold, averaged over tasks: (thresholds,)."""
    x = table(scores)
    return (x[None] > np.asarray(thresholds, dtype=np.float64)[:, None, None]).mean(axis=(1, 2))


def profile_band(
    scores: ArrayLike, thresholds: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 1_000
) -> tuple[Array, Array]:
    """Percentile band of a performance profile, at each threshold by itself, runs drawn anew within each task.

    Returns:
        Lower and upper edge, each (thresholds,).
    """
    drawn = _drawn(table(scores, least=2), rng, resamples)  # (resamples, runs, tasks)
    edges = [(1 - level) / 2, (1 + level) / 2]
    each = [np.quantile((drawn > t).mean(axis=(1, 2)), edges) for t in np.asarray(thresholds, dtype=np.float64)]
    low, high = np.array(each).T
    return low, high


def friedman(scores: ArrayLike) -> Friedman:
    """Friedman's test with ties corrected, and Iman & Davenport's F form, which is less conservative.

    Args:
        scores: (blocks, methods), for instance one block per task or per task and seed; higher is better.
    """
    from scipy import stats

    x = table(scores, least=2)
    blocks, methods = x.shape
    if methods < 3:
        raise ValueError(f"Friedman's test compares at least 3 methods, {methods} were given; use sign_flip for two")
    ranks = stats.rankdata(-x, axis=1)  # (blocks, methods)
    spread = float(((ranks - (methods + 1) / 2) ** 2).sum())
    if spread == 0:
        return Friedman(0.0, 1.0, 0.0, 1.0, ranks.mean(axis=0))
    between = float(((ranks.mean(axis=0) - (methods + 1) / 2) ** 2).sum()) * blocks**2
    statistic = (methods - 1) * between / spread
    p = float(stats.chi2.sf(statistic, methods - 1))
    room = blocks * (methods - 1) - statistic
    f = (blocks - 1) * statistic / room if room > 1e-12 * statistic else math.inf
    f_p = float(stats.f.sf(f, methods - 1, (methods - 1) * (blocks - 1)))
    return Friedman(statistic, p, f, f_p, ranks.mean(axis=0))


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's bound: average ranks at least this far apart differ (Demsar, JMLR 2006, section 3.2.2)."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def cliques(mean_ranks: ArrayLike, bound: float) -> list[list[int]]:
    """Largest groups of methods whose average ranks lie within the bound, the bars of the diagram.

    Returns:
        Indices into `mean_ranks`, the lowest rank first; groups of one are left out.
    """
    ranks = np.asarray(mean_ranks, dtype=np.float64)
    order = np.argsort(ranks, kind="stable")
    groups: list[list[int]] = []
    for start in range(len(order)):
        group = [int(i) for i in order[start:] if ranks[i] - ranks[order[start]] < bound]
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return groups
