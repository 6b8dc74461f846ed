"""IncreLoRA: a float64 reference with autograd on the dense update and an AdamW per direction, and values by hand."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
from resuming import check_resumes
from torch import nn

from baselines.increlora import FROZEN, IncreLoRA, IncreLoRAConfig
from elalora import Budget, MethodFailure, RowwiseAdamW, Schedule, UserError
from elalora.method import BudgetExceeded, gross_share, net_share
from elalora.resolve import RunSize

STEPS = 60
GROWTH = {"t_initial": 3, "interval": 4, "top_h": 2, "add": 2}
SWITCHES = ("O1", "O2", "O3", "O5", "O7", "O8")


BATCH = nets.batch


def Net(layers=3, width=24, inner=30):
    """Matrices with more room than they ever fill."""
    return nets.Net(layers, width, inner)


def batch(step, width=24):
    return BATCH(step, width=width)


def train(net, method, steps, **more):
    """The bare loop on inputs of that width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "batch", batch)
        return nets.train(net, method, steps, **more)


def incre(net=None, rank=4, seed=0, steps=STEPS, **knobs):
    net = net or Net()
    method = IncreLoRA(IncreLoRAConfig(**{**GROWTH, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


# -- the reference ---------------------------------------------------------------------------------------------


class Lone:
    """One direction with optimizers of its own: one for a and b, one for e."""

    def __init__(self, a, b, e, start, live):
        self.a, self.b, self.e = (nn.Parameter(t.clone()) for t in (a, b, e))
        self.vectors = torch.optim.AdamW([self.a, self.b], lr=1.0, weight_decay=0.1)
        self.start = start
        if live:
            self.release(start)
        else:
            self.e.requires_grad_(False)
            self.value = None

    def release(self, start):
        self.e.requires_grad_(True)
        self.value, self.e_start = torch.optim.AdamW([self.e], lr=1.0, weight_decay=0.1), start

    def step(self, rate):
        self.vectors.param_groups[0]["lr"] = rate(self.start)
        self.vectors.step()
        if self.value is not None:
            self.value.param_groups[0]["lr"] = rate(self.e_start)
            self.value.step()


class Matrix(nn.Module):
    """The layer with a dense update, whose gradient is kept."""

    def __init__(self, base, lone, scale):
        super().__init__()
        self.base, self.lone, self.scale = base, lone, scale

    def forward(self, x):
        self.delta = self.scale * sum(d.e * torch.outer(d.b, d.a) for d in self.lone)
        self.delta.retain_grad()
        return self.base(x) + x @ self.delta.T


def regulariser(matrices, alone):
    total, count = 0.0, 0
    for m in matrices.values():
        for rows in (torch.stack([d.a for d in m.lone]), torch.stack([d.b for d in m.lone])):
            if alone:
                total, count = total + sum(abs(row @ row - 1) for row in rows), count + len(rows)
            else:
                total, count = total + torch.linalg.norm(rows @ rows.T - torch.eye(len(rows)).double()), count + 1
    return 0.1 * total / count


def reference(method, on, steps, warmup, lr, target, top_h, add, parts=1):
    """Trains a plain net from the method's start, with the same random draws; returns matrices and growth by round."""
    net = Net()
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    generator = torch.Generator()
    generator.set_state(method.generator.get_state())
    alpha, n = 16.0, len(method.adapters)
    matrices, live = {}, {}
    for name, adapter in method.adapters.items():
        start = Lone(adapter.A[0].detach(), adapter.B[0].detach(), adapter.E[0].detach(), 0, True)
        matrices[name] = Matrix(net.get_submodule(name), [start], alpha / (1 + 1e-5 if "O1" in on else target / n))
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, matrices[name])
        live[name] = 1

    def draw(name, start):
        width = [matrices[name].base.in_features, matrices[name].base.out_features]
        a, b = (torch.randn((1, w), generator=generator)[0].double() * 0.02 for w in width)
        matrices[name].lone.append(Lone(a, b, torch.tensor(1e-5).double(), start, False))

    head = torch.optim.AdamW(net.head.parameters(), lr=1.0, weight_decay=0.0)
    head.param_groups[0]["weight_decay"] = 0.0
    smooth, uncertain = dict.fromkeys(matrices, 0.0), dict.fromkeys(matrices, 0.0)
    log, over = [], False
    for t in range(steps):

        def rate(start, t=t):
            now, length = t - start, steps - start
            return lr * (now / warmup if now < warmup else (length - now) / max(1, length - warmup))

        x, y = batch(t)
        grads = dict.fromkeys(matrices, 0.0)
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (nn.functional.cross_entropy(net(x_part), y_part) / parts).backward()
            for name, m in matrices.items():
                grads[name] = m.delta.grad if "O7" in on else grads[name] + m.delta.grad
        regulariser(matrices, "O8" in on).backward()
        lone = [d for m in matrices.values() for d in m.lone]
        own = [p for d in lone for p in (d.a, d.b, d.e) if p.grad is not None] + list(net.head.parameters())
        nn.utils.clip_grad_norm_(own, 1.0)
        if not over:
            for name, m in matrices.items():
                x_now = ((m.delta * grads[name]).abs().sum() / m.delta.numel() ** 0.5).item()
                smooth[name] = 0.85 * smooth[name] + 0.15 * x_now
                uncertain[name] = 0.85 * uncertain[name] + 0.15 * abs(x_now - smooth[name])
        head.param_groups[0]["lr"] = rate(0)
        head.step()
        for d in lone:
            d.step(rate)
        if t == 0:
            for name in matrices:
                for _ in range(add):
                    draw(name, 1)
        if not over and t > 3 and t % 4 == 0:
            score = {name: smooth[name] * uncertain[name] for name in matrices}
            order = sorted(score, key=lambda name: -score[name])[: min(top_h, target - sum(live.values()))]
            grown = []
            for name in order:
                gain = add if "O2" in on else min(add, target - sum(live.values()))
                for _ in range(gain):
                    matrices[name].lone[live[name]].release(t + 1)
                    live[name] += 1
                    grown.append(name)
                if "O1" in on:
                    matrices[name].scale = alpha / (live[name] + 1e-5)
                for _ in range(add - (len(matrices[name].lone) - live[name])):
                    draw(name, t + 1)
            log.append((t, grown))
            over = sum(live.values()) >= target
            for name, m in matrices.items():
                if over and "O3" not in on:
                    del m.lone[live[name] :]
                elif sum(live.values()) == target:
                    for d in m.lone[live[name] :]:
                        d.e.data.zero_()
        for m in matrices.values():
            for d in m.lone:
                d.a.grad = d.b.grad = d.e.grad = None
        head.zero_grad()
    return net, matrices, live, log


def ours(method, net, steps, warmup, lr, parts=1):
    """The loop of `elalora.method` in `parts` micro-batches."""
    optimizer = RowwiseAdamW(method.groups(net, lr, 0.1), method.directions())
    optimizer.param_groups = [
        {**g, "weight_decay": 0.0 if any(p is net.head.weight for p in g["params"]) else g["weight_decay"]}
        for g in split_head(optimizer.param_groups, net)
    ]
    schedule = Schedule(optimizer, steps, warmup)
    for step in range(steps):
        x, y = batch(step)
        penalty = method.penalty()
        for number, (x_part, y_part) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            with method.watching(None):
                loss = nn.functional.cross_entropy(net(x_part), y_part) / parts
            (loss + penalty if number == parts - 1 else loss).backward()
        nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 1.0)
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()


def split_head(groups, net):
    """The optimizer's groups with the head, which has no decay in the reference, in one of its own."""
    head = {id(p) for p in net.head.parameters()}
    for group in groups:
        for of_head in (False, True):
            params = [p for p in group["params"] if (id(p) in head) is of_head]
            if params:
                yield {**group, "params": params, "weight_decay": 0.0 if of_head else group["weight_decay"]}


@pytest.mark.parametrize(
    ("on", "rank", "add", "top_h", "parts"),
    [((), 4, 2, 2, 1), ((), 3, 2, 4, 2), (SWITCHES, 4, 2, 2, 2), (SWITCHES, 4, 4, 4, 1)]
    + [((switch,), 4, 2, 2, 2) for switch in SWITCHES],
)
def test_sixty_steps_equal_a_dense_reference_with_an_optimizer_per_direction(on, rank, add, top_h, parts):
    net, method = incre(rank=rank, add=add, top_h=top_h, **{name: name in on for name in SWITCHES})
    plain, matrices, live, log = reference(method, on, STEPS, 5, 1e-2, 6 * rank, top_h, add, parts)
    ours(method, net, STEPS, 5, 1e-2, parts)
    assert [(r.step, sorted(r.grown)) for r in method.rounds_seen] == [(t, sorted(grown)) for t, grown in log]
    assert method.ranks() == live and len(log) >= 2
    for name, m in matrices.items():
        delta = m.scale * sum(d.e * torch.outer(d.b, d.a) for d in m.lone)
        torch.testing.assert_close(method.adapters[name].delta(), delta.detach(), rtol=0, atol=1e-7)
        assert method.adapters[name].rank == len(m.lone)
    torch.testing.assert_close(net.head.weight, plain.head.weight, rtol=0, atol=1e-7)


# -- budget and growth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "add", "top_h", "official", "exact"), [(2, 1, 6, 24, 24), (8, 4, 6, 108, 96), (6, 3, 7, 75, 72)]
)
def test_the_authors_code_overshoots_as_measured_and_paper_ends_exactly(rank, add, top_h, official, exact):
    for variant, end in (("official", official), ("paper", exact)):
        net = Net(layers=6, width=32, inner=32)
        _, method = incre(net, rank, variant=variant, add=add, top_h=top_h)
        held = []
        optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
        for step in range(STEPS):  # growth is a matter of scores, so inputs do not matter
            x, y = batch(step, width=32)
            with method.watching(None):
                nn.functional.cross_entropy(net(x), y).backward()
            method.gradients_ready(step)
            optimizer.step()
            method.after_step(step, optimizer, Schedule(optimizer, STEPS))
            optimizer.zero_grad()
            held.append(method.count().rank_sum)
        assert sum(method.ranks().values()) == end
        reserve = torch.cat([a.E[method.live[n] : a.rank].detach() for n, a in method.adapters.items()])
        if variant == "official":
            assert held[-1] == end + 12 * add  # 36 and 156 directions held
            assert reserve.eq(0.0 if official == exact else 1e-5).all()
        else:
            assert held[-1] == end and len(reserve) == 0
        assert method.remarks() == (["off budget"] if end > exact else [])
        method.finish()
        assert method.count().rank_sum == end


@pytest.mark.parametrize(("rank", "add", "ratio"), [(2, 1, 0.5), (8, 4, 0.2), (6, 3, 0.25)])
def test_growth_shrinks_the_update_by_r_over_r_plus_add_only_with_O1(rank, add, ratio):
    for switch in (True, False):
        net, method = incre(rank=rank, add=add, O1=switch, top_h=1)
        optimizer, _ = train(net, method, 4)
        before = {name: a.delta().norm() for name, a in method.adapters.items()}
        grown = set(method._round(4, optimizer).grown)
        for name, adapter in method.adapters.items():
            expected = ratio if switch and name in grown else 1.0
            assert (adapter.delta().norm() / before[name]).item() == pytest.approx(expected, abs=2e-3)


def test_the_reserve_counts_while_it_trains_and_is_no_rank():
    net, method = incre()
    assert sum(method.ranks().values()) == 6 and method.count().rank_sum == 18
    seen = []
    train(net, method, STEPS, each=lambda step: seen.append((sum(method.ranks().values()), method.count().rank_sum)))
    assert seen[0] == (6, 18) and (22, 34) in seen and seen[-1] == (24, 24)
    assert max(count for _, count in seen) == 34


def test_the_reserve_trains_before_it_counts_and_its_values_do_not_move():
    net, method = incre(t_initial=30, top_h=4)
    optimizer, _ = train(net, method, 2, weight_decay=0.5)
    before = copy.deepcopy(list(method.adapters.values()))
    train(net, method, 20, weight_decay=0.5, start=2, optimizer=optimizer)
    for old, new in zip(before, method.adapters.values(), strict=True):
        assert new.E[1:3].eq(torch.tensor(1e-5, dtype=torch.float64)).all()
        assert new.E[0] != old.E[0] and (new.A[1:3] != old.A[1:3]).all() and (new.B[1:3] != old.B[1:3]).all()


def test_without_advance_learning_there_is_no_reserve_and_growing_leaves_the_output():
    net, method = incre(advance=False)
    optimizer, _ = train(net, method, 4)
    assert method.count().rank_sum == 6
    x, _ = batch(0)
    before = net(x).detach()
    method._round(4, optimizer)
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-14)
    assert sum(method.ranks().values()) == 10


def test_ties_grow_together_only_in_the_authors_code():
    for switch in (True, False):
        _, method = incre(O2=True, O5=switch)
        gains = method._choose(dict(zip(method.adapters, [3.0, 2.0, 2.0, 1.0, 0.0, 0.0], strict=True)))
        assert len(gains) == (3 if switch else 2)


def test_more_matrices_a_round_than_there_are_means_all_of_them():
    for variant in ("paper", "official"):
        net, method = incre(top_h=50, variant=variant)
        train(net, method, STEPS)
        method.finish()
        assert len(method.rounds_seen[0].grown) == 12


def test_new_directions_restart_the_schedule_and_old_ones_stay_on_theirs():
    schedule = Schedule(RowwiseAdamW([nn.Parameter(torch.zeros(1))], lr=1.0), 100, 10)
    assert [schedule.restarted(t, 40) for t in (40, 45, 50, 75, 100)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert schedule.restarted(98, 95) == 0.3  # no step is left after its warm-up
    net, method = incre(top_h=6)
    optimizer, _ = train(net, method, 10, warmup=5)
    adapter = method.adapters["layers.0.up"]
    rates = {key: optimizer.state[p]["rate"].tolist() for key, p in (("A", adapter.A), ("E", adapter.E))}
    common = (60 - 10) / 55
    by_start = {0: 1.0, 1: 50 / 54 / common, 5: 1 / common, 9: 0.2 / common, None: 0.0}
    clock = method.clock["layers.0.up"]
    assert clock[:3] == [[0, 0], [1, 5], [1, 5]] and [1, FROZEN] not in clock[:5]
    assert rates["A"] == pytest.approx([by_start[start] for start, _ in clock])
    assert rates["E"] == pytest.approx([by_start[start] for _, start in clock])


def test_a_parameter_budget_is_met_from_below():
    net = Net()
    method = IncreLoRA(IncreLoRAConfig(**GROWTH), Budget(params=3 * 6 * 55 + 7))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    train(net, method, STEPS)
    method.finish()
    assert method.count().params == 990 and len(set(method.ranks().values())) > 1


def test_growth_has_a_gross_and_a_net_share():
    start = dict.fromkeys("abc", 1)
    _, method = incre()
    method.rounds_seen = []
    assert gross_share([], start, start) == 0.0
    net, method = incre()
    start = method.ranks()
    train(net, method, STEPS)
    assert gross_share(method.rounds_seen, start, method.ranks()) == pytest.approx(18 / 24)
    assert net_share(start, {name: 4 for name in start}) == 0.0 < net_share(start, method.ranks()) < 1


def small(net, **knobs):
    method = IncreLoRA(IncreLoRAConfig(**{**GROWTH, **knobs}), Budget(4))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    return method


# -- the rest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"variant": "official"}, {"restart": False}, {"advance": False}])
@pytest.mark.parametrize("stop", [1, 9, 18])
def test_a_run_resumes_bit_for_bit(knobs, stop):
    check_resumes(lambda net: small(net, **knobs), STEPS, stop)


def test_a_run_whose_growth_did_not_end_fails_and_is_never_the_best():
    net, method = incre()
    train(net, method, 10)
    with pytest.raises(BudgetExceeded, match="growth has not reached the budget: rank sum 14 of 24"):
        method.check_budget()
    with pytest.raises(MethodFailure):
        method.finish()


@pytest.mark.parametrize(
    ("knobs", "rank", "message"),
    [
        ({}, 1, "starts with rank 1 everywhere: type budget=r2 or more"),
        ({"top_h": 1, "add": 1}, 4, "leave 14 rounds in a run of 60 steps, and 18 are needed"),
        ({"interval": 40, "top_h": None, "add": 1}, 4, "leave 1 rounds in a run of 60 steps, and 3 are needed"),
    ],
)
def test_what_cannot_reach_the_budget_is_refused_before_the_first_step(knobs, rank, message):
    with pytest.raises(UserError, match=message):
        incre(rank=rank, **knobs)


def test_growth_ends_after_two_fifths_of_the_steps_by_default():
    config = IncreLoRAConfig().resolved(RunSize(1000, 4, 36))
    assert (config.t_initial, config.interval, config.add, config.top_h) == (20, 20, 2, 3)
    net = Net()
    method = IncreLoRA(IncreLoRAConfig(), Budget(4))
    method.attach(net, ["up", "down"], 1000, keep=["head"])
    assert method.phases.rounds()[-1] <= 0.42 * 1000
