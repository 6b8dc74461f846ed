"""What a number of seeds can find: power of the paired test, and the least difference that it detects."""

from __future__ import annotations

import math

POWER = 0.8  # that is asked for where none is named


def power(effect: float, sd: float, pairs: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t test of n pairs finds a mean difference `effect` of spread `sd`."""
    from scipy import stats

    if pairs < 2 or not sd > 0:
        raise ValueError(f"power needs at least 2 pairs and a positive sd, {pairs} and {sd} were given")
    shift, bound = abs(effect) / sd * math.sqrt(pairs), stats.t.ppf(1 - alpha / 2, pairs - 1)
    # the wrong side by symmetry: scipy's nct.cdf of a low point is NaN at every few dozen places
    return float(stats.nct.sf(bound, pairs - 1, shift) + stats.nct.sf(bound, pairs - 1, -shift))


def least_effect(sd: float, pairs: int, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The least mean difference that n pairs find with the power wanted, in the units of `sd`.

    Args:
        sd: standard deviation of the paired differences.
        pairs: number of seeds.
        alpha: two-sided level of the one test, the family's divided by its size under Holm's correction.
        wanted: power.
    """
    low, high = 0.0, sd
    while power(high, sd, pairs, alpha) < wanted:
        high *= 2
    for _ in range(40):  # halving: 12 digits
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, sd, pairs, alpha) < wanted else (low, middle)
    return high
