"""Several comparisons at once: corrections that keep the level of a whole family, and tests of equivalence.

Holm's correction needs the p-values only, and its smallest is the family's size times the smallest of one test.
Step-down maxT (Westfall and Young, 1993, algorithm 4.1) flips the signs of whole seeds in all comparisons together, so
it uses that comparisons with one baseline are correlated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.stats.seeds import EXACT_UP_TO, Array, finite, holm, sign_flip, sign_patterns, t_quantile

SAMPLED = 99_999  # sign patterns above `EXACT_UP_TO` seeds


def max_t(differences: ArrayLike, rng: Generator | None = None, resamples: int = SAMPLED) -> Array:
    """Step-down maxT adjusted p-values, from joint sign flips of seeds.

    The statistic of a comparison is its sum over the root of its sum of squares, a monotone function of |t|.

    Args:
        differences: (seeds, comparisons); NaN where a comparison lacks a seed.
        rng: draws sign patterns; needed above 16 seeds. Up to 16, all 2^n patterns are used and p is exact.
        resamples: sign patterns drawn; p is then (1 + as extreme) / (1 + drawn).

    Returns:
        (comparisons,), in the order given; reject where at most alpha. A comparison without a difference has p = 1.

    Raises:
        ValueError: more than 16 seeds and no rng.
    """
    given = np.asarray(differences, dtype=np.float64)
    x = finite(np.where(np.isnan(given), 0.0, given), seeds=1, comparisons=1)
    size = np.sqrt((x**2).sum(axis=0))
    scaled = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    observed = np.abs(scaled.sum(axis=0))
    flipped = np.abs(sign_patterns(len(x), rng, resamples) @ scaled)  # (patterns, comparisons)
    order = np.argsort(-observed, kind="stable")
    # the largest among this comparison and those after it, for every pattern
    largest = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
    extreme = (largest >= observed[order] - 1e-12).sum(axis=0)
    exact = len(x) <= EXACT_UP_TO
    p = extreme / len(flipped) if exact else (1 + extreme) / (1 + len(flipped))
    adjusted = np.empty(x.shape[1])
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted


def corrected(differences: Sequence[ArrayLike | None], correction: str, rng: Generator) -> tuple[Array, Array]:
    """The p-values of a family, and those corrected for its size.

    Args:
        differences: (seeds,) of every comparison, NaN where it lacks a seed; None for one that is not tested yet. Such
            a comparison counts with p = 1, and then Holm's correction stands in for maxT, which needs every comparison.
        correction: "holm" or "maxt".
        rng: draws sign patterns above 16 seeds.
    """
    samples = [None if d is None else np.asarray(d, dtype=np.float64) for d in differences]
    p = np.array([1.0 if x is None else sign_flip(x[~np.isnan(x)], rng, SAMPLED) for x in samples])
    whole = [x for x in samples if x is not None]
    if correction == "maxt" and len(whole) == len(samples):
        return p, np.maximum(p, max_t(np.stack(whole, axis=1), rng))
    return p, holm(p)


def equivalence(differences: ArrayLike, margin: float, rng: Generator | None = None) -> float:
    """p of two one-sided sign-flip tests: a small one shows that the difference lies within the margin.

    Each test shifts the differences by the margin and flips signs: without an effect beyond it, a shifted difference is
    as likely on either side (Schuirmann 1987, with sign flips in place of t). The larger p counts.

    Args:
        differences: (runs,), in points.
        margin: the largest difference that does not matter, in points, above 0.
        rng: draws sign patterns; needed above 16 runs.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be above 0")
    x = finite(differences, runs=1)
    patterns = sign_patterns(x.size, rng, SAMPLED)
    return max(_above(margin + x, patterns), _above(margin - x, patterns))


def _above(x: Array, patterns: Array) -> float:
    """One-sided p that the centre of x is above 0."""
    extreme = np.count_nonzero(patterns @ x >= x.sum() - 1e-12 * np.abs(x).sum())
    return float(extreme / len(patterns) if x.size <= EXACT_UP_TO else (1 + extreme) / (1 + len(patterns)))


def least_margin(differences: ArrayLike, alpha: float = 0.05) -> float:
    """The smallest margin within which two one-sided paired t tests call the difference equivalent at the level.

    It is the end of the 1 - 2 alpha interval that lies farther from 0. Chosen after the data were seen, it describes
    what the data exclude and is no verdict.
    """
    x = finite(differences, runs=2)
    half = t_quantile(1 - alpha, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return float(abs(x.mean()) + half)
