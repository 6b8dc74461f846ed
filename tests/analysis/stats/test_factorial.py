"""Effects of the factorial, against a regression of statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.stats.factorial import contrasts, effects


def worked() -> np.ndarray:
    s, i, j, k = np.indices((4, 3, 2, 2))
    return 80 + ((7 * s + 3 * i + 5 * j + 11 * k + 2 * i * j * s + i * k) % 13) / 4


def test_effects_are_those_of_a_regression_with_seeds_as_blocks():
    """statsmodels 0.15: ols(y ~ C(seed) + (moving + scores) * D1 * D2), switches coded -1/2 and 1/2."""
    expected = {
        "moving": -0.0546875, "scores": -0.171875, "D1": 0.375, "D2": 0.2916666667, "moving x D1": 0.515625,
        "moving x D2": -0.640625, "scores x D1": 1.15625, "scores x D2": -0.15625, "D1 x D2": 0.0,
        "moving x D1 x D2": 1.21875, "scores x D1 x D2": -0.8125,
    }  # fmt: skip
    found = {e.name: e.mean for e in effects(worked())}
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-9)


def test_an_effects_interval_and_p_are_those_of_its_own_sample():
    x = worked()
    d1 = x[:, :, 1].mean(axis=(1, 2)) - x[:, :, 0].mean(axis=(1, 2))
    effect = next(e for e in effects(x) if e.name == "D1")
    low, high = stats.ttest_1samp(d1, 0).confidence_interval()
    p = stats.permutation_test((d1,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert (effect.low, effect.high, effect.p) == pytest.approx((low, high, p))


def test_contrasts_ask_each_question_once():
    weights = np.array([w.ravel() for w in contrasts().values()])
    assert len(weights) == 11 and np.allclose(weights.sum(axis=1), 0)
    gram = weights @ weights.T
    assert np.allclose(gram, np.diag(np.diag(gram)))
