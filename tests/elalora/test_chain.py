"""Updates that are sums of pieces: frozen factors against dense sums in float64, fresh starts, and what is counted."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes

from baselines.lora import LoRA, LoRAConfig
from baselines.rac_lora import ChainOfLoRA, ChainOfLoRAConfig
from elalora import Budget, RowwiseAdamW, Schedule, UserError
from elalora.adapters import LowRankLinear
from elalora.chain import ChainLinear
from elalora.directions import Directions
from elalora.method import NeverActed

STEPS = 60


def chain(net=None, rank=2, steps=STEPS, seed=0, **knobs):
    net = net or Net()
    method = ChainOfLoRA(ChainOfLoRAConfig(**{"blocks": 3, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


def random_piece(adapter, seed):
    g = torch.Generator().manual_seed(seed)
    for factor in adapter.factors():
        factor.data.copy_(torch.randn(factor.shape, generator=g, dtype=torch.float64))


def linear(d_in=7, d_out=5, rank=2, scale=1.5):
    base = torch.nn.Linear(d_in, d_out).double().requires_grad_(False)
    return ChainLinear(base, Directions(rank, rank), scale)


# -- the sum of pieces -----------------------------------------------------------------------------------------


def test_a_run_adds_to_the_weights_what_its_pieces_were_when_they_ended():
    net, method = chain()
    sums = {name: torch.zeros(a.out_features, a.in_features).double() for name, a in method.adapters.items()}
    ended = []
    freeze = method.next_piece

    def watch():
        for name, adapter in method.adapters.items():
            sums[name] += adapter.scale * adapter.B.detach().T @ adapter.A.detach()
        ended.append(method.piece)
        freeze()

    method.next_piece = watch
    train(net, method, STEPS)
    assert ended == [0, 1]
    for name, adapter in method.adapters.items():
        expected = sums[name] + adapter.scale * adapter.B.detach().T @ adapter.A.detach()
        torch.testing.assert_close(adapter.delta(), expected, rtol=1e-12, atol=1e-14)
        assert torch.linalg.matrix_rank(adapter.delta()) == method.ranks()[name] == 6


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_the_output_is_that_of_the_summed_weight_through_every_freeze_and_beyond_full_rank(shape):
    adapter = linear(*shape)
    adapter.make_room(100)
    x = torch.randn(3, 4, shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = adapter.base.weight.clone()
    for seed in range(6):  # 12 directions, of which 5 or 6 are independent
        random_piece(adapter, seed)
        weight += 1.5 * adapter.B.detach().T @ adapter.A.detach()
        expected = torch.nn.functional.linear(x, weight, adapter.base.bias)
        torch.testing.assert_close(adapter(x), expected, rtol=1e-10, atol=1e-11)
        a, b = adapter.lora_factors()
        assert len(a) == b.shape[1] == adapter.total_rank == min(*shape, 2 * (seed + 1))
        torch.testing.assert_close(b @ a, weight - adapter.base.weight, rtol=1e-10, atol=1e-11)
        adapter.freeze_piece()
        assert adapter.rank == 0 and adapter.merged == adapter.total_rank
        torch.testing.assert_close(adapter(x), expected, rtol=1e-10, atol=1e-11)
        for _ in range(2):
            adapter.directions.be_born()


def test_a_frozen_piece_keeps_every_bit():
    net, method = chain(blocks=4)
    seen = {}

    def look(step):
        for name, adapter in method.adapters.items():
            rows = (adapter.frozen_A[: adapter.merged].clone(), adapter.frozen_B[: adapter.merged].clone())
            for old, new in zip(seen.get(name, ()), rows, strict=False):
                assert torch.equal(old, new[: len(old)])
            seen[name] = rows

    train(net, method, STEPS, each=look)
    assert {len(a) for a, _ in seen.values()} == {6}


def test_the_gradient_through_frozen_pieces_is_that_of_autograd_on_the_plain_formula():
    adapter = linear()
    adapter.make_room(4)
    for seed in range(2):
        random_piece(adapter, seed)
        adapter.freeze_piece()
        for _ in range(2):
            adapter.directions.be_born()
    random_piece(adapter, 9)
    x = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = []
    for plain in (False, True):
        a, b, given = (t.detach().clone().requires_grad_() for t in (adapter.A, adapter.B, x))
        if plain:
            weight = adapter.base.weight + adapter.frozen_B.T @ adapter.frozen_A + 1.5 * b.T @ a
            out = torch.nn.functional.linear(given, weight, adapter.base.bias)
            grads.append(torch.autograd.grad(out.sin().sum(), (a, b, given)))
        else:
            grads.append(torch.autograd.grad(adapter(given).sin().sum(), (adapter.A, adapter.B, given)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_one_piece_is_lora_bit_for_bit(dropout):
    outputs = []
    for method in (
        LoRA(LoRAConfig(dropout=dropout), Budget(2)),
        ChainOfLoRA(ChainOfLoRAConfig(blocks=1, dropout=dropout), Budget(2)),
    ):
        net = Net()
        method.attach(net, ["up", "down"], STEPS, keep=["head"])
        torch.manual_seed(7)
        train(net, method, STEPS, weight_decay=0.01, warmup=5, clip=1.0)
        method.finish()
        outputs.append([p.detach() for p in net.parameters()])
        assert method.remarks() == []
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


# -- fresh starts ----------------------------------------------------------------------------------------------


def test_a_piece_starts_with_fresh_weights_moments_and_counters_and_the_head_keeps_its_own():
    net, method = chain()
    old = {name: adapter.A.detach().clone() for name, adapter in method.adapters.items()}
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
    schedule = Schedule(optimizer, STEPS)
    for step in range(20):
        x, y = batch(step)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        moved = method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
    assert moved is not None and moved.step == 19 and moved.ranks == dict.fromkeys(old, 4)
    for name, adapter in method.adapters.items():
        assert not adapter.B.any() and not torch.equal(adapter.A, old[name])
        for factor in adapter.factors():
            assert not any(value.any() for value in optimizer.state[factor].values())
    assert int(optimizer.state[net.head.weight]["step"]) == 20


def test_every_piece_is_the_run_that_starts_from_the_weights_so_far():
    """Two pieces of 20 steps equal a run of 20 and, on the merged model, another, but for the head's moments."""
    net, method = chain(Net(), blocks=2, steps=40)
    net.head.requires_grad_(False)
    train(net, method, 20, total=40)
    drawn = {name: adapter.A.detach().clone() for name, adapter in method.adapters.items()}
    plain = Net()
    for name, adapter in method.adapters.items():
        plain.get_submodule(name).weight.data += adapter.frozen_B.T @ adapter.frozen_A
    again = LoRA(LoRAConfig(), Budget(2))
    again.attach(plain, ["up", "down"], 20, keep=[])
    for name, adapter in again.adapters.items():
        adapter.A.data.copy_(drawn[name])
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
    other = RowwiseAdamW(again.groups(plain, 5e-3, 0.0), again.directions())
    for step in range(20):
        x, y = batch(step)
        for model, stepper in ((net, optimizer), (plain, other)):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            stepper.step()
            stepper.zero_grad()
    for name, adapter in again.adapters.items():
        torch.testing.assert_close(method.adapters[name].B, adapter.B, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rewarm", "expected"), [(False, (50,)), (True, (17, 16, 17))])
def test_the_schedule_spans_the_run_or_every_piece(rewarm, expected):
    _, method = chain(steps=50, rewarm=rewarm)
    assert method.stages() == expected and method.rounds_due() == 2


def test_a_rewarmed_rate_rises_and_falls_in_every_piece():
    net, method = chain(rewarm=True)
    rates = []
    optimizer = RowwiseAdamW(method.groups(net, 1.0, 0.0), method.directions())
    schedule = Schedule(optimizer, STEPS, 5, stages=method.stages())
    for step in range(STEPS):
        schedule.at(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert [step for step, rate in enumerate(rates) if rate == 0] == [0, 20, 40]
    assert [step for step, rate in enumerate(rates) if rate == 1] == [5, 25, 45]


# -- counts, state and refusals --------------------------------------------------------------------------------


def test_trained_and_accumulated_sums_are_counted_apart():
    net, method = chain(blocks=3)
    cost = sum(sum(shape) for shape in method.shapes().values())
    assert method.count().params == 2 * cost
    train(net, method, STEPS)
    counts = method.further_counts()
    assert counts["trained"].params == 2 * cost and counts["accumulated"].params == 6 * cost == method.count().params
    assert method.remarks() == ["budget = ranks trained at once (3 pieces)"]


def test_beyond_full_rank_the_sum_of_pieces_is_counted_though_no_matrix_has_it():
    net, method = chain(rank=8, blocks=3)  # min(d_in, d_out) is 10
    train(net, method, STEPS)
    method.finish()
    assert set(method.ranks().values()) == {10}
    assert method.further_counts()["accumulated"].rank_sum == 24 * 6


def test_a_budget_on_the_final_sum_gives_every_piece_its_share():
    net, method = chain(rank=6, blocks=3, matched="final")
    assert method.count().rank_sum == 2 * 6 and method.capabilities.final_only
    train(net, method, STEPS)
    method.finish()
    assert method.count().rank_sum == 6 * 6 and method.remarks() == ["budget = sum of all pieces (3 pieces)"]


def test_a_final_budget_that_the_pieces_do_not_divide_is_refused_before_a_model_is_loaded():
    method = ChainOfLoRA(ChainOfLoRAConfig(blocks=10, matched="final"), Budget(4))
    with pytest.raises(UserError, match=r"method\.blocks=10 divides, and the budget is 4: type method\.blocks=4"):
        method.check_length(100)


def test_more_pieces_than_steps_are_refused():
    with pytest.raises(UserError, match="3 pieces do not fit a run of 2 steps: lower method.blocks"):
        chain(steps=2)


def test_a_run_whose_pieces_never_changed_fails():
    net, method = chain()
    train(net, method, 30)
    with pytest.raises(NeverActed, match="only 2 of 3 pieces began"):
        method.finish()


@pytest.mark.parametrize("stop", [7, 20, 41])
def test_a_run_resumes_bit_for_bit_within_any_piece(stop):
    check_resumes(lambda net: chain(net)[1], STEPS, stop)


def test_a_checkpoint_restores_the_frozen_pieces():
    net, method = chain()
    train(net, method, 45)
    state = copy.deepcopy(method.state_dict())
    other, again = chain(seed=5)
    again.load_state_dict(state)
    for name, adapter in again.adapters.items():
        assert adapter.merged == 4 and torch.equal(adapter.frozen_B, method.adapters[name].frozen_B)
    state["frozen.layers.0.up.A"] = state["frozen.layers.0.up.A"][:3]
    with pytest.raises(ValueError, match="frozen pieces of shape"):
        again.load_state_dict(state)


def test_a_deep_copy_computes_the_same():
    net, method = chain()
    train(net, method, 45)
    x, _ = batch(3)
    assert torch.equal(copy.deepcopy(net)(x), net(x)) and isinstance(net.layers[0].up, LowRankLinear)
