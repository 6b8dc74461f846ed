"""AdaLoRA's schedule and variants, and what masking does and does not do."""

from __future__ import annotations

import pytest
import torch
from adalora_runs import small
from nets import Net, batch, train
from torch import nn

from baselines.adalora import AdaLoRA, AdaLoRAConfig, Masking, highest
from elalora import Budget
from elalora.budget import Count

torch.set_num_threads(1)


@pytest.mark.parametrize("variant", ["peft", "official", "paper"])
def test_without_the_regulariser_every_variant_trains_masks_and_finishes(variant):
    net, method = small(variant=variant, orth_weight=0.0)
    assert method.penalty() is None
    train(net, method, method.total_steps)
    method.finish()
    assert sum(method.ranks().values()) <= method.budget_use()[1] and any(r.pruned for r in method.rounds_seen)


def test_the_budget_falls_by_the_corrected_cubic_formula():
    plan = Masking(total=100, start=10, final=30, interval=8)
    # by hand, from 60 to 40: 40 + 20 (1 - (t - 10) / 60)^3, rounded down
    assert [plan.budget(t, 60, 40) for t in (0, 10, 16, 40, 64, 70, 99)] == [60, 60, 54, 42, 40, 40, 40]
    printed = 40 + 20 * (1 - (10 - 10 - 30) / 60) ** 3
    assert printed > 60  # what the paper's numerator would give at t_i


def test_official_sets_the_final_pattern_one_step_later_unless_the_interval_divides():
    regular = [16, 24, 32, 40, 48, 56, 64]
    assert Masking(100, 10, 30, 8, forced=True).rounds() == [*regular, 70]
    assert Masking(100, 10, 30, 8, forced=False).rounds() == [*regular, 71]
    assert Masking(100, 10, 28, 8, forced=True).rounds() == [*regular, 72]
    assert Masking(100, 10, 28, 8, forced=False).rounds() == [*regular, 72]


def masked_values(method: AdaLoRA) -> list[float]:
    """|E| of every direction that the last masking did not keep."""
    return [
        abs(value.item())
        for name, adapter in method.adapters.items()
        for value, kept in zip(adapter.E, method.kept[name], strict=True)
        if not kept
    ]


def test_official_masks_every_step_of_the_final_phase_by_an_importance_that_never_changes():
    net, method = small(variant="official")
    largest: dict[int, float] = {}

    def look(step: int) -> None:
        if step >= 40:
            largest[step] = max(masked_values(method))
        if step > 40:
            scores = [s for row in method.importance.scores().values() for s in row]
            threshold = torch.kthvalue(torch.tensor(scores, dtype=torch.float64), 24 - 12)[0]
            assert [s > threshold for s in scores] == [k for row in method.kept.values() for k in row]

    train(net, method, 60, each=look)
    # 40 is not a multiple of 7, so at step 40 nothing is masked; stock PEFT would
    assert largest.pop(40) > 0 and not any(largest.values())


def test_peft_masks_every_step_from_the_start_of_the_final_phase():
    net, method = small()
    largest: dict[int, float] = {}
    train(net, method, 60, each=lambda step: largest.update({step: max(masked_values(method), default=0.0)}))
    assert largest[38] > 0 and not any(value for step, value in largest.items() if step >= 40)


def test_paper_reads_weight_and_gradient_at_the_same_point():
    for variant, moved in (("paper", False), ("peft", True), ("official", True)):
        net, method = small(variant=variant)
        train(net, method, 1)
        # E is 0 before the first step and not after it
        assert any(bool(method.importance.smooth[a.E].any()) for a in method.adapters.values()) is moved


def test_paper_keeps_exactly_the_budget_where_ties_cost_the_codes_directions():
    for variant, left in (("paper", 12), ("peft", 0), ("official", 0)):
        _, method = small(variant=variant)
        method.importance.scores = lambda method=method: {n: [1.0] * 4 for n in method.adapters}
        moved = method._round(40)
        assert sum(moved.ranks.values()) == left and moved.notes == {"budget": 12, "tied": 12 - left}


def test_the_scale_is_alpha_over_the_initial_rank_for_the_whole_run():
    for variant, scale in (("paper", 16 / 4), ("peft", 16 / (4 + 1e-5)), ("official", 16 / (4 + 1e-5))):
        net, method = small(variant=variant)
        train(net, method, 60)
        method.finish()
        assert {a.scale for a in method.adapters.values()} == {scale}


def test_the_threshold_is_the_kth_smallest_score_and_nothing_is_masked_where_all_may_stay():
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 9, 40):
        scores = torch.rand(n, generator=g, dtype=torch.float64)
        for allowed in range(n):
            kept, threshold = highest(scores.tolist(), [1] * n, allowed)
            assert threshold == torch.kthvalue(scores, n - allowed)[0].item()
            assert kept == (scores > threshold).tolist() and sum(kept) == allowed
        assert highest(scores.tolist(), [1] * n, n) == ([True] * n, None)


@pytest.mark.parametrize(("target", "start"), [(1, 2), (2, 4), (3, 5), (4, 6), (5, 8), (8, 12)])
def test_the_start_is_the_published_one_or_one_and_a_half_times_the_budget(target, start):
    net = Net(width=13)
    method = AdaLoRA(AdaLoRAConfig(), Budget(rank=target))
    method.attach(net, ["up", "down"], 100)
    assert set(method.ranks().values()) == {start}
    assert method.count() == Count(6 * start, 6 * start * (13 + 14 + 1))


def test_masking_is_not_death():
    """A masked singular value is 0, its moments and vectors stay, and the next step moves it again."""
    net, method = small()
    optimizer, schedule = train(net, method, 14)
    adapters = list(method.adapters.values())
    x, y = batch(14)
    (nn.functional.cross_entropy(net(x), y) + method.penalty()).backward()
    method.gradients_ready(14)
    optimizer.step()
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for a in adapters for p in a.factors()}
    vectors = {p: p.detach().clone() for a in adapters for p in (a.A, a.B)}
    moved = method.after_step(14, optimizer, schedule)
    assert moved is not None and moved.pruned
    for p, state in before.items():
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())
    assert all(torch.equal(p, vector) for p, vector in vectors.items())
    for name, slot in moved.pruned:
        value = method.adapters[name].E
        assert value[slot] == 0 and optimizer.state[value]["exp_avg"][slot] != 0
    optimizer.zero_grad()
    train(net, method, 1, start=15, optimizer=optimizer)
    assert all(method.adapters[name].E[slot] != 0 for name, slot in moved.pruned)


def test_rounds_tell_what_was_masked_and_what_came_back():
    net, method = small(interval=3)
    g = torch.Generator().manual_seed(0)
    method.importance.scores = lambda: {n: torch.rand(4, generator=g).tolist() for n in method.adapters}
    ranks = method.ranks()
    train(net, method, 60)
    assert [r.step for r in method.rounds_seen] == method.phases.rounds()
    for moved in method.rounds_seen:
        lost = [name for name, _ in moved.pruned]
        assert moved.ranks == {n: r - lost.count(n) + moved.grown.count(n) for n, r in ranks.items()}
        assert sum(moved.ranks.values()) == moved.notes["budget"]
        ranks = moved.ranks
    assert any(r.grown for r in method.rounds_seen) and method.ranks() == ranks


def test_the_end_removes_masked_directions_and_leaves_outputs_unchanged():
    net, method = small()
    train(net, method, 60)
    x, _ = batch(7)
    before, ranks, factors = net(x), method.ranks(), method.lora_factors()
    assert sum(a.rank for a in method.adapters.values()) == 24 and sum(ranks.values()) == 12
    method.finish()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)
    assert {n: a.rank for n, a in method.adapters.items()} == method.ranks() == ranks
    assert method.count() == Count(12, 12 * (10 + 14 + 1))
    for name, (a, b) in factors.items():
        assert a.shape[0] == b.shape[1] == ranks[name]
        new_a, new_b = method.lora_factors()[name]
        torch.testing.assert_close(b @ a, new_b @ new_a, rtol=0, atol=1e-12)


def test_compaction_leaves_outputs_unchanged_and_shrinks_the_adapter():
    x, _ = batch(7)
    outputs = []
    for compact in (False, True):
        net, method = small(compact=compact)
        train(net, method, 41)  # up to the step that makes the pattern final
        assert sum(a.rank for a in method.adapters.values()) == (12 if compact else 24)
        outputs.append((net(x).detach(), method.ranks()))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=0, atol=1e-12)
    assert outputs[0][1] == outputs[1][1]


def test_compaction_acts_on_training_through_the_regulariser_only():
    x, _ = batch(7)
    for weight, same in ((0.0, True), (0.1, False)):
        outputs = []
        for compact in (False, True):
            net, method = small(compact=compact, orth_weight=weight)
            train(net, method, 60)
            method.finish()
            outputs.append(net(x).detach())
        assert torch.allclose(*outputs, rtol=0, atol=1e-10) is same


def test_a_matrix_may_end_without_any_direction():
    net, method = small(compact=True)
    empty = "layers.1.up"
    scores = method.importance.scores
    method.importance.scores = lambda: scores() | {empty: [-1.0] * 4}
    train(net, method, 60)
    method.finish()
    assert method.ranks()[empty] == 0 and method.lora_factors()[empty][0].shape == (0, 10)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_budget_of_parameters_is_kept_wherever_the_ranks_go():
    net = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 10)).double()
    method = AdaLoRA(AdaLoRAConfig(t_initial=10, t_final=20, interval=7), Budget(params=500))
    method.attach(net, ["0", "2", "4"], 60)
    assert method.ranks() == {"0": 6, "2": 6, "4": 6}  # 500 // (21 + 51 + 51) = 4
    train(net, method, 60)
    method.finish()
    assert 500 - 51 < method.count().params <= 500
