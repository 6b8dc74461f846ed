"""Whole ranks in proportion to weights, with an exact sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elalora.shares import largest_remainder

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


def test_examples_worked_by_hand():
    assert largest_remainder([3, 1, 6], 10) == [3, 1, 6]
    assert largest_remainder([1, 1, 1], 8) == [3, 3, 2]  # of equal fractions, the first places
    assert largest_remainder([1, 1, 1], 8, first=lambda place: -place) == [2, 3, 3]
    assert largest_remainder([100, 1, 1], 12, most=[6, 6, 6]) == [6, 3, 3]  # what is cut goes to the others
    assert largest_remainder([100, 1, 1], 12, least=2) == [8, 2, 2]
    assert largest_remainder([0, 0], 5) == [3, 2]
    assert largest_remainder([7, 0, 0], 12, most=[6, 6, 6]) == [6, 3, 3]


def test_what_cannot_be_shared_is_refused():
    for weights, total in (([1, -1], 4), ([1, 1], 1)):
        with pytest.raises(ValueError, match="cannot be shared"):
            largest_remainder(weights, total)
