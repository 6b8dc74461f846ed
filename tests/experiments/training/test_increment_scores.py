"""Scores of a sequence of increments on worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.training.increment_scores import (
    accuracy_matrix,
    anytime_accuracy,
    final_accuracy,
    forgetting,
    forward_transfer,
    seen_accuracy,
)

MATRIX = accuracy_matrix([[90.0], [60.0, 80.0], [70.0, 50.0, 100.0]])  # class-incremental: nothing above the diagonal


def test_missing_readings_of_the_matrix_are_nan():
    assert MATRIX.shape == (3, 3)
    assert np.isnan(MATRIX[0, 1:]).all() and np.isnan(MATRIX[1, 2]) and MATRIX[2].tolist() == [70.0, 50.0, 100.0]


def test_seen_accuracy_weighs_increments_by_their_items():
    # after the second increment: (60 * 10 + 80 * 30) / 40 = 75; after the third: (70 * 10 + 50 * 30 + 100 * 60) / 100
    assert seen_accuracy(MATRIX, [10, 30, 60]).tolist() == [90.0, 75.0, 82.0]
    assert final_accuracy(MATRIX, [10, 30, 60]) == 82.0
    assert anytime_accuracy(MATRIX, [10, 30, 60]) == pytest.approx((90 + 75 + 82) / 3)


def test_seen_accuracy_is_that_of_the_pooled_items():
    rng = np.random.default_rng(0)
    right = [rng.random(size) < share for size, share in ((7, 0.9), (20, 0.4), (3, 0.5))]
    rows = [[100 * part.mean() for part in right[: t + 1]] for t in range(3)]
    assert final_accuracy(accuracy_matrix(rows), [7, 20, 3]) == pytest.approx(100 * np.concatenate(right).mean())


def test_forgetting_is_the_loss_since_the_best_earlier_reading():
    # increment 1: best of 90 and 60, less 70; increment 2: 80 less 50
    assert forgetting(MATRIX) == ((90 - 70) + (80 - 50)) / 2
    assert forgetting(accuracy_matrix([[50.0], [70.0, 90.0]])) == -20.0


def test_forward_transfer_is_what_earlier_increments_add_before_an_increment_is_trained():
    domains = accuracy_matrix([[90.0, 60.0, 55.0], [80.0, 85.0, 65.0], [80.0, 80.0, 95.0]])
    assert forward_transfer(domains, [50.0, 52.0, 50.0]) == ((60 - 52) + (65 - 50)) / 2


def test_forward_transfer_is_none_where_increments_to_come_were_not_read():
    assert forward_transfer(MATRIX, [0.0, 0.0, 0.0]) is None


def test_one_increment_has_neither_forgetting_nor_forward_transfer():
    one = accuracy_matrix([[88.0]])
    assert forgetting(one) is None and forward_transfer(one, [50.0]) is None
    assert final_accuracy(one, [5]) == anytime_accuracy(one, [5]) == 88.0
