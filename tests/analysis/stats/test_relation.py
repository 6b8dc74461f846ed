"""Rank against contribution, against scipy and enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats.relation import _draws, relation, spearman


def tied(seeds: int = 4, matrices: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 6, (seeds, matrices)).astype(float)


def test_spearman_is_scipys_for_every_seed():
    x, y = tied(3), np.random.default_rng(3).normal(size=(3, 12))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)


def test_within_types_only_the_order_inside_a_type_counts():
    ranks, rises = [[1, 2, 3, 11, 12, 13]], [[3, 2, 1, 13, 12, 11]]
    assert spearman(ranks, rises)[0] > 0.5
    assert spearman(ranks, rises, list("aaabbb"))[0] == pytest.approx(-1.0)


def test_the_p_of_one_seed_is_that_of_enumeration():
    from itertools import permutations

    x, y = np.array([[1.0, 2, 2, 4, 5]]), np.array([[0.1, 0.4, 0.2, 0.3, 0.9]])
    observed = abs(stats.spearmanr(x[0], y[0]).statistic)
    every = [abs(stats.spearmanr(p, y[0]).statistic) >= observed - 1e-12 for p in permutations(x[0])]
    found = relation(x, y, resamples=4000)
    assert found.rho == pytest.approx(observed) and found.p == pytest.approx(np.mean(every), abs=0.02)


def test_ten_copies_of_one_seed_are_no_more_evidence_than_one():
    rng = np.random.default_rng(5)
    x, y = rng.integers(1, 8, (1, 24)).astype(float), rng.normal(size=(1, 24))
    one = relation(x, y, resamples=999)
    ten = relation(np.tile(x, (10, 1)), np.tile(y, (10, 1)), resamples=999)
    assert (ten.rho, ten.low, ten.high, ten.p) == pytest.approx((one.rho, one.low, one.high, one.p))


@pytest.mark.slow
def test_unrelated_ranks_are_found_related_as_often_as_the_level_says():
    rng = np.random.default_rng(7)
    found = []
    for trial in range(100):
        base, rises = rng.normal(size=20), rng.normal(size=20)  # patterns that all seeds share
        x, y = (np.round(p + 0.2 * rng.normal(size=(4, 20)), 1) for p in (base, rises))
        found.append(relation(x, y, list("ab" * 10), resamples=99, seed=trial).p <= 0.05)
    assert np.mean(found) <= 0.10


def test_equal_ranks_have_no_relation():
    found = relation(np.full((2, 6), 4.0), tied(2, 6), resamples=9)
    assert all(map(math.isnan, found))


@pytest.mark.parametrize("strata", [None, [place % 3 for place in range(20)]])
def test_interval_and_p_are_those_of_ranks_by_scipy_in_every_draw(strata):
    draw = np.random.default_rng(3)
    ranks, rises = draw.integers(0, 5, (9, 20)).astype(float), np.round(draw.normal(size=(9, 20)), 1)
    found = relation(ranks, rises, strata, resamples=99, seed=7)
    kinds = np.array([0] * 20 if strata is None else strata)
    groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    rng, means, extreme = np.random.default_rng(7), [], 0

    def mean(x, y, kinds):
        values = []
        for a, b in zip(x, y, strict=True):
            parts = [(stats.rankdata(a[kinds == k]), stats.rankdata(b[kinds == k])) for k in np.unique(kinds)]
            u, v = (np.concatenate([part[side] - part[side].mean() for part in parts]) for side in (0, 1))
            values.append(u @ v / math.sqrt((u @ u) * (v @ v)))
        return np.mean(values)

    for _ in range(99):
        taken = np.concatenate([rng.choice(members, len(members)) for members in groups])
        means.append(mean(ranks[:, taken], rises[:, taken], kinds[taken]))
        order = np.arange(20)
        for members in groups:
            order[members] = rng.permutation(members)
        extreme += abs(mean(ranks[:, order], rises, kinds)) >= abs(found.rho) - 1e-12
    assert found.rho == pytest.approx(mean(ranks, rises, kinds), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    assert found.p == (1 + extreme) / 100


def test_resamples_and_permutations_are_those_that_numpy_draws_type_by_type():
    groups = ((0, 2, 5), (1, 3, 4, 6))
    counts, orders = _draws(3, groups, 20)
    rng = np.random.default_rng(3)
    for drawn, order in zip(counts, orders, strict=True):
        taken = np.concatenate([rng.choice(members, len(members)) for members in groups])
        assert drawn.tolist() == np.bincount(taken, minlength=7).tolist()
        for members in map(list, groups):
            assert order[members].tolist() == rng.permutation(members).tolist()
