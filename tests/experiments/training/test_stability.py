"""The stability of a run, from worked examples."""

from __future__ import annotations

import math

import pytest

from experiments.training.stability import stability

LN2 = math.log(2)


def test_steps_above_guessing_and_the_largest_rise_are_counted_after_the_warm_up() -> None:
    losses = [(9, 2.0), (19, 0.70), (29, 0.77), (39, 0.50), (49, 0.60), (54, 0.80)]
    reading = stability(losses, LN2, warmup=10)
    assert reading.above == pytest.approx((10 + 5) / 45)  # 0.77 and 0.80; 0.70 is within 5 % of 0.693
    assert reading.rise == pytest.approx(0.30) and reading.unstable


def test_a_loss_that_falls_is_stable_and_one_of_ten_entries_above_is_tolerated() -> None:
    falling = [(9 + 10 * i, 0.7 - 0.05 * i) for i in range(10)]
    assert stability(falling, LN2, 0).above == 0 and stability(falling, LN2, 0).rise == 0
    once = [(step, 0.9 if step == 59 else loss) for step, loss in falling]
    assert stability(once, LN2, 0).above == pytest.approx(0.1) and not stability(once, LN2, 0).unstable


def test_without_a_constant_answer_there_is_no_share() -> None:
    reading = stability([(9, 3.0), (19, 2.0)], math.nan, 0)
    assert math.isnan(reading.above) and not reading.unstable and reading.rise == 0


def test_the_descent_of_a_regression_from_far_above_does_not_count() -> None:
    steps = range(9, 160, 10)
    calm = [6.4, 2.3, 2.6, 2.5, 2.0, 1.5, 1.0, 1.1, 1.0, 1.3, 1.2, 0.9, 1.0, 0.8, 0.6, 0.6]
    assert stability(list(zip(steps, calm, strict=True)), 2.07, 10, regression=True).above == 0
    wild = [5.6, 2.4, 3.8, 3.7, 3.8, 2.9, 2.6, 3.4, 3.8, 2.5, 2.4, 2.6, 2.2, 2.1, 2.4, 1.1]
    # above 2.4 * 1.25 = 3.0 while it descends, above 2.07 * 1.05 = 2.17 once it has been at 2.1
    reading = stability(list(zip(steps, wild, strict=True)), 2.07, 10, regression=True)
    assert reading.above == pytest.approx((5 + 1) / 15)


def test_a_loss_that_never_comes_down_to_guessing_is_unstable() -> None:
    assert stability([(9, 3.0), (19, 2.6), (29, 2.5)], 2.0, 0, regression=True).above == 1


def test_near_guessing_there_is_no_descent() -> None:
    assert stability([(9, 0.80), (19, 0.80), (29, 0.60)], LN2, 0, regression=True).above == pytest.approx(2 / 3)


def test_a_classifier_that_blows_up_in_its_first_steps_is_unstable() -> None:
    losses = [(step, 0.9 if step < 40 else 0.4) for step in range(9, 100, 10)]
    assert stability(losses, LN2, 0).above == pytest.approx(0.4)
    assert stability(losses, LN2, 0, regression=True).above == 0
