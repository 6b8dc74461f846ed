"""Statistics over several tasks: pooled intervals, robust means, and ranks of methods.

As in rliable (Agarwal et al., NeurIPS 2021) arrays are (runs, tasks), and resampling is stratified: runs are drawn
within each task, so that only seeds are uncertain. Nothing here generalises to other tasks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.stats.seeds import Array, Interval, finite


class Friedman(NamedTuple):
    """Friedman's test over blocks, and the average rank of every method (1 is the highest score)."""

    statistic: float
    p: float
    mean_ranks: Array


def stratified_bootstrap_t(scores: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 9_999) -> Interval:
    """Studentised bootstrap interval for the mean over tasks (Efron & Tibshirani 1993, section 12.5).

    A resample of equal values has no spread; its studentised mean counts as infinite, which widens the interval. From
    4 runs on such resamples are too rare to reach the ends of a 95 % interval.

    Args:
        scores: (runs, tasks), at least 4 runs; one task gives the plain bootstrap-t.
        rng: draws the resamples.
        level: of the interval.
        resamples: how many.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    x = finite(scores, runs=4, tasks=1)
    mean, error = float(x.mean()), float(_pooled_error(x))
    drawn = _drawn(x, rng, resamples)
    zero = 1e-12 * (abs(mean) + error)  # rounding is not a distance
    gaps, errors = drawn.mean(axis=(1, 2)) - mean, _pooled_error(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(gaps) <= zero, 0.0, gaps / np.where(errors > zero, errors, 0.0))
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(mean - high * error), float(mean - low * error)


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
    x, y = finite(first, runs=1, tasks=1), finite(second, runs=1, tasks=1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the tasks differ: {x.shape[1]} and {y.shape[1]}")
    signs = np.sign(x[:, None, :] - y[None, :, :])  # (runs, other runs, tasks)
    return float((signs.mean() + 1) / 2)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """Share of runs above each threshold, averaged over tasks: (thresholds,)."""
    x = finite(scores, runs=1, tasks=1)
    return (x[None] > np.asarray(thresholds, dtype=np.float64)[:, None, None]).mean(axis=(1, 2))


def profile_band(
    scores: ArrayLike, thresholds: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 1_000
) -> tuple[Array, Array]:
    """Percentile band of a performance profile, at each threshold by itself, runs drawn anew within each task.

    Returns:
        Lower and upper edge, each (thresholds,).
    """
    drawn = _drawn(finite(scores, runs=2, tasks=1), rng, resamples)  # (resamples, runs, tasks)
    edges = [(1 - level) / 2, (1 + level) / 2]
    each = [np.quantile((drawn > t).mean(axis=(1, 2)), edges) for t in np.asarray(thresholds, dtype=np.float64)]
    low, high = np.array(each).T
    return low, high


def friedman(scores: ArrayLike) -> Friedman:
    """Friedman's test with ties corrected.

    Args:
        scores: (blocks, methods), for instance one block per task or per task and seed; higher is better.
    """
    from scipy import stats

    x = finite(scores, blocks=2, methods=1)
    if x.shape[1] < 3:
        raise ValueError(f"Friedman's test compares at least 3 methods, got {x.shape[1]}; use sign_flip for two")
    mean_ranks = stats.rankdata(-x, axis=1).mean(axis=0)
    if (np.ptp(x, axis=1) == 0).all():
        return Friedman(0.0, 1.0, mean_ranks)
    test = stats.friedmanchisquare(*x.T)
    return Friedman(float(test.statistic), float(test.pvalue), mean_ranks)


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
