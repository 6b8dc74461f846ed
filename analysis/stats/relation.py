"""Do the matrices that carry more get more ranks? Contributions (`experiments.contribution`) against ranks.

Both patterns are alike in all seeds, so ten seeds of 36 matrices are not 360 independent points. A
permutation moves the matrices of all seeds together, and a bootstrap draws matrices with all their seeds. The seed is
the sample only where two arms are paired by it. "Within types" compares a matrix with others of its type only: types
differ in size, and a rank costs more parameters in a large matrix than in a small one.

Arrays are (seeds, matrices).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.rank_agreement import groups_of
from analysis.stats.seeds import Array, finite

BLOCK = 500_000  # multiplications at once: they fit into a core's cache, and BLAS starts no threads, which wait for it


class Relation(NamedTuple):
    """Spearman's correlation of contribution and rank, mean over seeds.

    Attributes:
        rho: the correlation; NaN where ranks or contributions are the same everywhere.
        low, high: 95 % percentile bootstrap interval over matrices.
        p: two-sided permutation p.
    """

    rho: float
    low: float
    high: float
    p: float


def spearman(ranks: ArrayLike, rises: ArrayLike, strata: Sequence[Any] | None = None) -> Array:
    """Spearman's correlation of every seed, (seeds,).

    Args:
        ranks, rises: (seeds, matrices).
        strata: the type of every matrix; mid-ranks are then taken, and centred, within each type.
    """
    x, y = _both_orders(ranks, rises, strata)
    return _product(x.sum(axis=1), y.sum(axis=1))


def _product(a: Array, b: Array, counts: Array | float = 1.0) -> Array:
    """The correlation of centred ranks over the last axis, with each matrix counted this often."""
    counted = counts * a
    length = np.sqrt(_dots(counted, a) * _dots(counts * b, b))
    with np.errstate(invalid="ignore"):
        return _dots(counted, b) / np.where(length > 0, length, np.nan)


def _dots(a: Array, b: Array) -> Array:
    """Sums of products over the last axis; exact, since ranks are multiples of a half."""
    return np.asarray(np.einsum("...i,...i->...", a, b))


def _both_orders(ranks: ArrayLike, rises: ArrayLike, strata: Sequence[Any] | None) -> tuple[Array, Array]:
    """Half the sign of every difference within a type, of ranks and of rises: (seeds, other matrix, matrix).

    Summed over the others it is the matrix's mid-rank within its type less their mean, and so it is of a resample if
    each of the others counts as often as it was drawn. Multiples of a half add up without an error.
    """
    x, y = finite(ranks, seeds=1, matrices=2), finite(rises, seeds=1, matrices=2)
    if x.shape != y.shape:
        raise ValueError(f"ranks {x.shape} and contributions {y.shape} are not of the same runs and matrices")
    alike = np.zeros((x.shape[1], x.shape[1]))
    for members in groups_of(strata, x.shape[1]):
        alike[np.ix_(members, members)] = 0.5
    return np.sign(x[:, None, :] - x[:, :, None]) * alike, np.sign(y[:, None, :] - y[:, :, None]) * alike


def _resampled(counts: Array, x: Array, y: Array) -> Array:
    """The correlation of every resample, (draws, seeds).

    Args:
        counts: how often each holds each matrix, (draws, matrices).
        x, y: from `_both_orders`.
    """
    seeds, size = x.shape[:2]
    wide = [one.transpose(1, 0, 2).reshape(size, seeds * size) for one in (x, y)]
    step = max(1, BLOCK // wide[0].size)
    parts = []
    for start in range(0, len(counts), step):
        block = counts[start : start + step]
        a, b = ((block @ one).reshape(-1, seeds, size) for one in wide)
        parts.append(_product(a, b, block[:, None]))
    return np.concatenate(parts)


def relation(
    ranks: ArrayLike, rises: ArrayLike, strata: Sequence[Any] | None = None, resamples: int = 1_999, seed: int = 0
) -> Relation:
    """Correlate contribution and rank, with interval and test.

    Args:
        ranks: (seeds, matrices), of the arm whose ranks are in question.
        rises: (seeds, matrices), contributions of the same seeds, of the same arm or of another.
        strata: the type of every matrix: correlation, resamples and permutations then stay within types.
        resamples: of the bootstrap and of the permutation test.
        seed: of resamples and permutations, which are alike for the same types.
    """
    x, y = _both_orders(ranks, rises, strata)
    a, b = x.sum(axis=1), y.sum(axis=1)
    rho = _mean(_product(a, b))
    if math.isnan(rho):
        return Relation(math.nan, math.nan, math.nan, math.nan)
    groups = groups_of(strata, a.shape[1])
    counts, orders = _draws(seed, tuple(map(tuple, groups)), resamples)
    drawn = _means(_resampled(counts, x, y))
    length = np.sqrt(_dots(a, a) * _dots(b, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        shuffled = _dots(a[:, orders], b[:, None]) / np.where(length > 0, length, np.nan)[:, None]
    extreme = int((abs(_means(shuffled.T)) >= abs(rho) - 1e-12).sum())
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Relation(rho, float(low), float(high), (1 + extreme) / (1 + resamples))


@lru_cache(maxsize=8)
def _draws(seed: int, groups: tuple[tuple[int, ...], ...], number: int) -> tuple[Array, NDArray[np.int64]]:
    """How often each resample holds each matrix, and as many permutations; both (draws, matrices)."""
    rng, size = np.random.default_rng(seed), sum(map(len, groups))
    places_of = [np.array(members) for members in groups]
    taken, orders = np.empty((2, number, size), dtype=np.int64)
    for sample, order in zip(taken, orders, strict=True):
        for members in places_of:
            sample[members] = members[rng.integers(0, len(members), len(members))]
        for members in places_of:
            order[members] = rng.permutation(members)
    places = taken + size * np.arange(number)[:, None]
    return np.bincount(places.ravel(), minlength=number * size).reshape(number, size).astype(np.float64), orders


def _means(correlations: Array) -> Array:
    """The mean over seeds of every draw, from (draws, seeds)."""
    draws = np.ascontiguousarray(correlations)  # numpy then adds in the order in which it adds one draw
    means = draws.mean(axis=1)
    for gap in np.flatnonzero(np.isnan(means)):
        means[gap] = _mean(draws[gap])
    return means


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
