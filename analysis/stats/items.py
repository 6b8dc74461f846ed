"""Statistics over single items of a test set, from the runs' stored predictions.

A test over items asks whether two *trained models* differ on this kind of text, not whether two *methods* do:
one lucky seed makes any p small. So McNemar's test is given per pair of seeds, the interval draws seeds and items
both, and neither supports a claim alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from analysis.stats.seeds import Array, Interval, finite


class McNemar(NamedTuple):
    """Items that only the first got right, that only the second got right, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact test of two models on the same items.

    Args:
        first: (items,) whether each item was right.
        second: the same items by the other model.
    """
    from scipy import stats

    a, b = _right(first), _right(second)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"the same (items,) are needed twice, {a.shape} and {b.shape} were given")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_first + only_second
    p = float(stats.binomtest(only_first, apart).pvalue) if apart else 1.0
    return McNemar(only_first, only_second, p)


def mcnemar_by_seed(first: ArrayLike, second: ArrayLike) -> list[McNemar]:
    """The test for each pair of seeds; both are (seeds, items)."""
    a, b = _right(first), _right(second)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"the same (seeds, items) are needed twice, {a.shape} and {b.shape} were given")
    return [mcnemar(x, y) for x, y in zip(a, b, strict=True)]


def two_way_bootstrap(
    differences: ArrayLike, rng: Generator, level: float = 0.95, resamples: int = 2_000
) -> tuple[float, Interval]:
    """Mean of paired item differences with an interval that lets seeds and items vary.

    Args:
        differences: (seeds, items), for instance right by the first minus right by the second.
        rng: draws the resamples: seeds and items independently, each with replacement.
        level: of the percentile interval.
        resamples: how many.
    """
    x = finite(differences, seeds=2, items=2)
    seeds, items = x.shape
    values = np.empty(resamples)
    for i in range(resamples):
        by_item = _counts(seeds, rng) @ x  # (items,)
        values[i] = by_item @ _counts(items, rng) / (seeds * items)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(x.mean()), (float(low), float(high))


def _counts(n: int, rng: Generator) -> Array:
    """How often each of n things is drawn in n draws with replacement."""
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)


def _right(values: ArrayLike) -> NDArray[np.bool_]:
    x = np.asarray(values)
    if x.dtype != bool:
        raise ValueError(f"right or wrong (bool) is needed, {x.dtype} was given")
    return x
