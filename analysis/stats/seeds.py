"""Statistics of one sample of seeds and of paired differences: intervals, tests, effect sizes, power.

What is unusual: functions are small, pure and take arrays; whatever draws random numbers is given the generator.
With few seeds the choice of interval matters more than its level: at n = 8 a t interval covers about 95 % of
normal data while percentile and BCa intervals cover about 89 %, so t is the default for means, bootstrap-t for
skewed samples, and the other two belong to n of 20 and more. `coverage` shows it by simulation.

Arrays are (runs,) or, where a function says so, (runs, tasks) with one seed per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from experiments.studies.smallest_p import least_pairs as least_pairs
from experiments.studies.smallest_p import smallest_p as smallest_p

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]  # (..., runs) -> (...)
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


def sample(values: ArrayLike, least: int = 1) -> Array:
    """Checks and returns a sample (runs,).

    Raises:
        ValueError: not one-dimensional, fewer than `least` values, or one that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < least:
        raise ValueError(f"a sample (runs,) of at least {least} is needed, shape {x.shape} was given")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x


def summary(values: ArrayLike, level: float = 0.95) -> Summary:
    """Mean, standard deviation, median and t interval of (runs,)."""
    x = sample(values)
    low, high = t_interval(x, level) if x.size >= 3 else (math.nan, math.nan)
    sd = float(x.std(ddof=1)) if x.size > 1 else math.nan
    return Summary(x.size, float(x.mean()), sd, float(np.median(x)), low, high)


# -- intervals ---------------------------------------------------------------------------------------------


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval for the mean of (runs,), n at least 2."""
    from scipy import stats

    x = sample(values, least=2)
    half = stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return float(x.mean() - half), float(x.mean() + half)


def bootstrap_t(values: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 9_999) -> Interval:
    """Studentised bootstrap interval for the mean (Efron & Tibshirani 1993, section 12.5).

    A resample of equal values has no spread; its studentised mean counts as infinite, which widens the interval.
    From n = 4 on such resamples are too rare to reach the 95 % interval's ends.

    Raises:
        ValueError: fewer than four values.
    """
    x = sample(values, least=4)
    drawn = x[_indices(x.size, resamples, rng)]  # (resamples, n)
    return studentised(float(x.mean()), float(_error(x)), drawn.mean(1), _error(drawn), level)


def studentised(mean: float, error: float, means: Array, errors: Array, level: float) -> Interval:
    """The interval mean - q * error from resampled means and standard errors, both (resamples,)."""
    gap = means - mean
    gap[np.abs(gap) <= 1e-12 * (abs(mean) + error)] = 0.0  # rounding is no distance
    scale = np.where(errors > 1e-12 * (abs(mean) + error), errors, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gap == 0, 0.0, gap / scale)
    low, high = np.quantile(t, _tails(level), method="inverted_cdf")
    return float(mean - high * error), float(mean - low * error)


def percentile(
    values: ArrayLike, rng: Generator, statistic: Statistic | None = None, level: float = 0.95, resamples: int = 9_999
) -> Interval:
    """Percentile bootstrap interval; too short for small samples, see the module's docstring."""
    x = sample(values, least=2)
    low, high = np.quantile(_resampled(x, statistic, rng, resamples), _tails(level))
    return float(low), float(high)


def bca(
    values: ArrayLike, rng: Generator, statistic: Statistic | None = None, level: float = 0.95, resamples: int = 9_999
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987); for n of 20 and more.

    Args:
        values: (runs,).
        rng: draws the resamples.
        statistic: (..., runs) -> (...), None for the mean.
        level: of the interval.
        resamples: how many.
    """
    from scipy import stats

    x = sample(values, least=2)
    measure = statistic or _mean
    drawn = _resampled(x, statistic, rng, resamples)
    at = float(measure(x))
    if np.ptp(drawn) == 0:
        return at, at
    below = (np.count_nonzero(drawn < at) + np.count_nonzero(drawn <= at)) / (2 * drawn.size)
    left_out = measure(np.stack([np.delete(x, i) for i in range(x.size)]))  # (n,): the jackknife
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bias = stats.norm.ppf(below)
    z = bias + stats.norm.ppf(_tails(level))  # (2,)
    low, high = np.quantile(drawn, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def coverage(
    interval: Callable[[Array], Interval], draw: Callable[[], Array], truth: float, trials: int
) -> tuple[float, float]:
    """Share of simulated samples whose interval contains the truth, and that share's standard error."""
    hits = 0
    for _ in range(trials):
        low, high = interval(draw())
        hits += low <= truth <= high
    share = hits / trials
    return share, math.sqrt(share * (1 - share) / trials)


# -- paired tests ------------------------------------------------------------------------------------------


def sign_flip(differences: ArrayLike, rng: Generator | None = None, resamples: int = 99_999) -> float:
    """Two-sided p of the paired permutation test: under no effect each seed's difference may as well be negated.

    Args:
        differences: (runs,), or (runs, tasks), where the mean over tasks is tested and a seed's whole row flips.
        rng: draws sign patterns; needed only above 16 runs. Up to 16 all 2^n are taken and p is exact.
        resamples: sign patterns drawn; p is then (1 + as extreme) / (1 + drawn).

    Raises:
        ValueError: more than 16 runs and no rng.
    """
    x = np.asarray(differences, dtype=np.float64)
    x = sample(x.mean(axis=1) if x.ndim == 2 else x)
    total = abs(x.sum())
    slack = 1e-12 * np.abs(x).sum()
    if x.size <= EXACT_UP_TO:
        patterns = np.arange(2**x.size)
        signs = 1.0 - 2.0 * ((patterns[:, None] >> np.arange(x.size)) & 1)  # (2^n, n)
        return float(np.mean(np.abs(signs @ x) >= total - slack))
    if rng is None:
        raise ValueError(f"{x.size} pairs are sampled, not enumerated (up to {EXACT_UP_TO}): give an rng")
    flipped = np.abs(rng.choice([-1.0, 1.0], (resamples, x.size)) @ x)
    return float((1 + np.count_nonzero(flipped >= total - slack)) / (1 + resamples))


def wilcoxon(differences: ArrayLike, rng: Generator | None = None, resamples: int = 99_999) -> float:
    """Two-sided p of the signed-rank test, exact up to 16 non-zero pairs even with ties; zeros are dropped.

    It is the sign-flip test of the signed mid-ranks of |difference|.
    """
    from scipy import stats

    x = sample(differences)
    x = x[x != 0]
    return sign_flip(np.sign(x) * stats.rankdata(np.abs(x)), rng, resamples) if x.size else 1.0


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values (family,), in the order given; reject where at most alpha."""
    p = sample(p_values)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p-values lie between 0 and 1, {p.min()} to {p.max()} were given")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


# -- effect sizes and power --------------------------------------------------------------------------------


def paired_d(differences: ArrayLike) -> float:
    """Mean difference over its standard deviation (ddof 1), n at least 2; 0 when all are 0, else may be infinite."""
    x = sample(differences, least=2)
    if np.ptp(x) == 0:
        return math.copysign(math.inf, x[0]) if x[0] else 0.0
    return float(x.mean() / x.std(ddof=1))


def cliffs_delta(first: ArrayLike, second: ArrayLike) -> float:
    """P(first > second) - P(first < second) over all pairs of runs, from -1 to 1 (Cliff 1993); not paired."""
    return float(np.sign(sample(first)[:, None] - sample(second)[None, :]).mean())


def win_tie_loss(differences: ArrayLike, tie: float = 0.0) -> tuple[int, int, int]:
    """How many differences are above `tie`, within it, and below its negative."""
    x = sample(differences)
    wins, losses = int((x > tie).sum()), int((x < -tie).sum())
    return wins, x.size - wins - losses, losses


def power(effect: float, sd: float, pairs: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t test of n pairs finds a mean difference `effect` of spread `sd`."""
    from scipy import stats

    if pairs < 2 or not sd > 0:
        raise ValueError(f"power needs at least 2 pairs and a positive sd, {pairs} and {sd} were given")
    shift, bound = abs(effect) / sd * math.sqrt(pairs), stats.t.ppf(1 - alpha / 2, pairs - 1)
    # the wrong side by symmetry: scipy's nct.cdf of a low point is NaN at every few dozen places
    return float(stats.nct.sf(bound, pairs - 1, shift) + stats.nct.sf(bound, pairs - 1, -shift))


def seeds_needed(
    effect: float, sd: float, alpha: float = 0.05, family: int = 1, wanted: float = 0.8, most: int = 10_000
) -> int | None:
    """How many seeds would settle a comparison.

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


# -- shared ------------------------------------------------------------------------------------------------


def _mean(x: Array) -> Array:
    return x.mean(axis=-1)


def _error(x: Array) -> Array:
    """Standard error of the mean over the last axis."""
    return x.std(axis=-1, ddof=1) / math.sqrt(x.shape[-1])


def _tails(level: float) -> Array:
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    return np.array([(1 - level) / 2, (1 + level) / 2])


def _indices(n: int, resamples: int, rng: Generator) -> NDArray[np.int64]:
    return rng.integers(0, n, (resamples, n))


def _resampled(x: Array, statistic: Statistic | None, rng: Generator, resamples: int) -> Array:
    return (statistic or _mean)(x[_indices(x.size, resamples, rng)])
