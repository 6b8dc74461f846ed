"""The smallest p-value that an exact sign-flip test can reach with a number of seeds."""

from __future__ import annotations


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p of the exact sign-flip test with n pairs, 2^(1 - n)."""
    return 2.0 ** (1 - pairs)


def least_pairs(alpha: float = 0.05, family: int = 1) -> int:
    """The fewest seeds with which the exact test can reach alpha / family."""
    if not 0 < alpha < 1 or family < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1, and the family ({family}) must not be empty")
    pairs = 1
    while smallest_p(pairs) > alpha / family:
        pairs += 1
    return pairs
