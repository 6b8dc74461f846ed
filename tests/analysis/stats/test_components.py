"""Seeds and items both at random: closed forms, and coverage where the components are known."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.items import seeds_and_items


def crossed(rng: np.random.Generator, seeds: int, items: int, sd: tuple[float, float, float]) -> np.ndarray:
    """Differences (seeds, items) with a true mean of 0 and known spreads of seeds, items and the rest."""
    return (
        rng.normal(0, sd[0], (seeds, 1)) + rng.normal(0, sd[1], (1, items)) + rng.normal(0, sd[2], (seeds, items))
    )  # fmt: skip


def test_the_variance_is_that_of_the_mean_squares():
    x = crossed(np.random.default_rng(0), 6, 40, (1.0, 2.0, 3.0))
    seeds, items = x.shape
    total = sum((x[i, j] - x.mean()) ** 2 for i in range(seeds) for j in range(items))
    ss_seeds = items * sum((row.mean() - x.mean()) ** 2 for row in x)
    ss_items = seeds * sum((column.mean() - x.mean()) ** 2 for column in x.T)
    ms = [ss_seeds / (seeds - 1), ss_items / (items - 1)]
    rest = (total - ss_seeds - ss_items) / ((seeds - 1) * (items - 1))
    found = seeds_and_items([x])
    assert found.mean == pytest.approx(x.mean())
    assert found.seeds + found.items == pytest.approx((sum(ms) - rest) / (seeds * items))
    squares = ms[0] ** 2 / (seeds - 1) + ms[1] ** 2 / (items - 1) + rest**2 / ((seeds - 1) * (items - 1))
    assert found.df == pytest.approx((sum(ms) - rest) ** 2 / squares)


def test_items_that_do_not_vary_leave_the_interval_over_seeds():
    seeds = np.random.default_rng(1).normal(0, 1, (8, 1))
    found = seeds_and_items([np.repeat(seeds, 30, axis=1)])
    half = 2.3646242515927844 * seeds.std(ddof=1) / 8**0.5  # 97.5 % point of t with 7 degrees of freedom
    assert found.high - found.mean == pytest.approx(half) and found.items == pytest.approx(0, abs=1e-15)


def test_over_tasks_seeds_are_shared_and_items_are_not():
    rng = np.random.default_rng(2)
    x = crossed(rng, 8, 50, (0.0, 2.0, 1.0))
    one, two = seeds_and_items([x]), seeds_and_items([x, x])
    assert two.seeds == pytest.approx(one.seeds) and two.items == pytest.approx(one.items / 2)


@pytest.mark.slow
def test_the_interval_covers_new_seeds_and_items_where_that_over_seeds_does_not():
    rng = np.random.default_rng(3)
    both, seeds_only, studies = 0, 0, 2_000
    for _ in range(studies):
        x = crossed(rng, 10, 60, (0.5, 3.0, 4.0))
        found = seeds_and_items([x])
        both += found.low <= 0 <= found.high
        half = 2.2621571627409915 * x.mean(axis=1).std(ddof=1) / 10**0.5
        seeds_only += abs(x.mean()) <= half
    assert 0.935 < both / studies < 0.985 and seeds_only / studies < 0.92, (both / studies, seeds_only / studies)
