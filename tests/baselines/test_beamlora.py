"""BeamLoRA: against a plain float64 reference with an AdamW of its own, and values worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn
from torch.nn.utils import parameters_to_vector

from baselines.beamlora import BeamLoRA, BeamLoRAConfig, weakest
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, MethodFailure, UserError


def beam(net, steps, rank=4, seed=0, **knobs):
    method = BeamLoRA(BeamLoRAConfig(**knobs), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return method


def test_it_starts_as_lora_with_the_same_outputs_and_gradients():
    net, other = Net(), Net()
    method = beam(net, 100)
    lora = LoRA(LoRAConfig(alpha=8.0), Budget(4))
    lora.attach(other, ["up", "down"], 100, keep=["head"])
    for a, b in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        assert torch.equal(a.A, b.A)
        a.B.data.normal_(generator=torch.Generator().manual_seed(1))
        b.B.data.copy_(a.B.data)
    x, y = batch(0)
    torch.testing.assert_close(net(x), other(x), rtol=1e-12, atol=1e-13)
    for model in (net, other):
        nn.functional.cross_entropy(model(x), y).backward()
    for a, b in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        torch.testing.assert_close(a.A.grad, b.A.grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(a.B.grad, b.B.grad, rtol=1e-10, atol=1e-13)


class Reference:
    """One matrix: factors in the shapes of the paper and an Adam with a counter per rank."""

    def __init__(self, adapter, tau):
        self.scale, self.tau, self.r = adapter.scale, tau, adapter.rank
        self.parts = {
            "A": adapter.A.detach().clone(),
            "B": adapter.B.detach().clone(),
            "s": adapter.E.detach().clone()[:, None],
        }
        self.m = {k: torch.zeros_like(v) for k, v in self.parts.items()}
        self.v = {k: torch.zeros_like(v) for k, v in self.parts.items()}
        self.age = {k: torch.zeros(self.r, 1, dtype=torch.float64) for k in self.parts}
        for p in self.parts.values():
            p.requires_grad_()

    def weights(self):
        e = (self.parts["s"][:, 0] / self.tau).exp()
        return self.r * e / e.sum()

    def update(self, x):
        return self.scale * ((x @ self.parts["A"].T) * self.weights()) @ self.parts["B"]

    @torch.no_grad()
    def adam(self, lr):
        for k, p in self.parts.items():
            self.age[k] += 1
            self.m[k] = 0.9 * self.m[k] + 0.1 * p.grad
            self.v[k] = 0.999 * self.v[k] + 0.001 * p.grad**2
            mean, square = self.m[k] / (1 - 0.9 ** self.age[k]), self.v[k] / (1 - 0.999 ** self.age[k])
            p -= lr * mean / (square.sqrt() + 1e-8)
            p.grad = None

    def snapshot(self):
        tables = {"p": self.parts, "m": self.m, "v": self.v, "age": self.age}
        return {w: {k: t[k].detach().clone() for k in "AB"} for w, t in tables.items()}

    @torch.no_grad()
    def copy(self, weak, strong, past, on):
        """Overwrites the ranks `weak` (a list) by those of `strong`; a strong rank may itself be a weak one."""
        for k in "AB":
            self.parts[k][weak] = past["p"][k][strong]
            if "B1" not in on:
                self.m[k][weak], self.v[k][weak] = past["m"][k][strong], past["v"][k][strong]
                self.age[k][weak] = past["age"][k][strong]
        s = self.parts["s"]
        s[weak] = (s[weak] + s[strong]) / 2
        s[strong] = s[weak]
        self.reset_gates([*weak, *strong], on)

    def reset_gates(self, ranks, on):
        self.m["s"][ranks] = self.v["s"][ranks] = 0.0
        if "B1" not in on:
            self.age["s"][ranks] = 0.0


def reference_round(matrices, share, past, on, generator):
    """A round from the description, on one vector of all importances; returns (matrix, slot) of the overwritten."""
    importance = torch.cat([m.weights().detach() for m in matrices])
    order = importance.argsort(descending=True, stable=True)
    total = importance[order].cumsum(0)
    above = (total > share * len(importance)).nonzero()  # the weights of a matrix sum to its rank
    first = len(order) if share == 1 or not len(above) else int(above[0]) + ("B2" not in on)
    where = [(n, i) for n, m in enumerate(matrices) for i in range(m.r)]
    sorted_slots, pruned = [where[j] for j in order], [where[j] for j in order[first:]]
    out = []
    for n, m in enumerate(matrices):
        weak = [i for at, i in pruned if at == n]
        if "B3" not in on:
            weak = weak[max(0, len(weak) - m.r // 2) :]
        if weak:
            strongest = [i for at, i in sorted_slots if at == n][: len(weak)]
            m.copy(weak, [strongest[i] for i in torch.randperm(len(weak), generator=generator)], past[n], on)
            out += [(n, i) for i in weak]
    if "B4" in on:
        for m in matrices:
            m.reset_gates(list(range(m.r)), on)
    return out


SWITCHES = ("B1", "B2", "B3", "B4", "B5", "B6")


def both(on, knobs, steps=60, lr=1e-2, every=8, keep=0.7):
    """The method, the reference with the switches `on`, and the moves of both."""
    net = Net()
    twin = copy.deepcopy(net)
    method = beam(net, steps, interval=every, keep=keep, end=45, **knobs)
    matrices = [Reference(a, 0.05) for a in method.adapters.values()]
    generator = torch.Generator()
    generator.set_state(method.generator.get_state())
    names = list(method.adapters)
    for m, name in zip(matrices, names, strict=True):
        twin.get_submodule(name).register_forward_hook(lambda mod, args, out, m=m: out + m.update(args[0]))
    train(net, method, steps, lr=lr)

    twin.requires_grad_(False)
    head = [p.requires_grad_() for p in twin.head.parameters()]
    optimizer = torch.optim.AdamW(head, lr=lr, weight_decay=0.0)
    log = []
    for step in range(steps):
        rate = lr * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        x, y = batch(step)
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for m in matrices:
            m.adam(rate)
        done = step + 1
        if done % every == every // 2 + ("B5" in on):
            past = [m.snapshot() for m in matrices]
        if done % every == 0 and steps - done >= every:
            t = min(done - ("B6" in on), 45)
            share = 1 - (1 - keep) * (1 + math.cos(math.pi * t / 45)) / 2
            log.append((step, reference_round(matrices, share, past, on, generator)))
    moves = [(r.step, [(names.index(name), slot) for name, slot in r.pruned]) for r in method.rounds_seen]
    pairs = list(zip(matrices, method.adapters.values(), strict=True))
    return pairs, moves, log, (net.head.weight, twin.head.weight)


ALONE = [pytest.param((name,), id=name, marks=pytest.mark.slow) for name in SWITCHES]


@pytest.mark.parametrize("on", [pytest.param((), id="paper"), pytest.param(SWITCHES, id="official"), *ALONE])
def test_sixty_steps_with_moves_equal_the_plain_reference(on):
    knobs = {"variant": "official"} if on == SWITCHES else dict.fromkeys(on, True)
    pairs, moves, log, heads = both(on, knobs)
    assert [(t, sorted(slots)) for t, slots in moves] == [(t, sorted(slots)) for t, slots in log]
    assert sum(len(slots) for _, slots in log) > 15 and not log[-1][1]
    for m, adapter in pairs:
        torch.testing.assert_close(adapter.A, m.parts["A"], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.B, m.parts["B"], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.E, m.parts["s"][:, 0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.delta(), m.scale * (m.parts["B"].T * m.weights()) @ m.parts["A"])
    torch.testing.assert_close(*heads, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("off", SWITCHES)
def test_each_switch_of_official_matters_and_can_be_turned_off_alone(off):
    """Against the reference without this one switch: equal; with all of them: not."""
    on = tuple(name for name in SWITCHES if name != off)
    pairs, _, _, _ = both(on, {"variant": "official", off: False}, keep=0.4)
    for m, adapter in pairs:
        torch.testing.assert_close(adapter.B, m.parts["B"], rtol=1e-10, atol=1e-11)
    whole, _, _, _ = both(SWITCHES, {"variant": "official"}, keep=0.4)
    ours, theirs = (parameters_to_vector([a.B for _, a in of]) for of in (pairs, whole))
    assert (ours - theirs).abs().max() > 1e-4


def test_official_prunes_the_rank_that_crosses_p_and_may_take_more_than_half_of_a_matrix():
    scores = {"a": [2.0, 1.0, 0.6, 0.4]}
    assert weakest(scores, 0.75) == {"a": [3]}
    assert weakest(scores, 0.75, crossing=True, halves=False) == {"a": [2, 3]}  # 2 + 1 + 0.6 is the first sum above 3
    even = {"a": [1.9, 0.7, 0.7, 0.7], "b": [1.3, 1.2, 0.9, 0.6]}
    assert weakest(even, 0.6, crossing=True, halves=False) == {"a": [1, 2, 3], "b": [2, 3]}  # 5.3 is above 4.8
    assert weakest(even, 0.6, crossing=True) == {"a": [2, 3], "b": [2, 3]}


def test_every_official_round_resets_the_moments_of_all_gates_even_where_nothing_moves():
    net = Net()
    method = beam(net, 24, variant="official", interval=8, keep=0.9, end=8)
    optimizer, _ = train(net, method, 8)
    ages = [optimizer.state[a.E]["step"].tolist() for a in method.adapters.values()]
    assert method.rounds_seen and ages == [[8.0] * 4] * 6  # in the authors' code a tensor has one counter
    for name, adapter in method.adapters.items():
        assert not optimizer.state[adapter.E]["exp_avg"].any() and not optimizer.state[adapter.E]["exp_avg_sq"].any()
        assert optimizer.state[adapter.A]["exp_avg"].any(), name
    assert len(method.rounds_seen[0].pruned) < 24
    train(net, method, 8, start=8, optimizer=optimizer)
    assert not method.rounds_seen[1].pruned  # p is 1 here
    assert not any(optimizer.state[a.E]["exp_avg"].any() for a in method.adapters.values())


def test_the_kept_share_rises_from_095_to_1():
    method = beam(Net(), 900, interval=90)
    assert method.end == 600
    assert method.share(0) == pytest.approx(0.95)
    assert method.share(300) == pytest.approx(0.975)
    assert method.share(600) == method.share(899) == 1.0
    assert [t for t in range(901) if method.due(t)] == list(range(90, 811, 90))


def test_the_defaults_are_the_authors_proportions():
    method = beam(Net(), 37031)
    assert (method.interval, method.end) == (3000, 24687)
    assert {a.scale for a in method.adapters.values()} == {2.0}


def test_the_weakest_lie_outside_the_smallest_set_above_the_share():
    scores = {"a": [2.0, 1.0, 0.75, 0.25], "b": [1.25, 1.0, 1.0, 0.75]}
    assert weakest(scores, 1.0) == {}
    assert weakest(scores, 0.95) == {"a": [3]}  # 7.75 is the first sum above 7.6
    assert weakest(scores, 0.75) == {"a": [2, 3], "b": [3]}  # 2 + 1.25 + 1 + 1 + 1 = 6.25 above 6
    assert weakest(scores, 0.1) == {"a": [2, 3], "b": [2, 3]}  # never more than half of a matrix
    assert weakest({"a": [1.0], "b": [1.0, 1.0]}, 0.1) == {"b": [1]}  # one rank alone has no partner


def test_no_direction_is_its_own_partner_even_when_all_are_equal():
    method = beam(Net(), 100)
    for count in (1, 2):
        weak = weakest({"a": [1.0] * 4}, 1 - (count + 0.5) / 4)["a"]
        assert len(weak) == count and not set(weak) & set(method._partners([1.0] * 4, count))


def test_a_pair_shares_the_strong_ones_factors_of_half_an_interval_ago():
    net = Net()
    method = beam(net, 24, interval=8, keep=0.7, end=24)
    past = {}

    def look(step):
        if step == 3:
            past.update({name: a.A.detach().clone() for name, a in method.adapters.items()})

    train(net, method, 8, each=look, lr=1e-2)
    (entry,) = method.rounds_seen
    assert entry.step == 7 and entry.pruned and len(entry.pruned) == len(entry.grown)
    for name, slot in entry.pruned:
        adapter = method.adapters[name]
        twins = [i for i in range(adapter.rank) if i != slot and torch.equal(adapter.E[i], adapter.E[slot])]
        assert len(twins) == 1 and torch.equal(adapter.A[slot], past[name][twins[0]])


def test_weight_decay_spares_the_gates():
    net = Net()
    decay, plain = beam(net, 100).groups(net, 1e-3, 0.1)
    assert decay["weight_decay"] == 0.1 and all(p.ndim == 2 for p in decay["params"])
    assert plain["weight_decay"] == 0.0 and len(plain["params"]) == 6 + 1  # s of each matrix, the head's bias


def test_ranks_and_parameters_never_change():
    net = Net()
    method = beam(net, 40, interval=4, keep=0.7)
    before = method.count()
    train(net, method, 40, each=lambda step: method.check_budget())
    method.finish()
    assert method.count() == before == type(before)(24, 12 * (24 + 1) + 12 * (24 + 1))


def test_a_resumed_run_is_the_uninterrupted_one():
    check_resumes(lambda net: beam(net, 40, interval=8, keep=0.7), 40, 13)


def test_rounds_that_never_came_fail_the_run():
    with pytest.raises(MethodFailure, match="rounds were due and no rank moved"):
        beam(Net(), 40, interval=8).finish()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rank": 1}, "budget=r2 or more"),
        ({"interval": 80}, "method.interval=80 must lie between"),
        ({"end": 200}, "method.end=200 between 1 and 100"),
        ({"tau": 0.0}, "method.tau=0.0"),
        ({"keep": 1.5}, "method.keep=1.5"),
        ({"variant": "x"}, "allowed: paper, official"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        beam(Net(), 100, **knobs)
