"""Statistics against scipy, against literal values from statsmodels and scikit-posthocs, and by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.stats.items import mcnemar, mcnemar_by_seed, two_way_bootstrap
from analysis.stats.seeds import (
    holm,
    paired_d,
    power,
    seeds_needed,
    sign_flip,
    summary,
    t_interval,
    win_tie_loss,
)
from analysis.stats.tasks import (
    cliques,
    critical_difference,
    friedman,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_t,
)
from experiments.studies.smallest_p import least_pairs, smallest_p

SAMPLE = np.array([0.4, -0.2, 1.3, 0.9, 0.1, 2.2, -0.7, 0.8])
FLOATS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bootstrap_t(x: NDArray[np.float64], generator: np.random.Generator, resamples: int = 9_999) -> tuple[float, float]:
    """Of one sample: one task."""
    return stratified_bootstrap_t(x[:, None], generator, resamples=resamples)


# -- one sample --------------------------------------------------------------------------------------------


def test_the_t_interval_is_scipys() -> None:
    expected = stats.ttest_1samp(SAMPLE, 0).confidence_interval(0.9)
    assert t_interval(SAMPLE, 0.9) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_summary_is_worked_out_by_hand() -> None:
    s = summary([80.0, 82.0, 84.0, 90.0])
    assert (s.n, s.mean, s.median) == (4, 84.0, 83.0)
    assert s.sd == pytest.approx(math.sqrt((16 + 4 + 0 + 36) / 3))
    assert math.isnan(summary([1.0]).sd) and math.isnan(summary([1.0, 2.0]).low)


def test_bootstrap_t_is_the_textbooks_loop() -> None:
    low, high = bootstrap_t(SAMPLE, rng(5), resamples=1999)
    n, mean = len(SAMPLE), SAMPLE.mean()
    draws = rng(5).integers(0, n, (1999, n, 1))[..., 0]
    ratios = []
    for draw in draws:
        x = [SAMPLE[i] for i in draw]
        centre = sum(x) / n
        error = math.sqrt(sum((v - centre) ** 2 for v in x) / (n - 1) / n)
        ratios.append((centre - mean) / error)
    ratios.sort()
    error = math.sqrt(sum((v - mean) ** 2 for v in SAMPLE) / (n - 1) / n)
    # the smallest value with at least 2.5 % (97.5 %) of the resamples at or below it
    assert low == pytest.approx(mean - ratios[1950 - 1] * error, rel=1e-9)
    assert high == pytest.approx(mean - ratios[50 - 1] * error, rel=1e-9)


def test_a_sample_without_spread_has_an_interval_without_width() -> None:
    same = np.full(6, 81.3)
    for found in (t_interval(same), bootstrap_t(same, rng())):
        assert found == pytest.approx((81.3, 81.3), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([1.0]), "runs of at least 2"),
        (lambda: stratified_bootstrap_t(np.ones((3, 2)), rng()), "runs of at least 4"),
        (lambda: t_interval([1.0, math.nan]), "1 of 2 values are not finite"),
        (lambda: t_interval([[1.0, 2.0]]), "shape \\(1, 2\\)"),
        (lambda: stratified_bootstrap_t(np.ones((4, 2)), rng(), level=95), "level=95 must lie between 0 and 1"),
        (lambda: sign_flip(np.ones(17)), "17 pairs"),
        (lambda: holm([0.1, 1.2]), "between 0 and 1"),
        (lambda: power(1.0, 0.0, 5), "positive sd"),
        (lambda: friedman(np.ones((4, 2))), "at least 3 methods"),
        (lambda: stratified_bootstrap_t(np.ones(4), rng()), "runs of at least 4, tasks"),
        (lambda: probability_of_improvement(np.ones((2, 2)), np.ones((2, 3))), "tasks differ: 2 and 3"),
        (lambda: mcnemar(np.array([0, 1]), np.array([1, 1])), "right or wrong"),
        (lambda: two_way_bootstrap(np.ones((1, 9)), rng()), "seeds of at least 2, items"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_offending_value(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# -- coverage ----------------------------------------------------------------------------------------------


def coverage(
    interval: Callable[[NDArray[np.float64]], tuple[float, float]], draw: Callable[[], NDArray[np.float64]],
    truth: float, trials: int,
) -> float:  # fmt: skip
    """Share of simulated samples whose interval contains the truth."""
    hits = 0
    for _ in range(trials):
        low, high = interval(draw())
        hits += low <= truth <= high
    return hits / trials


def _share(method: Callable | str, n: int, trials: int, seed: int) -> float:
    draw, resample = rng(seed), rng(seed + 1)

    def interval(x: NDArray[np.float64]) -> tuple[float, float]:
        if method is t_interval:
            return t_interval(x)
        if isinstance(method, str):
            return stats.bootstrap((x,), np.mean, method=method, n_resamples=1999, rng=resample).confidence_interval
        return method(x, resample, resamples=1999)

    return coverage(interval, lambda: draw.normal(3.0, 2.0, n), 3.0, trials)


@pytest.mark.parametrize("n", [8, 10])
def test_t_and_bootstrap_t_cover_and_percentile_and_bca_fall_short_in_a_short_simulation(n: int) -> None:
    assert 0.92 < _share(t_interval, n, 1000, 1) < 0.98
    assert 0.92 < _share(bootstrap_t, n, 500, 2) < 0.98
    assert 0.84 < _share("percentile", n, 500, 3) < 0.945
    assert 0.84 < _share("BCa", n, 500, 4) < 0.945


@pytest.mark.full
@pytest.mark.parametrize("n", [8, 10])
@pytest.mark.parametrize("method", [t_interval, bootstrap_t])
def test_intervals_for_few_seeds_cover_93_to_97_percent(method: Callable, n: int) -> None:
    assert 0.93 <= _share(method, n, 8000, 10) <= 0.97


@pytest.mark.full
@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_percentile_and_bca_cover_about_89_percent_at_8_runs(method: str) -> None:
    assert 0.87 <= _share(method, 8, 8000, 20) <= 0.92


@pytest.mark.full
@pytest.mark.parametrize("n", [8, 10])
def test_the_pooled_bootstrap_t_covers_over_tasks_of_unlike_spread(n: int) -> None:
    draw, resample, spread = rng(30), rng(31), np.array([0.5, 1.0, 3.0, 2.0])

    def interval(x: NDArray[np.float64]) -> tuple[float, float]:
        return stratified_bootstrap_t(x, resample, resamples=1999)

    share = coverage(interval, lambda: draw.normal(70.0, spread, (n, 4)), 70.0, 4000)
    assert 0.93 <= share <= 0.97


# -- paired tests ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=9))
def test_the_sign_flip_p_is_the_share_of_all_sign_patterns(differences: list[float]) -> None:
    total = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    slack = 1e-9 * (1 + sum(map(abs, differences)))
    assert sign_flip(differences) == sum(one >= total - slack for one in sums) / len(sums)


def test_the_sign_flip_p_is_scipys() -> None:
    expected = stats.permutation_test((SAMPLE,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(SAMPLE) == pytest.approx(expected, rel=1e-12)


def test_over_tasks_a_seeds_whole_row_flips() -> None:
    scores = rng(1).normal(0.4, 1.0, (8, 5))
    assert sign_flip(scores) == sign_flip(scores.mean(axis=1))


def test_sampled_sign_flips_agree_with_the_enumerated_ones() -> None:
    x = rng(2).normal(0.5, 1.0, 17)
    patterns = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = np.mean(np.abs(patterns @ x) >= abs(x.sum()) - 1e-12)
    assert sign_flip(x, rng(3)) == pytest.approx(exact, abs=4 * math.sqrt(exact / 99_999))
    assert sign_flip(np.full(40, 1.0), rng(), resamples=999) == 0.001  # never 0


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 16])
def test_equal_differences_give_the_smallest_p(n: int) -> None:
    assert sign_flip(np.full(n, 0.3)) == smallest_p(n) == 2.0 ** (1 - n)


@pytest.mark.parametrize(("family", "seeds"), [(1, 6), (3, 7), (8, 9), (16, 10)])
def test_a_family_of_m_needs_as_many_seeds_as_the_design_says(family: int, seeds: int) -> None:
    assert least_pairs(0.05, family) == seeds


def test_holm_is_statsmodels() -> None:
    # statsmodels 0.15 multipletests([...], method="holm")
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2], rel=1e-12)
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_the_raw_p_and_bonferroni_and_ignores_the_order(p: list[float], random: object) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= np.minimum(1.0, len(p) * np.array(p)) + 1e-15).all()
    assert holm(p[::-1])[::-1] == pytest.approx(adjusted)


# -- effect sizes and power --------------------------------------------------------------------------------


def test_effect_sizes_are_worked_out_by_hand() -> None:
    assert paired_d([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert paired_d([0.0, 0.0]) == 0.0 and paired_d([-1.0, -1.0]) == -math.inf
    assert win_tie_loss([0.5, -0.05, 0.0, -1.0, 0.1], tie=0.1) == (1, 3, 1)


@pytest.mark.parametrize(
    ("d", "n", "alpha", "expected"),  # statsmodels 0.15 TTestPower().power
    [
        (0.5, 10, 0.05, 0.2931756065140767),
        (1.0, 8, 0.05, 0.6808339582062661),
        (0.8, 12, 0.05 / 3, 0.5069892128107556),
    ],
)
def test_power_is_statsmodels(d: float, n: int, alpha: float, expected: float) -> None:
    assert power(d, 1.0, n, alpha) == pytest.approx(expected, rel=1e-6)
    assert power(-3 * d, 3.0, n, alpha) == pytest.approx(expected, rel=1e-6)


def test_power_grows_with_the_pairs_up_to_one() -> None:
    for effect in (0.01, 0.1, 0.5, 2.0, 50.0):
        found = [power(effect, 1.0, n) for n in (2, 3, 5, 8, 13, 30, 100, 1000, 10_000)]
        assert all(0.05 - 1e-9 <= p <= 1 for p in found)
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(found))


def test_the_seeds_that_settle_a_comparison_are_statsmodels_rounded_up() -> None:
    assert seeds_needed(0.5, 1.0) == 34  # 33.37
    assert seeds_needed(2.0, 2.0) == 10  # 9.94
    assert seeds_needed(0.8, 1.0, family=8) == 24  # 23.77


def test_the_seeds_that_settle_are_the_fewest_with_the_power_whatever_the_spread() -> None:
    """Against the power as a mean over the sample's own spread: scipy's nct.cdf is NaN here and there."""

    def chance(sd: float, n: int, alpha: float) -> float:
        chi = stats.chi(n - 1, scale=1 / math.sqrt(n - 1))
        shift, bound = 0.5 * math.sqrt(n) / sd, stats.t.ppf(1 - alpha / 2, n - 1)
        s = chi.ppf((np.arange(5_000) + 0.5) / 5_000)
        return float((stats.norm.cdf(shift - bound * s) + stats.norm.cdf(-shift - bound * s)).mean())

    for sd in np.append(np.linspace(0.2, 1.5, 40), 0.59079):
        n = seeds_needed(0.5, sd, family=4)
        assert n is not None
        assert chance(sd, n, 0.0125) >= 0.8 - 1e-4
        assert n == 8 or chance(sd, n - 1, 0.0125) < 0.8 + 1e-4  # 8: the fewest pairs that can reach 0.0125
        assert power(0.5, sd, n, 0.0125) == pytest.approx(chance(sd, n, 0.0125), abs=1e-4)


def test_a_large_effect_still_needs_the_seeds_of_the_exact_test() -> None:
    assert seeds_needed(50.0, 1.0) == 6 and seeds_needed(50.0, 1.0, family=16) == 10
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.001, 1.0) is None


# -- over tasks --------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_scipys() -> None:
    for shape in ((8, 3), (7, 2), (3, 1)):
        x = rng(4).normal(size=shape)
        assert interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None), rel=1e-12)


def test_the_probability_of_improvement_is_mann_whitneys() -> None:
    x, y = rng(5).integers(0, 9, (6, 3)).astype(float), rng(6).integers(0, 9, (4, 3)).astype(float)
    expected = np.mean([stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 24 for t in range(3)])
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-12)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


def test_a_performance_profile_is_the_share_above_each_threshold() -> None:
    scores = [[1.0, 5.0], [2.0, 6.0]]
    assert performance_profile(scores, [0.0, 1.0, 5.5, 6.0]).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_the_stratified_bootstrap_draws_runs_within_tasks() -> None:
    # between tasks everything differs, within them nothing: no uncertainty is left
    assert stratified_bootstrap_t(np.array([[10.0, 90.0]] * 5), rng()) == (50.0, 50.0)


def test_the_stratified_bootstrap_of_the_mean_has_the_width_that_theory_gives() -> None:
    x = rng(7).normal(0.0, [1.0, 4.0], (200, 2))
    error = math.sqrt(x[:, 0].var() / 200 + x[:, 1].var() / 200) / 2
    expected = (x.mean() - 1.96 * error, x.mean() + 1.96 * error)
    assert stratified_bootstrap_t(x, rng(9), resamples=4000) == pytest.approx(expected, abs=0.15 * error)


BLOCKS = np.array(
    [[80.1, 81.2, 79.3, 80.0], [60.5, 61.0, 60.0, 60.5], [90.2, 91.1, 90.0, 90.3], [70.0, 69.0, 68.5, 71.0],
     [75.5, 76.5, 74.0, 75.0]]
)  # fmt: skip


def test_friedman_is_scipys_with_ties() -> None:
    expected = stats.friedmanchisquare(*BLOCKS.T)
    found = friedman(BLOCKS)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)
    assert found.mean_ranks == pytest.approx(stats.rankdata(-BLOCKS, axis=1).mean(axis=0))


def test_friedman_of_equal_methods_finds_nothing() -> None:
    assert friedman(np.ones((4, 3))).p == 1.0


def test_nemenyis_bound_is_that_of_the_printed_table() -> None:
    # Demsar 2006, table 5(a): q for alpha 0.05 and 2 to 10 methods
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for methods, q in enumerate(table, start=2):
        bound = q * math.sqrt(methods * (methods + 1) / (6 * 30))
        assert critical_difference(methods, 30) == pytest.approx(bound, abs=6e-4)


def test_nemenyis_groups_are_those_of_scikit_posthocs() -> None:
    # scikit-posthocs 0.17 posthoc_nemenyi_friedman(BLOCKS): of all pairs only 1 and 2 have p < 0.05 (0.0079)
    assert cliques(friedman(BLOCKS).mean_ranks, critical_difference(4, 5)) == [[1, 0, 3], [0, 3, 2]]
    assert cliques([1.0, 5.0, 9.0], 2.0) == [] and cliques([3.0, 1.0, 2.0], 9.0) == [[1, 2, 0]]


# -- items -------------------------------------------------------------------------------------------------


def test_mcnemar_is_statsmodels() -> None:
    first = np.array([True] * 30 + [True] * 12 + [False] * 4 + [False] * 54)
    second = np.array([True] * 30 + [False] * 12 + [True] * 4 + [False] * 54)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (12, 4)
    assert found.p == pytest.approx(0.076812744140625, rel=1e-12)  # statsmodels 0.15 mcnemar(exact=True)
    assert mcnemar(first, first).p == 1.0
    by_seed = mcnemar_by_seed(np.stack([first, first]), np.stack([second, first]))
    assert by_seed == [found, mcnemar(first, first)]


def test_the_two_way_bootstrap_varies_with_seeds_and_with_items() -> None:
    seeds_differ = np.repeat(np.array([[1.0], [0.0], [0.5], [-1.0], [2.0]]), 400, axis=1)
    items_differ = np.repeat(rng(1).normal(size=(1, 400)), 5, axis=0)
    for x, spread in ((seeds_differ, seeds_differ[:, 0].std() / 5**0.5), (items_differ, items_differ[0].std() / 20)):
        mean, (low, high) = two_way_bootstrap(x, rng(2), resamples=4000)
        assert mean == pytest.approx(x.mean())
        assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1.0, abs=0.08)


def test_the_two_way_bootstrap_is_the_slow_one() -> None:
    x = rng(3).normal(size=(3, 7))
    slow, draw = [], rng(4)
    for _ in range(200):
        rows, columns = draw.integers(0, 3, 3), draw.integers(0, 7, 7)
        slow.append(np.mean([[x[i, j] for j in columns] for i in rows]))
    assert two_way_bootstrap(x, rng(4), resamples=200)[1] == pytest.approx(np.quantile(slow, [0.025, 0.975]))


def test_the_same_generator_gives_the_same_numbers() -> None:
    assert bootstrap_t(SAMPLE, rng(1), resamples=99) == bootstrap_t(SAMPLE, rng(1), resamples=99)
