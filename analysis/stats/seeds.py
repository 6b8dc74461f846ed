"""Statistics of one sample of seeds and of paired differences: intervals, tests, effect sizes, power.

Functions are pure and take arrays; those that draw random numbers are given the generator. Arrays are (runs,) or,
where a function says so, (runs, tasks) with one seed per row.

The t interval is the default for means: at n = 8 it covers about 95 % of normal data, percentile and BCa bootstrap
intervals about 89 %. `analysis.stats.tasks.stratified_bootstrap_t` serves pooled and skewed metrics.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from experiments.studies.power import power as power
from experiments.studies.smallest_p import least_pairs
from experiments.studies.smallest_p import smallest_p as smallest_p

Array = NDArray[np.float64]
Interval = tuple[float, float]
EXACT_UP_TO = 16  # pairs: 2^16 sign patterns are enumerated, more are sampled


class Summary(NamedTuple):
    """A sample in short; sd has ddof 1 and is NaN for one run, the interval is NaN below three runs."""

    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


def finite(values: ArrayLike, **axes: int) -> Array:
    """Checks and returns an array, for instance `finite(scores, runs=4, tasks=1)`.

    Args:
        values: any numbers.
        axes: the name of every axis and its least length.

    Raises:
        ValueError: another number of axes, one that is too short, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != len(axes) or any(size < least for size, least in zip(x.shape, axes.values(), strict=True)):
        needed = ", ".join(f"{name} of at least {least}" for name, least in axes.items())
        raise ValueError(f"an array ({needed}) is needed, shape {x.shape} was given")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x


def summary(values: ArrayLike, level: float = 0.95) -> Summary:
    """Mean, standard deviation, median and t interval of (runs,)."""
    x = finite(values, runs=1)
    low, high = t_interval(x, level) if x.size >= 3 else (math.nan, math.nan)
    sd = float(x.std(ddof=1)) if x.size > 1 else math.nan
    return Summary(x.size, float(x.mean()), sd, float(np.median(x)), low, high)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval for the mean of (runs,), n at least 2."""
    x = finite(values, runs=2)
    half = t_quantile((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return float(x.mean() - half), float(x.mean() + half)


@cache
def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's distribution: `scipy.stats.t.ppf`, without the 0.6 s that importing scipy.stats takes."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def sign_flip(differences: ArrayLike, rng: Generator | None = None, resamples: int = 99_999) -> float:
    """Two-sided p of the paired permutation test: without an effect, every sign of a difference is equally likely.

    Args:
        differences: (runs,), or (runs, tasks), where the mean over tasks is tested and a seed's whole row flips.
        rng: draws sign patterns; needed above 16 runs. Up to 16, all 2^n patterns are used and p is exact.
        resamples: sign patterns drawn; p is then (1 + as extreme) / (1 + drawn).

    Raises:
        ValueError: more than 16 runs and no rng.
    """
    x = np.asarray(differences, dtype=np.float64)
    x = finite(x.mean(axis=1) if x.ndim == 2 else x, runs=1)
    total = abs(x.sum())
    slack = 1e-12 * np.abs(x).sum()
    flipped = np.abs(sign_patterns(x.size, rng, resamples) @ x)
    extreme = np.count_nonzero(flipped >= total - slack)
    return float(extreme / len(flipped) if x.size <= EXACT_UP_TO else (1 + extreme) / (1 + resamples))


def sign_patterns(runs: int, rng: Generator | None, resamples: int) -> Array:
    """Signs (patterns, runs): all 2^n up to 16 runs, else `resamples` drawn ones.

    Raises:
        ValueError: more than 16 runs and no rng.
    """
    if runs <= EXACT_UP_TO:
        bits = (np.arange(2**runs)[:, None] >> np.arange(runs)) & 1
        return 1.0 - 2.0 * bits.astype(np.float64)
    if rng is None:
        raise ValueError(f"{runs} pairs are more than {EXACT_UP_TO}, so sign patterns are sampled: pass rng")
    return rng.choice([-1.0, 1.0], (resamples, runs))


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values (family,), in the order given; reject where at most alpha."""
    p = finite(p_values, family=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p-values lie between 0 and 1, {p.min()} to {p.max()} were given")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def paired_d(differences: ArrayLike) -> float:
    """Mean difference over its standard deviation (ddof 1), n at least 2; 0 when all are 0, else may be infinite."""
    x = finite(differences, runs=2)
    if np.ptp(x) == 0:
        return math.copysign(math.inf, x[0]) if x[0] else 0.0
    return float(x.mean() / x.std(ddof=1))


def win_tie_loss(differences: ArrayLike, tie: float = 0.0) -> tuple[int, int, int]:
    """How many differences are above `tie`, within it, and below its negative."""
    x = finite(differences, runs=1)
    wins, losses = int((x > tie).sum()), int((x < -tie).sum())
    return wins, x.size - wins - losses, losses


def seeds_needed(
    effect: float, sd: float, alpha: float = 0.05, family: int = 1, wanted: float = 0.8, most: int = 10_000
) -> int | None:
    """The number of seeds that a comparison needs.

    Args:
        effect: the mean difference worth finding, in points; not the one just observed, which is biased.
        sd: standard deviation of the paired differences.
        alpha: level; divided by `family`, the number of confirmatory comparisons.
        family: see alpha.
        wanted: power.
        most: give up above.

    Returns:
        The least n that has the power and at which the exact sign-flip test can reach its level; None above `most`.
    """
    level = alpha / family
    low = max(2, least_pairs(alpha, family))
    if effect == 0 or power(effect, sd, most, level) < wanted:
        return None
    high = most
    while low < high:  # power grows with n
        middle = (low + high) // 2
        if power(effect, sd, middle, level) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def seeds_needed_range(
    effect: float, sd: float, runs: int, alpha: float = 0.05, family: int = 1, level: float = 0.95
) -> tuple[int | None, int | None]:
    """`seeds_needed` at both ends of the interval for the standard deviation, which few seeds leave wide.

    Args:
        effect: as in `seeds_needed`, alpha and family too.
        sd: standard deviation of `runs` paired differences.
        runs: from which sd was estimated, at least 2.
        level: of the chi-squared interval for sd.
    """
    from scipy import stats

    tails = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], runs - 1)
    low, high = (seeds_needed(effect, sd * math.sqrt((runs - 1) / tail), alpha, family) for tail in tails)
    return low, high
