"""ALoRA: ablation scores against merged dense networks, the paper's example, and rounds replayed from their scores."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.alora import ALoRA, ALoRAConfig, allocate
from elalora import Budget, MethodFailure, RowwiseAdamW, UserError

STEPS = 40


def alora(net=None, rank=3, seed=0, steps=STEPS, **knobs):
    net = net or Net()
    method = ALoRA(ALoRAConfig(**{"t_initial": 6, "interval": 4, "rounds": 6, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    x, y = batch(900, items=12)
    method.prepare([{"x": x, "labels": y}, {"x": x + 0.1, "labels": y}, {"x": x - 0.1, "labels": y}])
    return net, method


def merged(method, net, keep):
    """A plain network with W0 + s sum of b_j a_j over the directions j in `keep`, in dense weights."""
    plain = Net()
    plain.load_state_dict(
        {k.replace(".base.", "."): v for k, v in net.state_dict().items() if k.rpartition(".")[2] not in ("A", "B")}
    )
    with torch.no_grad():
        for name, adapter in method.adapters.items():
            for slot in range(adapter.rank):
                if (name, slot) in keep:
                    update = torch.outer(adapter.B[slot], adapter.A[slot])
                    plain.get_submodule(name).weight.add_(16.0 / 3 * update)
    return plain


@pytest.mark.parametrize("scope", ["model", "module"])
def test_scores_are_those_of_networks_with_dense_weights_for_every_direction(scope):
    net, method = alora(score_scope=scope)
    train(net, method, 12)
    x, y = batch(900, items=12)
    x, y = torch.cat([x, x + 0.1, (x - 0.1)[:8]]), torch.cat([y, y, y[:8]])  # 32 items of three batches of 12
    everything = {(name, slot) for name, adapter in method.adapters.items() for slot in range(adapter.rank)}

    def quality(keep):
        return -nn.functional.cross_entropy(merged(method, net, keep)(x), y).item()

    scores = method.scores()
    assert len(everything) == 18 == sum(map(len, scores.values()))
    for name, slot in everything:
        others = {k for k in everything if k[0] != name} if scope == "module" else set()
        expected = quality(everything) - quality(everything - {(name, slot)}) + quality(others | {(name, slot)})
        assert scores[name][slot] == pytest.approx(expected, abs=1e-10)


def test_scoring_leaves_weights_mode_gradients_and_random_numbers_alone():
    net, method = alora(dropout=0.5)
    train(net, method, 3)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    method.scores()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


def test_a_rank_that_carries_noise_only_is_the_first_to_die():
    """A linear model with squared loss: three ranks are the target's, the fourth is noise."""
    g = torch.Generator().manual_seed(1)
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(12, 4, generator=g).double()).Q for _ in range(2))

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head = nn.Linear(12, 12, bias=False).double(), nn.Linear(1, 1)
            self.up.weight.data.zero_()

        def forward(self, x, labels):
            return type("Output", (), {"loss": (self.up(x) - labels).square().mean()})

    net = Linear()
    method = ALoRA(ALoRAConfig(b=1), Budget(4))
    method.attach(net, ["up"], 100, keep=["head"])
    [adapter] = method.adapters.values()
    adapter.A.data[:4] = right.T
    adapter.B.data[:4] = left.T * torch.cat([values, torch.tensor([1.0]).double()])[:, None] / adapter.scale
    x = torch.randn(64, 12, generator=g).double()
    method.prepare([{"x": x, "labels": x @ (left[:, :3] * values @ right[:, :3].T).T}])
    [scores] = method.scores().values()
    assert scores.index(min(scores)) == 3 and scores[0] > scores[1] > scores[2] > scores[3]


# -- sharing out -----------------------------------------------------------------------------------------------


def test_eight_ranks_for_three_matrices_are_three_three_and_two_as_in_the_paper():
    scores = {"a": [0.0] * 4, "b": [0.0] * 4, "c": [5.0], "d": [7.0, 8.0], "e": [6.0]}
    room, costs = dict.fromkeys(scores, 8), dict.fromkeys(scores, 10)
    pruned, grown = allocate(scores, 8, room, costs)
    assert {name for name, _ in pruned} == {"a", "b"} and len(pruned) == 8
    assert {name: grown.count(name) for name in "cde"} == {"d": 3, "e": 3, "c": 2}


def test_where_every_matrix_lost_a_rank_none_gains():
    scores = {"a": [0.0, 5.0], "b": [0.0, 5.0]}
    assert allocate(scores, 2, {"a": 9, "b": 9}, {"a": 1, "b": 1}) == ([("a", 0), ("b", 0)], [])


scored = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.floats(-1, 1), max_size=5), min_size=1)


@settings(max_examples=150, deadline=None)
@given(scored, st.integers(1, 12), st.integers(0, 4), st.none() | st.integers(0, 30))
def test_shares_are_even_within_room_and_budget_and_only_of_matrices_that_lost_nothing(scores, b, room, spare):
    costs = {name: 3 + ord(name) % 3 for name in scores}
    pruned, grown = allocate(scores, b, dict.fromkeys(scores, room), costs, spare)
    lost = {name for name, _ in pruned}
    assert len(pruned) == min(b, sum(map(len, scores.values()))) >= len(grown) and not lost & set(grown)
    kept = [s for name, row in scores.items() for slot, s in enumerate(row) if (name, slot) not in pruned]
    assert all(scores[name][slot] <= min(kept, default=1.0) for name, slot in pruned)
    counts = [grown.count(name) for name in scores if name not in lost]
    assert max(counts, default=0) <= room
    if spare is None:
        assert max(counts, default=0) - min(counts, default=0) <= 1
        assert len(grown) == min(len(pruned), room * len(counts))
    else:
        assert sum(costs[n] for n in grown) <= spare + sum(costs[n] for n, _ in pruned)


# -- rounds ----------------------------------------------------------------------------------------------------


def test_rounds_follow_their_scores_and_the_sum_falls_only_where_every_matrix_lost():
    net, method = alora(b=6)
    start, ranks = method.ranks(), method.ranks()
    train(net, method, STEPS)
    assert [r.step + 1 for r in method.rounds_seen] == [6, 10, 14, 18, 22, 26]
    for done in method.rounds_seen:
        everything = sorted((s, n, i) for n, row in done.scores.items() for i, s in enumerate(row))
        assert {(n, i) for _, n, i in everything[:6]} == set(done.pruned)
        lost = {n for n, _ in done.pruned}
        assert len(done.grown) == (0 if lost == set(ranks) else 6) and not lost & set(done.grown)
        assert done.notes == {"lost": 6 - len(done.grown), "forward_passes": 3 * (2 + 2 * sum(ranks.values()))}
        ranks = done.ranks
    assert ranks == method.ranks() != start


def test_a_new_direction_leaves_the_output_and_a_pruned_one_leaves_no_state():
    net, method = alora(b=2)
    optimizer, schedule = train(net, method, 5)
    x, _ = batch(0)
    name = next(iter(method.adapters))
    method.prune([(name, 0)])
    whole = net(x).detach()
    slot = method.adapters[name].directions.be_born()
    method.adapters[name].A.data[slot] = 1.0
    assert torch.equal(net(x), whole)
    for factor in (method.adapters[name].A, method.adapters[name].B):
        assert optimizer.state[factor]["step"].tolist() == [5, 5, 0]
        assert not optimizer.state[factor]["exp_avg"][slot].any()


def test_a_result_below_its_budget_says_by_how_much():
    _, method = alora()
    assert method.remarks() == ["dev batch of 32 training items"]
    method.prune([(name, 0) for name in method.adapters])
    assert method.remarks() == ["dev batch of 32 training items", "33% below budget"]


@pytest.mark.parametrize("stop", [5, 13, 24])
def test_a_run_resumes_bit_for_bit(stop):
    check_resumes(lambda net: alora(net)[1], STEPS, stop)


def test_without_a_dev_batch_the_first_round_fails():
    net = Net()
    method = ALoRA(ALoRAConfig(), Budget(3))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    with pytest.raises(MethodFailure, match="no dev batch for scores by ablation"):
        train(net, method, STEPS)


@pytest.mark.parametrize("knobs", [{"t_initial": 0}, {"rounds": 20}, {"interval": 7}])
def test_rounds_that_do_not_fit_the_run_are_refused(knobs):
    with pytest.raises(UserError, match=r"do not fit between the first and the last of 40 steps"):
        alora(**knobs)


def test_a_parameter_budget_holds_after_every_round():
    net = Net()
    method = ALoRA(ALoRAConfig(t_initial=6, interval=4, rounds=6), Budget(params=3 * 6 * 24))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    x, y = batch(900)
    method.prepare([{"x": x, "labels": y}])
    train(net, method, STEPS, each=lambda step: method.check_budget())
    assert any(r.grown for r in method.rounds_seen)
    assert isinstance(RowwiseAdamW, type) and method.reconstructed
