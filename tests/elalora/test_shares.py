"""Whole ranks in proportion to weights, with an exact sum."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elalora.shares import in_turns, largest_remainder

WEIGHTS = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=12)


@given(WEIGHTS, st.integers(1, 3), st.integers(0, 60), st.integers(3, 40))
def test_the_sum_is_exact_and_every_place_is_within_its_bounds(weights, least, more, most):
    total = least * len(weights) + more
    shares = largest_remainder(weights, total, least, [most] * len(weights))
    assert sum(shares) == min(total, most * len(weights))
    assert all(least <= share <= most for share in shares)


@given(st.lists(st.floats(1.0, 100.0), min_size=2, max_size=10), st.integers(20, 200))
def test_without_bounds_that_matter_it_is_the_method_of_largest_remainders(weights, total):
    quotas = np.array(weights) / np.sum(weights) * total
    if quotas.min() < 1 or np.min(np.diff(np.sort(quotas % 1)), initial=1.0) < 1e-9:
        return
    expected = np.floor(quotas).astype(int)
    expected[np.argsort(-(quotas % 1))[: total - expected.sum()]] += 1
    assert largest_remainder(weights, total) == expected.tolist()


def reference(weights, total, least, most, costs):
    """Exact quotas by trying which places are at a bound, and then the definition of largest remainders."""
    weights = [Fraction(w) for w in weights]
    for state in product(("low", "free", "high"), repeat=len(weights)):
        fixed = {i: least if s == "low" else most[i] for i, s in enumerate(state) if s != "free"}
        slope = sum(w * costs[i] for i, w in enumerate(weights) if i not in fixed)
        rest = total - sum(costs[i] * n for i, n in fixed.items())
        if not slope and rest:
            continue
        factor = Fraction(rest) / slope if slope else max(
            (Fraction(n) / weights[i] for i, n in fixed.items() if weights[i]), default=Fraction(0)
        )  # fmt: skip
        fits = {
            "low": lambda q, i: q <= least,
            "free": lambda q, i: least <= q <= most[i],
            "high": lambda q, i: q >= most[i],
        }
        if all(fits[s](weights[i] * factor, i) for i, s in enumerate(state)):
            quotas = [min(max(w * factor, Fraction(least)), Fraction(most[i])) for i, w in enumerate(weights)]
            break
    else:
        return None  # some places have no weight, and the others no room
    numbers = [q.numerator // q.denominator for q in quotas]
    left = total - sum(n * c for n, c in zip(numbers, costs, strict=True))
    for i in sorted(range(len(weights)), key=lambda i: (-(quotas[i] - numbers[i]), i)):
        if quotas[i] > numbers[i] and costs[i] <= left:
            numbers[i], left = numbers[i] + 1, left - costs[i]
    return numbers


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bounds_costs_and_ties_are_those_of_exact_arithmetic(data):
    count = data.draw(st.integers(1, 4))
    weights = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))  # small, so that ties are common
    costs = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=count, max_size=count))
    least, bounded = data.draw(st.integers(0, 1)), data.draw(st.booleans())
    most = data.draw(st.lists(st.integers(1, 6), min_size=count, max_size=count)) if bounded else None
    total = data.draw(st.integers(least * sum(costs), 20))
    if not any(weights) or most is not None and sum(m * c for m, c in zip(most, costs, strict=True)) <= total:
        return
    expected = reference(weights, total, least, most or [1000] * count, costs)
    found = largest_remainder(weights, total, least, most, costs=costs)
    if expected is None:
        full = sum((m if w else least) * c for w, m, c in zip(weights, most, costs, strict=True))
        assert full < total and all(n == m for w, n, m in zip(weights, found, most, strict=True) if w)
    else:
        assert found == expected


@pytest.mark.parametrize("seed", range(20))
def test_without_bounds_they_are_those_nearest_to_the_quotas_among_all_allocations(seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 6, 4)
    weights[rng.integers(4)] += 1
    total = int(rng.integers(1, 9))
    ours = np.array(largest_remainder([Fraction(int(w)) for w in weights], total, least=0))
    quotas = weights / weights.sum() * total
    every = np.array([r for r in product(range(total + 1), repeat=4) if sum(r) == total])
    assert ours.sum() == total
    assert np.square(ours - quotas).sum() == pytest.approx(np.square(every - quotas).sum(1).min(), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_costs_pay_for_the_whole_parts_and_then_the_largest_remainders(seed):
    rng = np.random.default_rng(100 + seed)
    weights, costs = rng.integers(1, 7, 6), rng.choice([768, 1920, 1152], 6)
    budget = int(rng.integers(6_000, 60_000))
    ours = largest_remainder([int(w) for w in weights], budget, least=0, costs=[int(c) for c in costs])
    quotas = weights * (budget / (weights * costs).sum())
    expected = np.floor(quotas).astype(int)
    for i in np.argsort(expected - quotas, kind="stable"):
        if expected @ costs + costs[i] <= budget:
            expected[i] += 1
    assert ours == expected.tolist()
    assert budget - costs.max() < expected @ costs <= budget


def test_turns_end_where_enough_are_given_or_nobody_can_take_one():
    free = {"a": 1, "b": 5, "c": 5}
    costs = {"a": 1, "b": 2, "c": 3}
    assert in_turns("abc", 5, free, costs, None) == ["a", "b", "c", "b", "c"] and free == {"a": 0, "b": 3, "c": 3}
    assert in_turns("cb", 9, free, costs, 9) == ["c", "b", "c"]  # 1 is left, and nobody takes that
    assert in_turns("a", 2, free, costs, None) == in_turns("", 2, free, costs, None) == []


def test_examples_worked_by_hand():
    assert largest_remainder([3, 1, 6], 10) == [3, 1, 6]
    assert largest_remainder([1, 1, 1], 8) == [3, 3, 2]  # of equal fractions, the first places
    assert largest_remainder([1, 1, 1], 8, first=lambda place: -place) == [2, 3, 3]
    assert largest_remainder([100, 1, 1], 12, most=[6, 6, 6]) == [6, 3, 3]  # what is cut goes to the others
    assert largest_remainder([100, 1, 1], 12, least=2) == [8, 2, 2]
    assert largest_remainder([0, 0], 5) == [3, 2]
    assert largest_remainder([7, 0, 0], 12, most=[6, 6, 6]) == [6, 3, 3]
    assert largest_remainder([3, 1, 0], 2, least=0) == [2, 0, 0]  # equal fractions beside a place without weight
    assert largest_remainder([1, 1, 1, 1], 6, least=0) == [2, 2, 1, 1]


def test_what_cannot_be_shared_is_refused():
    for weights, total in (([1, -1], 4), ([1, 1], 1)):
        with pytest.raises(ValueError, match="cannot be shared"):
            largest_remainder(weights, total)
