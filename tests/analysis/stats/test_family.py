"""Corrections for a family against an independent enumeration, and their error rates by simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from analysis.stats.family import corrected, equivalence, least_margin, max_t
from analysis.stats.seeds import holm, sign_flip


def brute_force(x: np.ndarray) -> list[float]:
    """Step-down maxT in loops, with Student's t of every sign pattern."""

    def t(column: np.ndarray) -> float:
        spread = column.std(ddof=1)
        return abs(column.mean()) / spread * len(column) ** 0.5 if spread > 1e-9 else 1e9 * abs(column.mean())

    seeds, family = x.shape
    observed = [t(x[:, j]) for j in range(family)]
    order = sorted(range(family), key=lambda j: -observed[j])
    adjusted, before = [0.0] * family, 0.0
    for place, j in enumerate(order):
        rest, hits, patterns = order[place:], 0, list(product((1.0, -1.0), repeat=seeds))
        for signs in patterns:
            flipped = x * np.array(signs)[:, None]
            hits += max(t(flipped[:, k]) for k in rest) >= observed[j] * (1 - 1e-9)
        before = max(before, hits / len(patterns))
        adjusted[j] = before
    return adjusted


@pytest.mark.parametrize(("seeds", "family", "seed"), [(5, 3, 0), (6, 4, 1), (7, 2, 2)])
def test_max_t_is_that_of_an_enumeration_in_loops(seeds: int, family: int, seed: int):
    x = np.random.default_rng(seed).normal(0.6, 1.0, (seeds, family)) + np.arange(family) / 2
    assert max_t(x) == pytest.approx(brute_force(x), abs=1e-12)


def test_one_comparison_needs_no_correction():
    x = np.random.default_rng(3).normal(0.5, 1.0, (9, 1))
    assert max_t(x)[0] == sign_flip(x[:, 0])


def test_the_same_comparison_twice_costs_nothing_under_max_t_and_the_double_under_holm():
    x = np.random.default_rng(4).normal(1.0, 1.0, 9)
    p = sign_flip(x)
    assert max_t(np.stack([x, x], axis=1)).tolist() == [p, p]
    assert corrected([x, x], "holm", np.random.default_rng(0))[1].tolist() == [2 * p, 2 * p]


def test_sampled_patterns_agree_with_all_of_them():
    x = np.random.default_rng(5).normal(0.4, 1.0, (16, 3))
    more = np.concatenate([x, np.zeros((1, 3))])  # a seventeenth seed without a difference changes no statistic
    assert max_t(more, np.random.default_rng(0)) == pytest.approx(max_t(x), abs=0.005)
    with pytest.raises(ValueError, match="pass rng"):
        max_t(more)


def test_a_seed_that_one_comparison_lacks_leaves_the_others_alone():
    x = np.random.default_rng(6).normal(1.0, 1.0, (8, 2))
    x[3, 1] = np.nan
    rng = np.random.default_rng(0)
    p, adjusted = corrected([x[:, 0], x[:, 1]], "maxt", rng)
    assert p[1] == sign_flip(np.delete(x[:, 1], 3)) and (adjusted >= p).all()
    assert max_t(np.stack([x[:, 0], np.full(8, np.nan)], axis=1))[1] == 1.0


def test_a_comparison_that_waits_is_corrected_by_holm():
    x = np.full(8, 1.0)
    p, adjusted = corrected([x, None], "maxt", np.random.default_rng(0))
    assert p.tolist() == [2 / 256, 1.0] and adjusted.tolist() == holm(p).tolist()


@pytest.mark.slow
def test_both_corrections_keep_the_level_of_the_family_and_max_t_finds_more():
    """Eleven contrasts of nine seeds: the level is kept in the strong sense, with some effects real."""
    rng = np.random.default_rng(7)
    wrong, found = {"holm": 0, "maxt": 0}, {"holm": 0, "maxt": 0}
    studies = 1_500
    for _ in range(studies):
        x = rng.normal(size=(9, 11)) + rng.normal(size=(9, 1))
        x[:, :2] += 2.2  # two real effects
        for name in wrong:
            rejected = corrected(list(x.T), name, rng)[1] <= 0.05
            wrong[name] += rejected[2:].any()
            found[name] += rejected[:2].sum()
    assert all(count / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5 for count in wrong.values()), wrong
    assert found["maxt"] > 1.2 * found["holm"], found


def test_equivalence_is_the_larger_of_two_one_sided_enumerations():
    x = np.array([0.3, -0.2, 0.1, 0.25, -0.1, 0.05])

    def above(y: np.ndarray) -> float:
        patterns = list(product((1, -1), repeat=len(y)))
        return sum(sum(s * v for s, v in zip(signs, y, strict=True)) >= y.sum() - 1e-12 for signs in patterns) / 64

    assert equivalence(x, 0.5) == max(above(x + 0.5), above(0.5 - x)) < 0.05
    assert equivalence(x, 0.05) > 0.05 and equivalence(x + 0.6, 0.5) > 0.5
    with pytest.raises(ValueError, match="margin=0"):
        equivalence(x, 0)


@pytest.mark.slow
def test_equivalence_errs_at_most_at_its_level_where_the_difference_is_the_margin():
    rng = np.random.default_rng(8)
    wrong = np.mean([equivalence(rng.normal(0.5, 0.4, 10), 0.5) <= 0.05 for _ in range(3_000)])
    right = np.mean([equivalence(rng.normal(0.0, 0.4, 10), 0.5) <= 0.05 for _ in range(500)])
    assert wrong < 0.06 and right > 0.8


def test_the_least_margin_is_where_two_one_sided_t_tests_turn():
    x = np.random.default_rng(9).normal(0.2, 0.5, 9)
    margin = least_margin(x)

    def tost(margin: float) -> float:
        low = stats.ttest_1samp(x, -margin, alternative="greater").pvalue
        return max(low, stats.ttest_1samp(x, margin, alternative="less").pvalue)

    assert tost(margin) == pytest.approx(0.05)
