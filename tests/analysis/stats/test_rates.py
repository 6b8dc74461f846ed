"""Rate curves against worked examples and a resampling written out by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from analysis.stats.rates import rate_curve

RATES = [1e-3, 2e-3, 4e-3, 8e-3]


def test_a_curve_has_its_best_rate_plateau_and_cliff() -> None:
    curve = rate_curve(RATES, [[78.0, 80.0, 79.5, 60.0], [79.0, 81.0, 80.5, 58.0]], constant=50.0)
    assert (curve.best, curve.edge, curve.plateau, curve.cliff) == (2e-3, False, (2e-3, 4e-3), 8e-3)
    assert curve.chosen.tolist() == [0, 1, 0, 0] and curve.error == 1.0


def test_the_plateau_is_unbroken_and_a_constant_answer_that_is_unknown_gives_no_cliff() -> None:
    curve = rate_curve(RATES, [[80.0, 70.0, 80.1, 79.9]], constant=math.nan)
    assert curve.plateau == (4e-3, 8e-3) and curve.cliff is None


@pytest.mark.parametrize(("scores", "edge"), [([1.0, 2.0, 3.0, 4.0], True), ([4.0, 3.0, 2.0, 1.0], True),
                                             ([1.0, 3.0, 2.0, 1.0], False)])  # fmt: skip
def test_a_best_rate_at_the_end_of_the_grid_is_at_the_edge(scores: list[float], edge: bool) -> None:
    assert rate_curve(RATES, [scores], 0.0).edge is edge


def test_of_equal_means_the_rate_nearest_to_the_middle_is_the_best() -> None:
    assert rate_curve(RATES[:3], [[5.0, 5.0, 5.0]], 0.0).best == 2e-3


def test_the_error_of_the_choice_is_that_of_every_draw_of_the_seeds() -> None:
    scores = np.array([[3.0, 2.0, 0.0, 0.0], [0.0, 2.0, 2.5, 0.0], [1.0, 2.0, 2.2, 0.0]])
    picks = []
    for draw in product(range(3), repeat=3):
        means = [sum(scores[seed][rate] for seed in draw) / 3 for rate in range(4)]
        best = max(means)
        picks.append(min((i for i in range(4) if means[i] == best), key=lambda i: (abs(i - 1.5), i)))
    logs = [math.log(RATES[i]) for i in picks]
    mean = sum(logs) / 27
    curve = rate_curve(RATES, scores, 0.0)
    assert curve.error == pytest.approx(math.exp(math.sqrt(sum((x - mean) ** 2 for x in logs) / 27)), rel=1e-12)
    np.testing.assert_allclose(curve.chosen, [picks.count(i) / 27 for i in range(4)], atol=1e-15)


def test_many_seeds_are_resampled_by_a_fixed_draw() -> None:
    scores = np.random.default_rng(1).normal(80, 1, (8, 4))
    first, second = rate_curve(RATES, scores, 50.0), rate_curve(RATES, scores, 50.0)
    assert first.error == second.error > 1 and first.chosen.sum() == pytest.approx(1)


def test_rates_that_do_not_fit_the_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rising rates"):
        rate_curve(RATES[:3], np.zeros((2, 4)), 0.0)
    with pytest.raises(ValueError, match="rising rates"):
        rate_curve([2e-3, 1e-3], np.zeros((2, 2)), 0.0)
