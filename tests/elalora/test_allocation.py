"""The decision of a round against a plain-Python reference and for every input hypothesis can think of."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from elalora.allocation import candidates, decide, widen_ties

matrices = st.dictionaries(
    st.sampled_from([f"m{i}" for i in range(8)]),
    st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=7),
    min_size=1,
)


def reference(scores, b, k):
    """Pool, prune set and expansion set as points 7 and 8 of the algorithm say, without ties or limits."""
    pool = []
    for name, values in scores.items():
        order = sorted(range(len(values)), key=values.__getitem__)
        for i in order[: min(k, len(values) - 1)]:
            pool.append((values[i], name, i))
    pool.sort()
    low = {(n, i) for _, n, i in pool[:b]}
    high = sorted(n for _, n, _ in pool[len(pool) - b :])
    return low, high


def test_decisions_equal_the_plain_reference():
    rng = random.Random(0)
    for _ in range(300):
        scores = {f"m{i}": [rng.random() for _ in range(rng.randint(1, 6))] for i in range(rng.randint(2, 9))}
        k = rng.randint(1, 4)
        pool = sum(min(k, len(v) - 1) for v in scores.values())
        if not pool:
            continue
        b = rng.randint(1, pool)
        made = decide(scores, b, k, dict.fromkeys(scores, 99))
        assert (set(made.prune), sorted(made.grow)) == reference(scores, b, k)


def test_a_decision_worked_out_by_hand():
    scores = {"q": [0.5, 0.1, 0.9], "v": [0.2, 0.3], "f": [0.8]}
    made = decide(scores, 1, 2, {"q": 9, "v": 9, "f": 9})
    # pool: q 0.1, q 0.5, v 0.2; f has one direction, so it has no candidate
    assert made.prune == [("q", 1)] and made.grow == ["q"] and made.pool == 3 and made.replaced == 1
    made = decide(scores, 1, 2, {"q": 9, "v": 9, "f": 9}, rank1_growth=True)
    assert made.grow == ["f"]
    made = decide(scores, 1, 2, {"q": 9, "v": 9, "f": 9}, rule="mean")
    assert made.grow == ["f"]  # mean 0.8 before q 0.5 and v 0.25


@settings(max_examples=300, deadline=None)
@given(
    scores=matrices,
    b=st.integers(0, 30),
    k=st.integers(1, 5),
    room=st.integers(0, 4),
    rule=st.sampled_from(["pool", "mean", "random"]),
    rank1_growth=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_rank_sum_is_kept_and_no_limit_is_broken(scores, b, k, room, rule, rank1_growth, seed):
    rng = random.Random(seed)
    capacity = {m: len(v) + room for m, v in scores.items()}
    made = decide(scores, b, k, capacity, rule, rank1_growth, draw=rng.randrange)
    assert len(made.prune) == len(made.grow) <= b
    assert len(set(made.prune)) == len(made.prune)
    lost = {m: sum(n == m for n, _ in made.prune) for m in scores}
    won = {m: made.grow.count(m) for m in scores}
    for m, values in scores.items():
        assert lost[m] <= min(k, len(values) - 1)
        assert 1 <= len(values) - lost[m] + won[m] <= capacity[m]


@settings(max_examples=200, deadline=None)
@given(scores=matrices, b=st.integers(1, 12), k=st.integers(1, 4), spare=st.integers(0, 40), data=st.data())
def test_a_parameter_budget_is_never_exceeded(scores, b, k, spare, data):
    cost = {m: data.draw(st.integers(5, 40)) for m in scores}
    made = decide(scores, b, k, dict.fromkeys(scores, 99), cost=cost, spare=spare)
    change = sum(cost[m] for m in made.grow) - sum(cost[m] for m, _ in made.prune)
    assert change <= spare and len(made.prune) == len(made.grow)


def test_b_larger_than_the_pool_moves_the_whole_pool():
    scores = {"a": [0.1, 0.2, 0.3], "b": [0.4, 0.5]}
    made = decide(scores, 50, 2, {"a": 9, "b": 9})
    assert len(made.prune) == len(made.grow) == made.pool == 3


def test_an_empty_pool_moves_nothing():
    made = decide({"a": [0.1], "b": [0.2]}, 3, 2, {"a": 9, "b": 9})
    assert made.prune == [] and made.grow == []


def test_ties_go_to_the_lowest_index_and_widen_in_official():
    scores = {"a": [0.0, 0.0, 0.0, 1.0], "b": [0.0, 0.0]}
    made = decide(scores, 1, 2, {"a": 9, "b": 9})
    assert made.prune == [("a", 0)]
    assert widen_ties(made.prune, scores, 2) == [("a", 0), ("a", 1)]
    assert widen_ties([], scores, 2) == []


def test_candidates_are_the_lowest_of_each_matrix_in_ascending_order():
    pool = candidates({"a": [3.0, 1.0, 2.0], "b": [0.5, 9.0]}, 2)
    assert pool == [(0.5, "b", 0), (1.0, "a", 1), (2.0, "a", 2)]
