"""Statistics over single items of a test set, from the runs' stored predictions.

A test over items asks whether two *trained models* differ on this kind of text, not whether two *methods* do:
one lucky seed makes any p small. So McNemar's test is given per pair of seeds, the interval draws seeds and items
both, and neither supports a claim alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from analysis.stats.seeds import Array, Interval, finite, t_quantile


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


class Components(NamedTuple):
    """Mean of paired differences over tasks when both seeds and items are drawn at random.

    Attributes:
        mean: in points.
        seeds: variance of the mean that comes from the choice of seeds (the items given).
        items: variance of the mean that comes from the choice of items.
        df: Satterthwaite's degrees of freedom.
        low, high: t interval.
    """

    mean: float
    seeds: float
    items: float
    df: float
    low: float
    high: float


def seeds_and_items(by_task: Sequence[ArrayLike], level: float = 0.95) -> Components:
    """Interval for a mean difference that reaches to other seeds and to other items of the same tasks.

    Seeds and items are crossed, with one difference in each cell: a two-way random-effects analysis of variance by the
    method of moments (Searle, Casella and McCulloch 1992, section 4.7). For one task the variance of the mean is
    (MS_seeds + MS_items - MS_rest) / (seeds x items). Seeds are shared by the tasks, items are not.

    Args:
        by_task: (seeds, items) for each task, seeds in the same order, at least 2 of both.
        level: of the interval.
    """
    tables = [finite(x, seeds=2, items=2) for x in by_task]
    n, tasks = tables[0].shape[0], len(tables)
    by_seed = np.mean([x.mean(axis=1) for x in tables], axis=0)
    of_seeds = float(by_seed.var(ddof=1)) / n
    of_items, squares = 0.0, of_seeds**2 / (n - 1)  # the terms of Satterthwaite's formula
    for x in tables:
        items = x.shape[1]
        between = n * float(x.mean(axis=0).var(ddof=1))
        rest = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
        within = float((rest**2).sum()) / ((n - 1) * (items - 1))
        scale = n * items * tasks**2
        of_items += max(0.0, between - within) / scale
        squares += (between / scale) ** 2 / (items - 1) + (within / scale) ** 2 / ((n - 1) * (items - 1))
    mean, whole = float(by_seed.mean()), of_seeds + of_items
    df = whole**2 / squares if squares else np.inf
    half = t_quantile((1 + level) / 2, df) * np.sqrt(whole)
    return Components(mean, of_seeds, of_items, float(df), float(mean - half), float(mean + half))


def _counts(n: int, rng: Generator) -> Array:
    """How often each of n things is drawn in n draws with replacement."""
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)


def _right(values: ArrayLike) -> NDArray[np.bool_]:
    x = np.asarray(values)
    if x.dtype != bool:
        raise ValueError(f"right or wrong (bool) is needed, {x.dtype} was given")
    return x
