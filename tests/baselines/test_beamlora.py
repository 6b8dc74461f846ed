"""BeamLoRA: against a plain float64 reference with an AdamW of its own, and values worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

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
    def copy(self, weak, strong, past, official):
        for k in "AB":
            self.parts[k][weak] = past["p"][k][strong]
            if not official:
                self.m[k][weak], self.v[k][weak] = past["m"][k][strong], past["v"][k][strong]
                self.age[k][weak] = past["age"][k][strong]
        both = (self.parts["s"][weak] + self.parts["s"][strong]) / 2
        self.parts["s"][weak] = self.parts["s"][strong] = both
        for i in (weak, strong):
            self.m["s"][i] = self.v["s"][i] = 0.0
            if not official:
                self.age["s"][i] = 0.0


def reference_round(matrices, share, past, official, generator):
    """Keeps the smallest leading set above the share; returns (matrix, slot) of what was overwritten."""
    table = sorted((-w, n, i) for n, m in enumerate(matrices) for i, w in enumerate(m.weights().tolist()))
    kept, total = 0, 0.0
    while kept < len(table) and total <= share * len(table):  # the weights of a matrix sum to its rank
        total -= table[kept][0]
        kept += 1
    out = []
    for n, m in enumerate(matrices):
        order = [i for _, at, i in table if at == n]
        gone = [i for _, at, i in table[kept:] if at == n][-(m.r // 2) :]
        if gone:
            draw = torch.randperm(len(gone), generator=generator).tolist()
            for weak, at in zip(gone, draw, strict=True):
                m.copy(weak, order[at], past[n], official)
                out.append((n, weak))
    return out


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_sixty_steps_with_moves_equal_the_plain_reference(variant):
    net, steps, lr, every = Net(), 60, 1e-2, 8
    twin = copy.deepcopy(net)
    method = beam(net, steps, variant=variant, interval=every, keep=0.7, end=45)
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
        if done % every == every // 2:
            past = [m.snapshot() for m in matrices]
        if done % every == 0 and steps - done >= every:
            share = 1 - 0.3 * (1 + math.cos(math.pi * min(done, 45) / 45)) / 2
            log.append((step, reference_round(matrices, share, past, variant == "official", generator)))
    ours = [(r.step, [(names.index(name), slot) for name, slot in r.pruned]) for r in method.rounds_seen]
    assert [(t, sorted(moves)) for t, moves in ours] == [(t, sorted(moves)) for t, moves in log]
    assert sum(len(moves) for _, moves in log) > 15 and not log[-1][1]
    for m, adapter in zip(matrices, method.adapters.values(), strict=True):
        torch.testing.assert_close(adapter.A, m.parts["A"], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.B, m.parts["B"], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.E, m.parts["s"][:, 0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(adapter.delta(), m.scale * (m.parts["B"].T * m.weights()) @ m.parts["A"])
    torch.testing.assert_close(net.head.weight, twin.head.weight, rtol=1e-10, atol=1e-11)


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
