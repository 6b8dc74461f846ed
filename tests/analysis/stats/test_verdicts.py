"""Verdicts: what may be said of a family, with the null studies that a sign-flip test alone gets wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.stats.verdicts import Evidence, judge, signed_rank, unseen_blow_ups

DEPTH = 25.0  # points above the constant answer


def verdict(gaps: np.ndarray, **changes: object):
    drops = np.full((2, gaps.shape[1]), DEPTH)
    return judge([Evidence(gaps, changes.pop("worst", None), drops)], np.random.default_rng(0), **changes)[0]


def test_a_steady_small_difference_is_higher_in_a_typical_run_and_not_better():
    found = verdict(np.linspace(0.8, 1.2, 10)[:, None])
    assert (found.direction, found.better, found.p) == (1, False, 2**-9)
    assert found.unseen == pytest.approx((1 - 0.05**0.1) * DEPTH)


def test_a_difference_that_unseen_blow_ups_cannot_cancel_is_better():
    assert verdict(np.linspace(7.0, 7.4, 10)[:, None]).better
    assert verdict(np.linspace(-7.4, -7.0, 10)[:, None]).direction == -1


def test_what_blow_ups_could_cost_counts_the_costlier_of_all_tasks_and_one():
    rate, cost = unseen_blow_ups(10, np.array([30.0, 10.0]))
    assert rate == pytest.approx(1 - 0.05 ** (1 / 20))
    assert cost == pytest.approx(max(rate * 20, (1 - 0.05**0.1) * 30 / 2))


def test_a_difference_that_single_seeds_carry_is_withheld():
    gaps = np.array([[9.0], [8.0], [8.5], [7.0], [6.0], [-0.05], [-0.1], [-0.2], [-0.3], [-0.4], [-0.5], [-0.6]])
    found = verdict(gaps, alpha=0.2)
    assert found.corrected < 0.2 and found.direction == 0
    assert found.withheld == ("the median does not point the same way as the mean",)


def test_failed_runs_at_the_constant_answer_withhold_a_claim():
    gaps = np.full((10, 1), 1.0)
    gaps[8:] = np.nan
    worst = np.where(np.isnan(gaps), -DEPTH, gaps)
    found = verdict(gaps, worst=worst)
    assert found.corrected == 2**-7 and found.p_worst > 0.05 and found.direction == 0
    assert "constant answer" in found.withheld[0]


def test_an_equivalence_is_a_verdict_of_its_own():
    small = np.array([[0.1], [-0.1], [0.05], [-0.05], [0.02], [0.08], [-0.03], [0.0]])
    assert verdict(small, margin=0.5).equivalent and not verdict(small, margin=0.02).equivalent
    assert np.isnan(verdict(small).p_equivalent)
    both = verdict(np.linspace(0.1, 0.3, 8)[:, None], margin=0.5)
    assert both.equivalent and both.direction == 1


def test_a_comparison_that_waits_counts_and_gets_no_verdict():
    waiting, tested = judge([None, Evidence(np.full((8, 1), 1.0))], np.random.default_rng(0))
    assert (waiting.direction, waiting.corrected) == (0, 1.0) and tested.corrected == 2 * 2**-7


def test_the_signed_rank_test_is_scipy_s():
    x = np.random.default_rng(1).normal(0.4, 1.0, 9)
    assert signed_rank(x, np.random.default_rng(0)) == pytest.approx(stats.wilcoxon(x, method="exact").pvalue)
