"""Whole ranks in proportion to given weights: largest remainders between bounds, and turns around a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any


def largest_remainder(
    weights: Sequence[float | Fraction],
    total: int,
    least: int = 1,
    most: Sequence[int] | None = None,
    first: Callable[[int], float] = lambda place: place,
    costs: Sequence[int] | None = None,
) -> list[int]:
    """Whole numbers in proportion to the weights, each within its bounds, that use up `total`.

    Quotas are the weights times one factor, cut to the bounds, and use up the total. Each place gets the whole part of
    its quota, and what is left goes to the largest fractions that it pays for, one each. The arithmetic is exact, so
    equal weights get equal numbers where the total allows it.

    Args:
        weights: not negative; places of weight 0 share what the others have no room for.
        total: sum of the numbers, or of their costs, which may leave a rest; without enough room below `most`, every
            place gets its `most`.
        least: smallest number of a place.
        most: largest number of every place, at least `least`; None for no bound.
        first: of equal fractions, the place of smallest `first(place)` is served first.
        costs: what one costs in every place; 1 by default, and then the sum is exact.

    Raises:
        ValueError: a weight is negative, or `total` does not pay for `least` everywhere.
    """
    exact = [Fraction(weight) for weight in weights]
    prices = [1] * len(exact) if costs is None else list(costs)
    bottoms = [least] * len(exact)
    if min(exact) < 0 or paid(bottoms, prices) > total or (most is not None and min(most) < least):
        raise ValueError(f"{total} cannot be shared among {len(exact)} places from {least} on with weights {weights}")
    if most is not None and paid(most, prices) <= total:
        return list(most)
    full = [(least if most is None else most[place]) if weight else least for place, weight in enumerate(exact)]
    if not any(exact) or (most is not None and paid(full, prices) < total):
        bottoms, exact = full, [Fraction(not weight) for weight in exact]
    quotas = _quotas(exact, total, bottoms, most, prices)
    numbers = [int(quota) for quota in quotas]
    left = total - paid(numbers, prices)
    for place in sorted(range(len(exact)), key=lambda place: (numbers[place] - quotas[place], first(place))):
        if numbers[place] < quotas[place] and prices[place] <= left:
            numbers[place] += 1
            left -= prices[place]
    return numbers


def paid(numbers: Sequence[Any], prices: Sequence[int]) -> Any:
    """What these numbers cost."""
    return sum(number * price for number, price in zip(numbers, prices, strict=True))


def _quotas(
    weights: Sequence[Fraction],
    total: int,
    bottoms: Sequence[int],
    tops: Sequence[int] | None,
    prices: Sequence[int],
) -> list[Fraction]:
    """The weights times one factor and cut to their bounds, so that they cost `total`, which the bounds allow."""

    def cut(factor: Fraction) -> list[Fraction]:
        raised = [max(w * factor, Fraction(bottom)) for w, bottom in zip(weights, bottoms, strict=True)]
        return raised if tops is None else [min(q, Fraction(top)) for q, top in zip(raised, tops, strict=True)]

    # the cost grows with the factor, and linearly between two of the factors at which a quota meets a bound
    bounds = [*zip(weights, bottoms, strict=True), *([] if tops is None else zip(weights, tops, strict=True))]
    bends = sorted({Fraction(bound) / w for w, bound in bounds if w} | {Fraction(0)})
    bends.append(bends[-1] + 1)  # beyond the last bound it is linear
    low, high = 1, len(bends) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if paid(cut(bends[middle]), prices) < total else (low, middle)
    left, right = bends[low - 1], bends[low]
    below, above = paid(cut(left), prices), paid(cut(right), prices)
    return cut(right if above == below else left + (right - left) * Fraction(total - below) / (above - below))


def in_turns(
    order: Sequence[str], wanted: int, free: dict[str, int], costs: Mapping[str, int], spare: int | None
) -> list[str]:
    """Places that get one each, in this order and from its start again, until `wanted` are given or none can take one.

    Args:
        order: of the places.
        wanted: how many to give.
        free: how many every place can take; lowered by what it gets.
        costs: what one costs in every place.
        spare: what all may cost; None without a limit.
    """
    given: list[str] = []
    left = spare
    while len(given) < wanted:
        turn = [name for name in order if free[name] > 0 and (left is None or costs[name] <= left)]
        if not turn:
            break
        for name in turn[: wanted - len(given)]:
            if left is None or costs[name] <= left:
                given.append(name)
                free[name] -= 1
                left = None if left is None else left - costs[name]
    return given
