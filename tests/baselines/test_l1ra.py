"""L1RA: LoRA where gates are frozen, a plain reference with one optimizer per direction, and orders by hand."""

from __future__ import annotations

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.l1ra import L1RA, L1RAConfig, shrink
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, RowwiseAdamW, Schedule, UserError
from elalora.method import NeverActed
from elalora.resolve import RunSize

STEPS = 60
SHRINK = 3  # in the reference run, how far a gate without gradient falls


def l1ra(net=None, rank=3, seed=0, steps=STEPS, **knobs):
    net = net or Net()
    method = L1RA(L1RAConfig(**knobs), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


def set_gates(method, *rows):
    for adapter, row in zip(method.adapters.values(), rows, strict=False):
        adapter.E.data[: len(row)] = torch.tensor(row, dtype=torch.float64)


# -- the formulas ----------------------------------------------------------------------------------------------


def test_a_gate_shrinks_to_0_and_no_further():
    gates = [torch.tensor([1.0, 0.3, 0.25]), torch.tensor([0.1, -0.2])]
    shrink(gates, 0.25)
    assert [g.tolist() for g in gates] == [pytest.approx([0.75, 0.05, 0.0]), [0.0, 0.0]]


def test_it_starts_with_normal_factors_and_open_gates():
    _, method = l1ra(Net(layers=1, width=300, inner=400), rank=4)
    for adapter in method.adapters.values():
        assert adapter.A[:4].std().item() == pytest.approx(1 / 4, rel=0.1)
        assert not adapter.B.any() and adapter.E[:4].tolist() == [1.0] * 4 and adapter.scale == 4.0


@pytest.mark.parametrize("steps", [100, 3000])
def test_a_gate_without_a_gradient_reaches_0_at_the_end_of_a_run_of_any_length(steps):
    acting = L1RAConfig().resolved(RunSize(steps, 4))
    assert acting.gate_lr * acting.l1 * steps == pytest.approx(1.0) and acting.interval == steps // 10
    assert L1RAConfig(l1=1e-3).resolved(RunSize(steps, 4)).l1 == 1e-3


def test_gates_stay_between_0_and_1():
    net, method = l1ra()
    seen = []
    train(net, method, STEPS, each=lambda step: seen.append(torch.cat(method._gates())))
    everything = torch.cat(seen)
    assert everything.min() == 0 and everything.max() == 1 and any(((s > 0) & (s < 1)).any() for s in seen)


def test_with_frozen_gates_it_is_lora_with_another_start_bit_for_bit():
    net, method = l1ra(gate_lr=0.0, l1=0.0)
    other = Net()
    lora = LoRA(LoRAConfig(), Budget(3))
    lora.attach(other, ["up", "down"], STEPS, keep=["head"])
    for mine, theirs in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        theirs.A.data.copy_(mine.A.data[:3])
    train(net, method, STEPS)
    train(other, lora, STEPS)
    for mine, theirs in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        assert torch.equal(mine.delta(), theirs.delta())
    assert not any(round_.pruned for round_ in method.rounds_seen)


def test_the_gates_keep_their_rate_while_the_schedule_moves_the_others():
    net, method = l1ra()
    optimizer = RowwiseAdamW(method.groups(net, 1e-2, 0.1), method.directions())
    schedule = Schedule(optimizer, STEPS, warmup=10)
    rates = []
    for step in (0, 5, 10, 35, STEPS):
        schedule.at(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [row[-1] for row in rates] == [0.02] * 5
    assert [row[0] for row in rates] == pytest.approx([0, 5e-3, 1e-2, 5e-3, 0])
    assert optimizer.param_groups[-1]["weight_decay"] == 0.0


# -- rounds by hand --------------------------------------------------------------------------------------------


def test_freed_directions_go_in_turn_to_the_matrices_that_lost_none_by_their_smallest_gate():
    _, method = l1ra(Net(layers=2))  # 4 matrices of rank 3
    up0, down0, up1, down1 = method.adapters
    set_gates(method, [0.0, 0.9, 0.0], [0.5, 0.9, 0.8], [0.6, 0.7, 0.9], [0.9, 0.0, 0.9])
    round_ = method._round(5)
    assert round_.pruned == [(up0, 0), (up0, 2), (down1, 1)]
    assert round_.grown == [up1, down0, up1]  # smallest gates 0.6 and 0.5, then again from the first
    assert round_.ranks == {up0: 1, down0: 4, up1: 5, down1: 2} and round_.notes["lost"] == 0


def test_a_new_direction_leaves_the_output_bit_for_bit():
    net, method = l1ra()
    train(net, method, 5)
    set_gates(method, [0.0, 1.0, 1.0])
    x, _ = batch(0)
    before = net(x).detach()
    grown = method._round(5).grown
    adapter = method.adapters[grown[0]]
    assert adapter.rank == 4 and adapter.E[3] == 1 and not adapter.B[3].any() and adapter.A[3].any()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-15)  # the sum loses a term that is exactly 0


@pytest.mark.parametrize(("switch", "ranks"), [(False, [0, 4, 4, 4]), (True, [1, 4, 4, 3])])
def test_R4_keeps_the_last_direction_of_a_matrix_whose_gates_are_all_0(switch, ranks):
    _, method = l1ra(Net(layers=2), R4=switch)
    set_gates(method, [0.0, 0.0, 0.0], [0.9, 0.9, 0.9], [0.8, 0.8, 0.8], [0.7, 0.7, 0.7])
    round_ = method._round(5)
    assert [slot for _, slot in round_.pruned] == ([0, 1] if switch else [0, 1, 2])
    assert list(round_.ranks.values()) == ranks


@pytest.mark.parametrize("switch", [False, True])
def test_R5_loses_freed_directions_if_every_matrix_lost_one(switch):
    _, method = l1ra(Net(layers=2), R5=switch)
    set_gates(method, [0.0, 1.0, 1.0], [0.0, 0.9, 0.9], [0.8, 0.0, 0.8], [0.7, 0.7, 0.0])
    round_ = method._round(5)
    lost = 4 if switch else 0
    assert round_.notes["lost"] == lost and sum(round_.ranks.values()) == 12 - lost
    assert method.remarks() == (["33% below budget"] if switch else [])


@pytest.mark.parametrize("switch", [False, True])
def test_R1_drops_all_moments_after_a_round_that_prunes(switch):
    net, method = l1ra(R1=switch)
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
    train(net, method, 5, optimizer=optimizer)
    set_gates(method, [0.0, 1.0, 1.0])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    method.after_step(5, optimizer, Schedule(optimizer, STEPS))
    assert bool(optimizer.state) is not switch


def test_matrices_without_a_free_slot_are_passed_over():
    _, method = l1ra(Net(layers=2), capacity=4)
    set_gates(method, [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.9, 0.9, 0.9], [0.8, 0.8, 0.8])
    round_ = method._round(5)
    assert list(round_.ranks.values()) == [2, 2, 4, 4] and round_.notes["lost"] == 0


# -- a whole run against a plain reference ---------------------------------------------------------------------


class Gated(nn.Module):
    """W0 x + (alpha / N) sum over directions of b (c (a . x)); every direction has its own three parameters."""

    def __init__(self, base, adapter):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), adapter.scale
        self.parts = [
            [nn.Parameter(t.detach()[i].clone()) for t in (adapter.A, adapter.B, adapter.E)]
            for i in range(adapter.rank)
        ]

    def forward(self, x):
        out = self.base(x)
        for a, b, c in self.parts:
            out = out + self.scale * c * torch.outer(x @ a, b)
        return out


def reference(method, official, draws, lr=1e-2, decay=0.1):
    """The whole run with torch's AdamW, one for each direction; returns net, layers and the ranks after each round."""
    net, layers, every = Net(), {}, STEPS // 10
    for name, adapter in method.adapters.items():
        parent, _, leaf = name.rpartition(".")
        layers[name] = Gated(net.get_submodule(name), adapter)
        setattr(net.get_submodule(parent), leaf, layers[name])
    gate_lr, amount = 0.02, SHRINK / STEPS

    def optimizer_of(a, b, c):
        groups = [{"params": [a, b], "lr": lr, "weight_decay": decay}]
        return torch.optim.AdamW([*groups, {"params": [c], "lr": gate_lr, "weight_decay": 0.0}])

    def head_optimizer():
        groups = [{"params": [net.head.weight], "weight_decay": decay}, {"params": [net.head.bias], "weight_decay": 0}]
        return torch.optim.AdamW(groups, lr=lr)

    owners = {id(part): (part, optimizer_of(*part)) for layer in layers.values() for part in layer.parts}
    head, ranks = head_optimizer(), []
    for step in range(STEPS):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        for optimizer in (head, *(optimizer for _, optimizer in owners.values())):
            for group in optimizer.param_groups:
                if group["lr"] != gate_lr:
                    group["lr"] = lr * (1 - step / STEPS)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for layer in layers.values():
                for _, _, c in layer.parts:
                    c.copy_(torch.clamp(c - amount, min=0))
            done = step + 1
            if done % every == 0 and done < STEPS:
                smallest = {n: min((float(c) for *_, c in layer.parts), default=0.0) for n, layer in layers.items()}
                freed = 0
                for layer in layers.values():
                    gone = [part for part in layer.parts if float(part[2]) < 1e-10]
                    if official and len(gone) == len(layer.parts):
                        gone = gone[:-1]
                    freed += len(gone)
                    layer.parts = [part for part in layer.parts if not any(part is g for g in gone)]
                order = sorted((n for n in layers if smallest[n] >= 1e-10), key=lambda n: -smallest[n])
                if not order and not official:
                    order = sorted(layers, key=lambda n: -smallest[n])
                for i in range(freed if order else 0):
                    layer = layers[order[i % len(order)]]
                    a = draws[order[i % len(order)]].pop(0)
                    part = [nn.Parameter(a), nn.Parameter(torch.zeros_like(layer.base.bias)),
                            nn.Parameter(torch.ones((), dtype=torch.float64))]  # fmt: skip
                    layer.parts.append(part)
                if freed and official:
                    head = head_optimizer()
                    owners = {}
                for layer in layers.values():
                    for part in layer.parts:
                        owners.setdefault(id(part), (part, optimizer_of(*part)))
                ranks.append({name: len(layer.parts) for name, layer in layers.items()})
            for layer in layers.values():
                for _, _, c in layer.parts:
                    c.clamp_(max=1)
    return net, layers, ranks


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_whole_run_is_that_of_a_plain_loop_with_one_adamw_per_direction(variant):
    knobs = {"variant": variant, "capacity": 18, "l1": SHRINK / (0.02 * STEPS)}
    (net, method), (_, twin) = l1ra(**knobs), l1ra(**knobs)
    draws = {name: [] for name in method.adapters}
    plain_round = method._round

    def and_note(step):
        round_ = plain_round(step)
        for name in draws:
            new = round_.grown.count(name)
            rows = method.adapters[name].A.detach()[: round_.ranks[name]]
            draws[name] += list(rows[len(rows) - new :].clone())
        return round_

    method._round = and_note
    train(net, method, STEPS, lr=1e-2, weight_decay=0.1)
    plain, layers, ranks = reference(twin, variant == "official", draws)
    assert [round_.ranks for round_ in method.rounds_seen] == ranks and len(ranks) == 9
    assert sum(len(round_.grown) for round_ in method.rounds_seen) >= 5
    for name, adapter in method.adapters.items():
        layer = layers[name]
        expected = sum(layer.scale * c * torch.outer(b, a) for a, b, c in layer.parts)
        if adapter.rank:
            torch.testing.assert_close(adapter.delta(), expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(net.head.weight, plain.head.weight, rtol=0, atol=1e-10)


# -- the rest --------------------------------------------------------------------------------------------------


def test_the_rank_sum_is_the_budget_after_every_round():
    net, method = l1ra()
    train(net, method, STEPS)
    method.finish()
    assert {sum(round_.ranks.values()) for round_ in method.rounds_seen} == {18}


def test_a_parameter_budget_holds_at_every_round():
    net = Net()
    method = L1RA(L1RAConfig(), Budget(params=6 * 3 * 25))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    train(net, method, STEPS, each=lambda step: method.check_budget())
    assert any(round_.grown for round_ in method.rounds_seen)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_run_resumes_bit_for_bit(variant):
    check_resumes(lambda net: l1ra(net, variant=variant)[1], STEPS, 31)


def test_a_run_in_which_no_gate_closed_fails():
    net, method = l1ra(gate_lr=1e-6, l1=0.0)
    train(net, method, STEPS)
    with pytest.raises(NeverActed, match=r"raise method\.l1 or method\.gate_lr"):
        method.finish()


def test_an_interval_without_a_round_is_refused():
    with pytest.raises(UserError, match=r"method\.interval=60 must be below the run's 60 steps"):
        l1ra(interval=60)
