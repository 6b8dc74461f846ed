"""FlexLoRA: scores against numpy and closed forms, rounds against a plain replay, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, batch, train
from resuming import check_resumes

from baselines.flexlora import FlexLoRA, FlexLoRAConfig, spectral_score
from baselines.svd_lora import SVDLoRA, SVDLoRAConfig
from elalora import Budget, RowwiseAdamW, Schedule
from elalora.resolve import RunSize
from elalora.schedules import FALLS, Phases

PHASES = {"t_initial": 8, "t_final": 20, "interval": 6}
STEPS = 80


def flex(net=None, rank=3, seed=0, **knobs):
    net = net or Net()
    method = FlexLoRA(FlexLoRAConfig(**{**PHASES, "b": 2, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], STEPS, keep=["head"], seed=seed)
    return net, method


def entropy_of(values):
    """The formula in numpy, float64."""
    e = np.asarray(values, dtype=np.float64)
    p = e**2 / (e**2).sum()
    return float(-(p * np.log(p + 1e-8)).sum() / np.log(len(e)))


# -- scores ----------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=12)


@settings(max_examples=200, deadline=None)
@given(numbers, st.floats(1e-3, 1e3), st.randoms())
def test_the_entropy_is_the_formula_and_knows_no_scale_sign_or_order(values, factor, random):
    score = spectral_score(values, "entropy")
    assert score == pytest.approx(entropy_of(values), abs=1e-12)
    other = [factor * value * random.choice((1, -1)) for value in values]
    random.shuffle(other)
    assert spectral_score(other, "entropy") == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([2.0, 2.0, -2.0, 2.0], 1.0),
        ([0.0, 5.0, 0.0], 0.0),
        ([1.0, -1.0, 0.0], math.log(2) / math.log(3)),
        ([3.0, 4.0], -(0.36 * math.log(0.36) + 0.64 * math.log(0.64)) / math.log(2)),
        ([7.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([], 0.0),
    ],
)
def test_the_entropy_of_worked_examples(values, score):
    assert spectral_score(values, "entropy") == pytest.approx(score, abs=1e-7)


def test_the_other_scores_are_norms_of_E():
    assert spectral_score([3.0, -4.0], "frobenius") == 5.0 and spectral_score([3.0, -4.0], "nuclear") == 7.0


def test_growing_alone_lowers_the_entropy_by_the_ratio_of_logarithms():
    values = [1.0, 0.7, -0.3, 0.2]
    grown = spectral_score([*values, 0.0], "entropy")
    assert grown / spectral_score(values, "entropy") == pytest.approx(math.log(4) / math.log(5), abs=1e-7)


# -- rounds ----------------------------------------------------------------------------------------------------


def replay(values, b, f5=False, f6=False):
    """One round in numpy from E by matrix: [(matrix, slot)] that go, and the matrices that grow."""
    names = list(values)
    scores = np.array([entropy_of(v) if len(v) > 1 else (np.inf if f6 else 0.0) for v in values.values()])
    rising = [i for i in np.argsort(scores, kind="stable") if len(values[names[i]]) > 1][:b]
    falling = np.argsort(-scores, kind="stable")[: len(rising)]
    slots = [np.argmin(values[names[i]] if f5 else np.abs(values[names[i]])) for i in rising]
    return [(names[i], int(slot)) for i, slot in zip(rising, slots, strict=True)], [names[i] for i in falling]


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("rank", [2, 3])
def test_every_round_of_a_run_is_that_of_a_plain_replay_from_E(variant, rank):
    net, method = flex(Net(layers=4), rank=rank, variant=variant, fall="constant")
    recorded = {}
    plain = method._decide

    def watch(*given):
        recorded[len(method.rounds_seen)] = {
            name: adapter.E[: adapter.rank].detach().numpy().copy() for name, adapter in method.adapters.items()
        }
        return plain(*given)

    method._decide = watch
    train(net, method, STEPS)
    method.finish()
    official = variant == "official"
    assert len(method.rounds_seen) == len(method.phases.rounds()) == 8
    for number, round_ in enumerate(method.rounds_seen):
        pruned, grown = replay(recorded[number], 2, official, official)
        assert (round_.pruned, round_.grown) == (pruned, grown), number
    assert any(round_.notes["swapped"] < 2 for round_ in method.rounds_seen)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 6), st.sampled_from(sorted(FALLS)), st.booleans(), st.integers(0, 3))
def test_the_rank_sum_stays_and_no_matrix_moves_more_than_one_direction_a_round(rank, b, fall, official, seed):
    knobs = {"variant": "official" if official else "paper", "fall": fall, "b": b}
    net, method = flex(rank=rank, seed=seed, **knobs)
    train(net, method, STEPS)
    before = dict.fromkeys(method.ranks(), rank)
    for round_ in method.rounds_seen:
        assert sum(round_.ranks.values()) == rank * 6 and min(round_.ranks.values()) >= 1
        assert all(abs(round_.ranks[name] - before[name]) <= 1 for name in before)
        assert len({name for name, _ in round_.pruned}) == len(round_.pruned) == len(set(round_.grown))
        assert len(round_.grown) <= method.phases.moves_at(round_.step)
        before = round_.ranks


def test_growth_leaves_the_output_and_pruning_takes_the_direction_from_the_weights():
    net, method = flex()
    train(net, method, 10)
    name, adapter = next(iter(method.adapters.items()))
    x, _ = batch(0)
    before = net(x).detach()
    method._expand(name)
    assert torch.equal(net(x), before) and adapter.rank == 4
    whole, (a, b, e) = adapter.delta(), (adapter.A[1].clone(), adapter.B[1].clone(), adapter.E[1].clone())
    method.prune([(name, 1)])
    gone = method.config.alpha / (3 + 1e-5) * e * torch.outer(b, a)
    torch.testing.assert_close(whole - adapter.delta(), gone, rtol=0, atol=1e-12)


def test_without_moves_it_is_svd_lora_step_for_step():
    net, method = flex(b=0, alpha=16.0)
    other = Net()
    fixed = SVDLoRA(SVDLoRAConfig(alpha=16.0 * 3 / (3 + 1e-5)), Budget(3))
    fixed.attach(other, ["up", "down"], STEPS, keep=["head"], seed=0)
    train(net, method, STEPS)
    train(other, fixed, STEPS)
    for a, b in zip(method.adapters.values(), fixed.adapters.values(), strict=True):
        torch.testing.assert_close(a.delta(), b.delta(), rtol=0, atol=1e-12)


def test_one_hot_matrices_shrink_and_even_ones_grow():
    net, method = flex(rank=4, fall="constant")
    names = list(method.adapters)
    for name in names:
        values = [1.0, 0.0, 0.0, 0.0] if name in names[:3] else [1.0, 1.0, 1.0, 1.0]
        method.adapters[name].E.data[:4] = torch.tensor(values, dtype=torch.float64)
    first = method._round(14)
    assert [name for name, _ in first.pruned] == names[:2] and first.grown == names[3:5]
    second = method._round(20)  # those that grew score ln 4 / ln 5 = 0.861, still above the one-hot ones
    assert second.scores[names[3]][0] == pytest.approx(0.861, abs=1e-3)
    assert names[5] in second.grown and second.notes["grown_then_pruned"] == 0


@pytest.mark.parametrize(("switch", "slot"), [(False, 1), (True, 0)])
def test_F5_prunes_the_signed_minimum(switch, slot):
    _, method = flex(F5=switch)
    assert method._smallest([-5.0, 0.1, 2.0]) == slot


@pytest.mark.parametrize("switch", [False, True])
def test_F6_prefers_a_matrix_of_rank_1_for_growth(switch):
    net, method = flex(b=1, F6=switch)
    names = list(method.adapters)
    for adapter in method.adapters.values():
        adapter.E.data[:3] = 1.0
    method.prune([(names[2], 0), (names[2], 0)])
    assert (method._round(14).grown == [names[2]]) is switch


@pytest.mark.parametrize(("switch", "deviation"), [(False, 0.02), (True, 1.0)])
def test_F8_draws_new_directions_with_deviation_1(switch, deviation):
    net, method = flex(Net(layers=1, width=400, inner=500), F8=switch)
    name, adapter = next(iter(method.adapters.items()))
    method._expand(name)
    assert adapter.A[3].detach().std().item() == pytest.approx(deviation, rel=0.2)
    assert adapter.B[3].detach().std().item() == pytest.approx(deviation, rel=0.2) and adapter.E[3].item() == 0


def test_moments_of_survivors_stay_and_official_drops_all_and_holds_the_peak_rate():
    for variant in ("paper", "official"):
        net, method = flex(variant=variant)
        optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.3), method.directions())
        seen = []

        def look(step, optimizer=optimizer, seen=seen):
            group = optimizer.param_groups[0]
            seen.append((len(optimizer.state), group["lr"], group["weight_decay"]))

        train(net, method, 15, optimizer=optimizer, each=look)  # the first round is after step 14
        states, rate, decay = seen[14]
        if variant == "official":
            assert (states, rate, decay) == (0, 5e-3, 0.0)
        else:
            assert states == seen[13][0] > 0 and rate < 5e-3 and decay == 0.3


# -- schedule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "start", "final", "interval", "rounds"),
    [(85_904, 8000, 50_000, 100, 279), (6_700, 800, 3500, 10, 239), (3_450, 600, 1800, 1, 1_049),
     (3_900, 600, 1800, 1, 1_499), (16_370, 2000, 8000, 100, 63)],
)  # fmt: skip
def test_rounds_are_due_as_in_the_authors_code(total, start, final, interval, rounds):
    assert len(Phases(total, start, final, interval, 4, "constant").rounds()) == rounds


@pytest.mark.parametrize(
    ("fall", "moves"), [("cubic", [4, 4, 4, 3, 1, 0]), ("cubic_tail", [4, 1, 0, 0, 0, 0]), ("constant", [4] * 6)]
)
def test_moves_fall_in_three_ways(fall, moves):
    phases = Phases(6_700, 800, 3500, 10, 4, fall)
    assert [phases.moves_at(step) for step in (810, 1500, 2000, 2500, 3000, 3190)] == moves


def test_as_many_directions_move_as_in_elalora_and_4_in_the_code():
    method = FlexLoRA(FlexLoRAConfig(**PHASES), Budget(3))
    method.attach(Net(layers=10), ["up", "down"], STEPS, keep=["head"])
    assert method.phases.moves == math.ceil(0.05 * 60) == 3 and method.config.fall == "cubic_tail"
    assert FlexLoRAConfig(variant="official").resolved(RunSize(80, 3, 18)).b == 4


# -- the rest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_run_resumes_bit_for_bit(variant):
    # the bare loop makes a new schedule, so the held rate of "official" is left to the tests of whole runs
    check_resumes(lambda net: flex(net, variant=variant, fall="constant", D2=False)[1], STEPS, 31)


def test_a_parameter_budget_holds_at_every_round():
    net = Net()
    cost = {"up": 10 + 14 + 1, "down": 14 + 10 + 1}
    method = FlexLoRA(FlexLoRAConfig(**PHASES, b=3, fall="constant"), Budget(params=3 * 3 * sum(cost.values())))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    train(net, method, STEPS, each=lambda step: method.check_budget())
    assert any(round_.grown for round_ in method.rounds_seen)


def test_tables_say_that_constants_are_not_published_and_that_the_paper_s_form_is_reconstructed():
    paper, official = flex()[1], flex(variant="official")[1]
    assert paper.reconstructed and not official.reconstructed
    assert paper.remarks() == official.remarks() == ["constants not published"]


def test_scores_by_chance_and_by_norms_move_ranks_too():
    for score in ("random", "frobenius", "nuclear"):
        net, method = flex(score=score)
        train(net, method, STEPS)
        method.finish()
        assert any(round_.grown for round_ in method.rounds_seen)


def test_the_schedule_goes_on_from_its_peak_only_in_the_official_form():
    net, method = flex(variant="official", D2=False)
    optimizer, schedule = train(net, method, 20)
    assert isinstance(schedule, Schedule) and not schedule.held and optimizer.param_groups[0]["lr"] < 5e-3
