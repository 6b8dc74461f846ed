"""How small a p the exact sign-flip test can give at all: what a study must know before its first run."""

from __future__ import annotations


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that the exact sign-flip test of n pairs can give, 2^(1 - n)."""
    return 2.0 ** (1 - pairs)


def least_pairs(alpha: float = 0.05, family: int = 1) -> int:
    """How many seeds the exact test needs before it can reach alpha / family at all."""
    if not 0 < alpha < 1 or family < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1, and the family ({family}) must not be empty")
    pairs = 1
    while smallest_p(pairs) > alpha / family:
        pairs += 1
    return pairs
