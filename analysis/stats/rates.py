"""Rate curves: which learning rate is best, how sure that is, how wide the plateau is and where training breaks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.stats.seeds import Array, finite

MOST_EXACT = 5  # seeds; n**n resamples are listed up to here
RESAMPLES = 10_000
NEAR = 1.0  # points below the best mean that still belong to the plateau


class RateCurve(NamedTuple):
    """What the scores of one arm at several learning rates say.

    Attributes:
        best: the rate with the highest mean; of equal means the one nearest to the middle of the grid.
        edge: whether it is the lowest or highest of the grid, so that a better one may lie outside.
        plateau: lowest and highest rate of the unbroken stretch around it with means within 1 point.
        cliff: the first rate above it that keeps less than half of the gain over a constant answer; None if none does.
        chosen: share of resamples of the seeds in which each rate is best, (rates,).
        error: standard error of the choice, as a factor: the spread of the resampled choice in log rate; 1 is none.
    """

    best: float
    edge: bool
    plateau: tuple[float, float]
    cliff: float | None
    chosen: Array
    error: float


def rate_curve(rates: Sequence[float], scores: ArrayLike, constant: float) -> RateCurve:
    """Reads a rate curve.

    Args:
        rates: in rising order, at least two.
        scores: (seeds, rates); the same seeds at every rate.
        constant: score of a constant answer; NaN if unknown, and then there is no cliff.

    Raises:
        ValueError: shapes do not fit, or a score is not finite.
    """
    x = finite(scores, seeds=1, rates=2)
    if x.shape[1] != len(rates) or list(rates) != sorted(set(rates)):
        raise ValueError(f"{len(rates)} rising rates are needed for scores of shape {x.shape}, given: {list(rates)}")
    means = x.mean(axis=0)
    best = int(_best(means[None])[0])
    low = high = best
    while low > 0 and means[low - 1] >= means[best] - NEAR:
        low -= 1
    while high < len(rates) - 1 and means[high + 1] >= means[best] - NEAR:
        high += 1
    half = constant + (means[best] - constant) / 2
    cliff = next((rates[i] for i in range(best + 1, len(rates)) if means[i] < half), None)
    picks = _best(_resampled(x))
    chosen = np.bincount(picks, minlength=len(rates)) / len(picks)
    return RateCurve(
        rates[best], best in (0, len(rates) - 1), (rates[low], rates[high]), cliff, chosen,
        float(np.exp(np.log(rates)[picks].std())),
    )  # fmt: skip


def _best(means: Array) -> Array:
    """Position of the highest mean of every row; of equal ones the nearest to the middle, then the lower."""
    middle = (means.shape[1] - 1) / 2
    order = sorted(range(means.shape[1]), key=lambda i: (abs(i - middle), i))
    return np.asarray(order)[means[:, order].argmax(axis=1)]


def _resampled(x: Array) -> Array:
    """Means over seeds drawn with replacement, (resamples, rates): every draw of few seeds, else a seeded sample."""
    n = len(x)
    if n <= MOST_EXACT:
        draws = np.array(list(product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return np.asarray(x[draws].mean(axis=1))
