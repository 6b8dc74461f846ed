"""The metrics against examples worked by hand, and what a collapsed model scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from elalora.errors import UserError
from experiments.training.metrics import METRICS, calibrated_loss, collapsed, compute, majority_baseline

# 4 true positives, 3 true negatives, 1 false positive, 2 false negatives.
LABELS = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]


def test_accuracy_f1_and_mcc_are_those_of_the_confusion_matrix() -> None:
    tp, tn, fp, fn = 4, 3, 1, 2
    scores, flat = compute(["accuracy", "f1", "mcc"], LABELS, PREDICTIONS)
    assert scores["accuracy"] == pytest.approx(70.0)
    assert scores["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["mcc"] == pytest.approx(100 * (tp * tn - fp * fn) / root)
    assert not flat


def test_classes_given_as_floats_score_as_integers_do() -> None:
    names = ["accuracy", "f1", "mcc"]
    as_floats = compute(names, [float(x) for x in LABELS], [float(x) for x in PREDICTIONS])
    assert as_floats == compute(names, LABELS, PREDICTIONS)


def test_mcc_of_three_classes_is_the_multiclass_formula() -> None:
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 1])
    # c correct of s items; t_k true and p_k predicted items of class k (Gorodkin 2004).
    c, s, t, p = 4, 6, np.array([2, 2, 2]), np.array([2, 2, 2])
    expected = (c * s - t @ p) / math.sqrt((s * s - p @ p) * (s * s - t @ t))
    assert compute(["mcc"], labels, predictions)[0]["mcc"] == pytest.approx(100 * expected)


def test_pearson_is_covariance_over_deviations() -> None:
    labels, predictions = [1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 6.0]
    # Deviations from the means 2.75 and 3: (-1.75, -0.75, 0.25, 2.25) and (-2, 0, -1, 3).
    # Their products sum to 10, their squares to 8.75 and 14.
    expected = 10 / math.sqrt(8.75 * 14)
    assert compute(["pearson"], labels, predictions)[0]["pearson"] == pytest.approx(100 * expected)


def test_spearman_is_pearson_of_ranks_with_ties_shared() -> None:
    labels, predictions = [10.0, 20.0, 30.0, 40.0], [0.1, 0.1, 5.0, 3.0]
    # Ranks 1 2 3 4 and 1.5 1.5 4 3; deviations (-1.5, -0.5, 0.5, 1.5) and (-1, -1, 1.5, 0.5).
    # Their products sum to 3.5, their squares to 5 and 4.5.
    expected = 3.5 / math.sqrt(5 * 4.5)
    assert compute(["spearman"], labels, predictions)[0]["spearman"] == pytest.approx(100 * expected)


def test_a_collapsed_run_keeps_a_score_of_zero_and_is_flagged() -> None:
    assert compute(["mcc", "f1"], LABELS, [0] * 10) == ({"mcc": 0.0, "f1": 0.0}, True)
    scores, flat = compute(["pearson", "spearman"], [0.5, 1.0, 2.0], [0.3, 0.3, 0.3])
    assert scores == {"pearson": 0.0, "spearman": 0.0}
    assert flat


def test_one_class_in_labels_and_predictions_scores_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert compute(["accuracy", "mcc"], [1, 1], [1, 1]) == ({"accuracy": 100.0, "mcc": 0.0}, True)
    assert not recwarn.list


def test_rounding_noise_around_a_constant_counts_as_collapsed() -> None:
    noise = np.float32(2.5) + np.array([0, 1e-7, -1e-7], dtype=np.float32)
    assert collapsed(noise)
    assert collapsed([0.0, 0.0])
    assert not collapsed([2.5, 2.51, 2.5])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 predictions are not finite"):
        compute(["pearson"], [1.0, 2.0], [0.5, bad])


@pytest.mark.parametrize(("labels", "predictions"), [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_shapes_other_than_two_equal_lists_are_refused(labels: list, predictions: list) -> None:
    with pytest.raises(ValueError, match="are not two"):
        compute(["accuracy"], labels, predictions)


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="metric bleu is unknown.*" + ", ".join(METRICS)):
        compute(["bleu"], [1], [1])


def test_the_majority_baseline_is_the_commonest_class_or_a_flat_zero() -> None:
    assert majority_baseline("classification", ["accuracy", "mcc"], LABELS) == {"accuracy": 60.0, "mcc": 0.0}
    assert majority_baseline("classification", ["accuracy", "f1"], [0, 1]) == {"accuracy": 50.0, "f1": 0.0}
    assert majority_baseline("regression", ["pearson"], [0.1, 0.2, 0.4]) == {"pearson": 0.0}


def test_the_calibrated_loss_of_two_classes_is_that_of_a_logistic_regression_on_the_margin() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    logits = rng.normal(size=(200, 2)) * 7  # far surer than it is right
    logits[np.arange(200), labels] += 4
    loss, temperature = calibrated_loss(logits, labels)
    margin = (logits[:, 1] - logits[:, 0])[:, None]
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin, labels)
    assert 1 / temperature == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
    assert loss == pytest.approx(log_loss(labels, fitted.predict_proba(margin)), abs=1e-8)


def test_a_calibrated_loss_knows_no_scale_and_meets_the_condition_of_its_minimum() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 300)
    logits = rng.normal(size=(300, 5)) + 1.2 * np.eye(5)[labels]
    loss, temperature = calibrated_loss(logits, labels)
    for factor in (1e-3, 30.0):
        scaled = calibrated_loss(factor * logits, labels)
        assert scaled == (pytest.approx(loss, abs=1e-9), pytest.approx(factor * temperature, rel=1e-4))
    mass = np.exp(logits / temperature)
    expected = (mass / mass.sum(1, keepdims=True) * logits).sum(1).mean()  # the derivative in 1 / temperature is 0
    assert expected == pytest.approx(logits[np.arange(300), labels].mean(), abs=1e-5)


def test_logits_that_are_of_no_use_are_calibrated_to_guessing() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    assert calibrated_loss(logits, np.array([1, 0, 1])) == (pytest.approx(math.log(2)), math.inf)
    assert calibrated_loss(np.zeros((3, 4)), np.array([1, 0, 3])) == (pytest.approx(math.log(4)), math.inf)
    right, temperature = calibrated_loss(logits, np.array([0, 1, 0]))
    assert right < 1e-9 and temperature < 0.01
