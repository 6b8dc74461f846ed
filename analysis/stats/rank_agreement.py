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
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.seeds import Array, finite, t_quantile

CHUNK = 1000  # shuffles drawn at once


class Agreement(NamedTuple):
    """A coefficient with its 95 % interval; NaN if it is not defined, or the interval of fewer than three seeds."""

    value: float
    low: float
    high: float


def tau_matrix(first: ArrayLike, second: ArrayLike | None = None) -> Array:
    """Kendall's tau-b between every row of `first` and every row of `second` (or of `first`).

    Returns:
        (rows of first, rows of second); NaN where a pattern has one rank everywhere.
    """
    a = finite(first, seeds=1, matrices=2)
    b = a if second is None else finite(second, seeds=1, matrices=2)
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
    taus = tau_matrix(finite(ranks, seeds=2, matrices=2))
    return _jackknife(lambda seeds: taus[np.ix_(seeds, seeds)][np.triu_indices(len(seeds), 1)].mean(), len(taus), level)


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
    return _jackknife(lambda seeds: float(taus[np.ix_(seeds, seeds)].mean()), len(taus), level)


def kendalls_w(ranks: ArrayLike) -> float:
    """Kendall's coefficient of concordance, corrected for ties (Kendall and Gibbons 1990, chapter 6).

    Args:
        ranks: (seeds, matrices), seeds at least 2.

    Returns:
        0 (no agreement) to 1; NaN where every pattern is constant.
    """
    return _concordance(*_places_and_ties(finite(ranks, seeds=2, matrices=2)))


def _places_and_ties(x: Array) -> tuple[Array, Array]:
    """Mid-ranks of every seed (seeds, matrices), and the sum of t^3 - t over its groups of t equal values (seeds,)."""
    counts = [np.unique(row, return_counts=True)[1] for row in x]
    return midranks(x), np.array([(count**3 - count).sum() for count in counts], dtype=np.float64)


def _concordance(places: Array, ties: Array) -> float:
    m, n = places.shape
    spread = ((places.sum(axis=0) - m * (n + 1) / 2) ** 2).sum()
    most = m**2 * (n**3 - n) - m * float(ties.sum())
    return float(12 * spread / most) if most > 0 else math.nan


def concordance(ranks: ArrayLike, level: float = 0.95) -> Agreement:
    """Kendall's W with an interval over seeds.

    W rises when seeds are few, whatever they are (its mean is 1 / m without agreement), so the jackknife works on
    (m W - 1) / (m - 1), the mean Spearman correlation where there are no ties, and is carried back to W.
    """
    places, ties = _places_and_ties(finite(ranks, seeds=2, matrices=2))

    def correlation(seeds: NDArray[np.int64]) -> float:
        m = len(seeds)
        return (m * _concordance(places[seeds], ties[seeds]) - 1) / (m - 1)

    m = len(places)
    value, low, high = ((1 + (m - 1) * part) / m for part in _jackknife(correlation, m, level))
    return Agreement(value, max(0.0, low) if low == low else low, high)


def _jackknife(statistic: Callable[[NDArray[np.int64]], float], n: int, level: float) -> Agreement:
    """Student's interval of the n pseudo-values, cut to -1..1; a jackknifed correlation needs 3 seeds."""
    every = np.arange(n)
    value = statistic(every)
    if n < 3 or math.isnan(value):
        return Agreement(value, math.nan, math.nan)
    left_out = np.array([statistic(np.delete(every, i)) for i in range(n)])
    pseudo = n * value - (n - 1) * left_out
    half = t_quantile((1 + level) / 2, n - 1) * pseudo.std(ddof=1) / math.sqrt(n)
    return Agreement(value, max(-1.0, value - half), min(1.0, value + half))


def agreement_p(ranks: ArrayLike, strata: Sequence[Any] | None = None, resamples: int = 9_999, seed: int = 0) -> float:
    """One-sided permutation p of W: how often patterns that are shuffled in each seed separately agree as much.

    Args:
        ranks: (seeds, matrices), seeds at least 2.
        strata: the type of every matrix. Shuffles then stay within a type, and a small p means that seeds agree on
            more than which types get the ranks.
        resamples: shuffles; p is (1 + as extreme) / (1 + resamples).
        seed: of the shuffles. Patterns of one shape are shuffled alike.
    """
    x = finite(ranks, seeds=2, matrices=2)
    places = midranks(x)  # a shuffle keeps the ties, so W grows with the sum below
    groups = groups_of(strata, x.shape[1])
    observed = float((places.sum(axis=0) ** 2).sum())
    total = np.zeros((resamples, x.shape[1]))
    for row, order in zip(places, _shuffles(seed, len(x), tuple(map(tuple, groups)), resamples), strict=True):
        total += row[order]
    extreme = int(np.count_nonzero((total**2).sum(axis=1) >= observed * (1 - 1e-12)))
    return (1 + extreme) / (1 + resamples)


@lru_cache(maxsize=8)
def _shuffles(seed: int, seeds: int, groups: tuple[tuple[int, ...], ...], resamples: int) -> NDArray[np.uint16]:
    """Orders of the matrices, each shuffled within its group: (seeds, resamples, matrices).

    Drawing takes ten times as long as applying, and the arms of a table have the same matrices.
    """
    rng = np.random.default_rng(seed)
    orders = np.empty((seeds, resamples, sum(map(len, groups))), dtype=np.uint16)
    for start in range(0, resamples, CHUNK):
        part = slice(start, min(start + CHUNK, resamples))
        for order in orders[:, part]:
            for members in map(list, groups):
                order[:, members] = rng.permuted(np.tile(members, (len(order), 1)), axis=1)
    return orders


def midranks(x: Array) -> Array:
    """Ranks from 1 within each row, equal values sharing the mean of theirs."""
    import pandas as pd

    return pd.DataFrame(x).rank(axis=1).to_numpy()


def groups_of(strata: Sequence[Any] | None, n: int) -> list[NDArray[np.int64]]:
    """Positions of the matrices of each type; all in one group without types."""
    if strata is None:
        return [np.arange(n)]
    if len(strata) != n:
        raise ValueError(f"{len(strata)} types are given for {n} matrices")
    names = list(dict.fromkeys(strata))
    return [np.flatnonzero([kind == name for kind in strata]) for name in names]
