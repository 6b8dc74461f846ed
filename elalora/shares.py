"""Whole ranks in proportion to given weights, with an exact sum: largest remainders between bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction


def largest_remainder(
    weights: Sequence[float | Fraction],
    total: int,
    least: int = 1,
    most: Sequence[int] | None = None,
    first: Callable[[int], float] = lambda place: place,
) -> list[int]:
    """Whole numbers in proportion to the weights, each within its bounds, that sum to `total` exactly.

    Quotas are the weights times one factor, cut to the bounds, and sum to the total. Each place gets the whole part of
    its quota, and what is left goes to the largest fractions. The arithmetic is exact, so equal weights get equal
    numbers where the total allows it.

    Args:
        weights: not negative; places of weight 0 share what the others have no room for.
        total: the sum; without enough room below `most`, every place gets its `most`.
        least: smallest number of a place; at most total / len(weights), and at most every `most`.
        most: largest number of every place; None for no bound.
        first: of equal fractions, the place of smallest `first(place)` is served first.

    Raises:
        ValueError: a weight is negative, or `total` does not pay for `least` everywhere.
    """
    exact = [Fraction(weight) for weight in weights]
    tops = [total] * len(exact) if most is None else list(most)
    if min(exact) < 0 or least * len(exact) > total or min(tops) < least:
        raise ValueError(f"{total} cannot be shared among {len(exact)} places from {least} on with weights {weights}")
    if sum(tops) <= total:
        return tops
    tiny = max(max(exact), Fraction(1, 10**300)) / 10**12
    quotas = _quotas([weight or tiny for weight in exact], total, least, tops)
    numbers = [int(quota) for quota in quotas]
    order = sorted(range(len(exact)), key=lambda place: (numbers[place] - quotas[place], first(place)))
    for place in order[: total - sum(numbers)]:
        numbers[place] += 1
    return numbers


def _quotas(weights: Sequence[Fraction], total: int, least: int, tops: Sequence[int]) -> list[Fraction]:
    """The weights, all above 0, times one factor and cut to [least, top], with a sum below that of the tops."""

    def cut(factor: Fraction) -> list[Fraction]:
        return [min(max(w * factor, Fraction(least)), Fraction(top)) for w, top in zip(weights, tops, strict=True)]

    # the sum grows with the factor, and linearly between two of the factors at which a quota meets a bound
    bends = sorted({Fraction(bound) / w for w, top in zip(weights, tops, strict=True) for bound in (least, top)})
    low, high = 0, len(bends) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if sum(cut(bends[middle])) < total else (low, middle)
    left, right = bends[low - 1] if low else Fraction(0), bends[low]
    below, above = sum(cut(left)), sum(cut(right))
    return cut(right if above == below else left + (right - left) * Fraction(total - below) / (above - below))
