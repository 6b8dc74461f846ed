"""Do runs that differ only in their seed end with the same ranks? Agreement of rank patterns, and what moved when.

Seeds are the sample, matrices are not. A pattern is one observation of its seed, so intervals come
from leaving out seeds (the mean over pairs of seeds is a U-statistic; Arvesen 1969), never from resampling the
matrices as if they were independent. Ranks are small whole numbers, so ties are everywhere: tau is tau-b, and
Kendall's W is corrected for ties.

Arrays are (seeds, matrices): a row is the final ranks of one run, in one order of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from analysis.stats.seeds import Array

CHUNK = 1000  # shuffles drawn at once


class Agreement(NamedTuple):
    """A coefficient with its 95 % interval; NaN where it is not defined or fewer than three seeds are there."""

    value: float
    low: float
    high: float


def pattern_array(values: ArrayLike, seeds: int = 1) -> Array:
    """Checks and returns patterns (seeds, matrices).

    Raises:
        ValueError: not two-dimensional, fewer than `seeds` rows or two matrices, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < seeds or x.shape[1] < 2:
        raise ValueError(f"patterns (seeds of at least {seeds}, matrices of at least 2) are needed, not {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a pattern holds a value that is not finite")
    return x


def tau_matrix(first: ArrayLike, second: ArrayLike | None = None) -> Array:
    """Kendall's tau-b between every row of `first` and every row of `second` (or of `first`).

    Returns:
        (rows of first, rows of second); NaN where a pattern has one rank everywhere.
    """
    a = pattern_array(first)
    b = a if second is None else pattern_array(second)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"patterns of {a.shape[1]} and {b.shape[1]} matrices cannot be compared")
    return _pair_signs(a) @ _pair_signs(b).T


def _pair_signs(x: Array) -> Array:
    """Signs of all differences of two matrices (seeds, pairs), scaled so that a product of two rows is tau-b."""
    left, right = np.triu_indices(x.shape[1], 1)
    signs = np.sign(x[:, left] - x[:, right])
    length = np.sqrt((signs**2).sum(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return signs / np.where(length > 0, length, np.nan)


def mean_tau(ranks: ArrayLike, level: float = 0.95) -> Agreement:
    """Mean tau-b over all pairs of seeds, with a jackknife interval over seeds.

    Args:
        ranks: (seeds, matrices), seeds at least 2; the interval needs 3.
        level: of the interval.
    """
    taus = tau_matrix(pattern_array(ranks, seeds=2))
    return _jackknife(lambda kept: taus[np.ix_(kept, kept)][np.triu_indices(len(kept), 1)].mean(), len(taus), level)


def mean_tau_between(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Agreement:
    """Mean tau-b between a seed of one method and a seed of another, over all such pairs.

    Args:
        first, second: (seeds, matrices); the interval leaves one seed of each out at a time where both have the same
            number of seeds, and is NaN otherwise.
        level: of the interval.
    """
    taus = tau_matrix(first, second)
    if taus.shape[0] != taus.shape[1]:
        return Agreement(float(taus.mean()), math.nan, math.nan)
    return _jackknife(lambda kept: float(taus[np.ix_(kept, kept)].mean()), len(taus), level)


def kendalls_w(ranks: ArrayLike) -> float:
    """Kendall's coefficient of concordance, corrected for ties (Kendall and Gibbons 1990, chapter 6).

    Args:
        ranks: (seeds, matrices), seeds at least 2.

    Returns:
        0 (no agreement) to 1; NaN where every pattern is constant.
    """
    from scipy import stats

    x = pattern_array(ranks, seeds=2)
    m, n = x.shape
    places = stats.rankdata(x, axis=1)  # mid-ranks (seeds, matrices)
    spread = ((places.sum(axis=0) - m * (n + 1) / 2) ** 2).sum()
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in x))
    most = m**2 * (n**3 - n) - m * ties
    return float(12 * spread / most) if most > 0 else math.nan


def concordance(ranks: ArrayLike, level: float = 0.95) -> Agreement:
    """Kendall's W with an interval over seeds.

    W rises when seeds are few, whatever they are (its mean is 1 / m without agreement), so the jackknife works on
    (m W - 1) / (m - 1), the mean Spearman correlation where there are no ties, and is carried back to W.
    """
    x = pattern_array(ranks, seeds=2)

    def correlation(kept: NDArray[np.int64]) -> float:
        m = len(kept)
        return (m * kendalls_w(x[kept]) - 1) / (m - 1)

    m = len(x)
    value, low, high = ((1 + (m - 1) * part) / m for part in _jackknife(correlation, m, level))
    return Agreement(value, max(0.0, low) if low == low else low, high)


def _jackknife(statistic: Callable[[NDArray[np.int64]], float], n: int, level: float) -> Agreement:
    """Student's interval of the n pseudo-values, cut to -1..1; a jackknifed correlation needs 3 seeds."""
    from scipy import stats

    every = np.arange(n)
    value = statistic(every)
    if n < 3 or math.isnan(value):
        return Agreement(value, math.nan, math.nan)
    left_out = np.array([statistic(np.delete(every, i)) for i in range(n)])
    pseudo = n * value - (n - 1) * left_out
    half = stats.t.ppf((1 + level) / 2, n - 1) * pseudo.std(ddof=1) / math.sqrt(n)
    return Agreement(value, max(-1.0, value - half), min(1.0, value + half))


def agreement_p(ranks: ArrayLike, rng: Generator, strata: Sequence[Any] | None = None, resamples: int = 9_999) -> float:
    """One-sided permutation p of W: how often do patterns agree as much that are shuffled in every seed apart?

    Args:
        ranks: (seeds, matrices), seeds at least 2.
        rng: draws the shuffles.
        strata: the type of every matrix. Then shuffles stay within a type, and a small p says that seeds agree on
            more than which types get the ranks.
        resamples: shuffles; p is (1 + as extreme) / (1 + resamples).
    """
    from scipy import stats

    x = pattern_array(ranks, seeds=2)
    places = stats.rankdata(x, axis=1)  # ties stay what they are in a shuffle, so W grows with the sum below
    groups = groups_of(strata, x.shape[1])
    observed = float((places.sum(axis=0) ** 2).sum())
    extreme = 0
    for start in range(0, resamples, CHUNK):
        total = np.zeros((min(CHUNK, resamples - start), x.shape[1]))  # (shuffles, matrices)
        for row in places:
            for members in groups:
                total[:, members] += rng.permuted(np.tile(row[members], (len(total), 1)), axis=1)
        extreme += int(np.count_nonzero((total**2).sum(axis=1) >= observed * (1 - 1e-12)))
    return (1 + extreme) / (1 + resamples)


def groups_of(strata: Sequence[Any] | None, n: int) -> list[NDArray[np.int64]]:
    """Positions of the matrices of each type; one group of all without types."""
    if strata is None:
        return [np.arange(n)]
    if len(strata) != n:
        raise ValueError(f"{len(strata)} types are given for {n} matrices")
    names = list(dict.fromkeys(strata))
    return [np.flatnonzero([kind == name for kind in strata]) for name in names]
