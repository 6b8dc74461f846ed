"""Agreement of rank patterns over seeds, against scipy, worked examples and enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats.rank_agreement import agreement_p, concordance, kendalls_w, mean_tau, mean_tau_between, tau_matrix


def tied(seeds: int = 4, matrices: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 6, (seeds, matrices)).astype(float)


def test_tau_is_scipys_tau_b_with_ties():
    x, y = tied(), tied(3)[::-1]
    found = tau_matrix(x, y)
    for i, first in enumerate(x):
        for j, second in enumerate(y):
            assert found[i, j] == pytest.approx(stats.kendalltau(first, second, variant="b").statistic, abs=1e-12)


def test_tau_of_a_constant_pattern_is_not_defined():
    assert np.isnan(tau_matrix([[4, 4, 4], [1, 2, 3]])).tolist() == [[True, True], [True, False]]


def test_w_without_ties_is_the_textbook_example():
    """Sums of ranks 8, 5, 12, 5 differ from 7.5 by 0.5, -2.5, 4.5, -2.5: S = 33, W = 12 S / (m^2 (n^3 - n))."""
    assert kendalls_w([[2, 1, 4, 3], [3, 2, 4, 1], [3, 2, 4, 1]]) == pytest.approx(12 * 33 / (9 * 60))


@pytest.mark.parametrize("seeds", [2, 5])
def test_w_with_ties_is_friedmans_statistic_over_its_largest_value(seeds: int):
    x = tied(seeds, 10)
    friedman = stats.friedmanchisquare(*x.T).statistic  # scipy corrects for ties as well
    assert kendalls_w(x) == pytest.approx(friedman / (seeds * 9), abs=1e-12)


def test_w_is_1_for_equal_patterns_and_undefined_for_constant_ones():
    assert kendalls_w([[1, 2, 2, 5]] * 3) == pytest.approx(1.0)
    assert math.isnan(kendalls_w(np.full((3, 4), 4.0)))
    assert math.isnan(concordance(np.full((3, 4), 4.0)).low)


def test_the_interval_of_tau_is_students_over_jackknife_values():
    x = tied(4, 9)
    taus = [[stats.kendalltau(a, b).statistic for b in x] for a in x]
    pairs = [taus[i][j] for i in range(4) for j in range(i)]
    whole = float(np.mean(pairs))
    left = [np.mean([taus[i][j] for i in range(4) for j in range(i) if out not in (i, j)]) for out in range(4)]
    pseudo = [4 * whole - 3 * part for part in left]
    half = 3.182446305284263 * np.std(pseudo, ddof=1) / 2  # t with 3 degrees of freedom, from a printed table
    found = mean_tau(x)
    assert found.value == pytest.approx(whole)
    assert found.low == pytest.approx(max(-1, whole - half)) and found.high == pytest.approx(min(1, whole + half))


def test_two_seeds_have_a_coefficient_and_no_interval():
    found = mean_tau([[1, 2, 3], [1, 3, 2]])
    assert found.value == pytest.approx(1 / 3) and math.isnan(found.low) and math.isnan(found.high)


def test_methods_are_compared_over_all_pairs_of_seeds():
    x, y = tied(3), tied(5)
    found = mean_tau_between(x, y)
    assert found.value == pytest.approx(np.mean([[stats.kendalltau(a, b).statistic for b in y] for a in x]))
    assert math.isnan(found.low)


def coverage(trials: int, seeds: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=24)

    def draw(n: int) -> np.ndarray:
        return np.clip(np.round(4 + 1.5 * (signal + rng.normal(size=(n, 24)))), 1, None)

    many = draw(800)
    tau = float(tau_matrix(many)[np.triu_indices(800, 1)].mean())
    rho = (800 * kendalls_w(many) - 1) / 799
    hits = np.zeros(2)
    for _ in range(trials):
        x = draw(seeds)
        one, two = mean_tau(x), concordance(x)
        hits += (one.low <= tau <= one.high, two.low <= (1 + (seeds - 1) * rho) / seeds <= two.high)
    return tuple(hits / trials)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    for share in coverage(250, 8):
        assert 0.90 <= share <= 1.0


@pytest.mark.full
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_intervals_hold_the_truth_as_often_as_they_say(seeds: int):
    for share in coverage(2000, seeds):
        assert 0.94 <= share <= 0.99


def test_the_permutation_p_is_that_of_enumeration():
    from itertools import permutations

    x = np.array([[1, 2, 3], [1, 2, 3]], dtype=float)
    observed = float((x.sum(axis=0) ** 2).sum())
    count = [float(((np.add(a, b)) ** 2).sum()) >= observed for a in permutations(x[0]) for b in permutations(x[1])]
    found = agreement_p(x, resamples=8000)
    assert found == pytest.approx(np.mean(count), abs=0.02)


def test_agreement_on_types_alone_is_not_agreement_within_types():
    rng = np.random.default_rng(0)
    kinds = ["a"] * 8 + ["b"] * 8
    x = np.where(np.array(kinds) == "a", 8, 2) + rng.integers(-1, 2, (5, 16))
    assert agreement_p(x, resamples=999) < 0.01
    assert agreement_p(x, kinds, resamples=999) > 0.05


@pytest.mark.parametrize("wrong", [[[1, 2, 3]], [1, 2, 3], [[1], [2]], [[1, math.nan], [1, 2]]])
def test_what_is_no_set_of_patterns_is_refused(wrong):
    with pytest.raises(ValueError, match="seeds of at least 2, matrices of at least 2|not finite"):
        mean_tau(wrong)
