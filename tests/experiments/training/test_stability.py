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
