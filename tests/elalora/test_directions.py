"""Direction semantics: a direction is its own parameters with its own optimizer, born and dying alone."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from nets import Net, batch, train
from torch import nn

from elalora import Budget, ElaLoRA, ElaLoRAConfig, RowwiseAdamW, Schedule, UserError
from elalora.adapters import LowRankLinear
from elalora.attach import attach, find_linears
from elalora.directions import Directions

SCALE = 1.7


class Lone:
    """One direction of the reference: vectors and a number of its own, with an AdamW of their own."""

    def __init__(self, a, b, e, decay):
        self.parts = [nn.Parameter(t.clone()) for t in (a, b, e)]
        self.optimizer = torch.optim.AdamW(self.parts, lr=1.0, weight_decay=decay)

    def add(self, x):
        a, b, e = self.parts
        return SCALE * e * (x @ a)[:, None] * b


class ReferenceLinear(nn.Module):
    """A frozen layer plus a list of lone directions."""

    def __init__(self, base, lone):
        super().__init__()
        self.base, self.lone = base, lone

    def forward(self, x):
        return self.base(x) + sum((d.add(x) for d in self.lone), torch.zeros(()))


def vectors(shape, generator):
    d_out, d_in = shape
    return tuple(0.4 * torch.randn(s, generator=generator, dtype=torch.float64) for s in ((d_in,), (d_out,), ()))


def twins(capacity, ranks, decay):
    """The same net twice: rows in slots, and lone directions."""
    generator = torch.Generator().manual_seed(5)
    ours, reference = Net(layers=2), Net(layers=2)
    linears = find_linears(ours, ["up", "down"])
    ranks = dict(zip(linears, ranks, strict=True))
    ours.requires_grad_(False)
    adapters = attach(ours, linears, lambda n, lin: LowRankLinear(lin, Directions(capacity, ranks[n]), SCALE, True))
    reference.requires_grad_(False)
    lone = {}
    for name, adapter in adapters.items():
        lone[name] = []
        for slot in range(ranks[name]):
            a, b, e = vectors(adapter.base.weight.shape, generator)
            adapter.A.data[slot], adapter.B.data[slot], adapter.E.data[slot] = a, b, e
            lone[name].append(Lone(a, b, e, decay))
        parent, _, child = name.rpartition(".")
        setattr(reference.get_submodule(parent), child, ReferenceLinear(reference.get_submodule(name), lone[name]))
    ours.head.requires_grad_(True)
    reference.head.requires_grad_(True)
    return ours, adapters, reference, lone, generator


def kill(adapter, lone, slot):
    adapter.directions.die(slot)
    lone[slot] = lone[-1]
    lone.pop()


def bear(adapter, lone, generator, decay):
    a, b, e = vectors(adapter.base.weight.shape, generator)
    slot = adapter.directions.be_born()
    with torch.no_grad():
        adapter.A[slot], adapter.B[slot], adapter.E[slot] = a, b, e
    lone.append(Lone(a, b, e, decay))


def clip(parameters, norm):
    return nn.utils.clip_grad_norm_(list(parameters), norm)


@pytest.mark.parametrize("seed", range(6))
def test_training_equals_one_optimizer_per_direction_over_random_births_and_deaths(seed):
    rng, decay, capacity, steps = random.Random(seed), 0.05, 5, 70
    ours, adapters, reference, lone, generator = twins(capacity, [1, 5, 3, 2], decay)
    factors = [p for a in adapters.values() for p in a.factors()]
    slots = {p: a.directions for a in adapters.values() for p in a.factors()}
    optimizer = RowwiseAdamW(
        [{"params": factors, "weight_decay": decay}, {"params": list(ours.head.parameters())}], slots, lr=2e-2
    )
    schedule = Schedule(optimizer, steps, warmup=7)
    head = torch.optim.AdamW(reference.head.parameters(), weight_decay=0.0)
    seen, clipped = set(), 0
    for step in range(steps):
        factor = schedule.factor(step)
        for part in range(3):  # accumulation over several batches
            x, y = batch(100 * step + part)
            (nn.functional.cross_entropy(ours(x), y) / 3).backward()
            (nn.functional.cross_entropy(reference(x), y) / 3).backward()
        lones = [d for group in lone.values() for d in group]
        own = [p for d in lones for p in d.parts] + list(reference.head.parameters())
        norm = clip((p for p in ours.parameters() if p.requires_grad), 0.5)
        torch.testing.assert_close(clip(own, 0.5), norm, rtol=1e-10, atol=1e-12)
        clipped += norm > 0.5
        for one in [head, *(d.optimizer for d in lones)]:
            one.param_groups[0]["lr"] = 2e-2 * factor
            one.step()
        optimizer.step()
        schedule.at(step + 1)
        ours.zero_grad()
        reference.zero_grad()
        for d in lones:
            d.optimizer.zero_grad()
        if step % 4 == 3:  # a round: deaths first, then births, some of them in the same matrix
            for name in rng.choices(list(adapters), k=3):
                if adapters[name].rank > 1:
                    kill(adapters[name], lone[name], rng.randrange(adapters[name].rank))
                    seen.add("death")
                if rng.random() < 0.6 and adapters[name].rank < capacity:
                    bear(adapters[name], lone[name], generator, decay)
                    seen.add("death and birth in one matrix")
            for name in rng.choices(list(adapters), k=2):
                if adapters[name].rank < capacity:
                    bear(adapters[name], lone[name], generator, decay)
                seen.add("full" if adapters[name].rank == capacity else "birth")
        for name, adapter in adapters.items():
            assert adapter.rank == len(lone[name])
            for slot, direction in enumerate(lone[name]):
                for row, own in zip((adapter.A, adapter.B, adapter.E), direction.parts, strict=True):
                    torch.testing.assert_close(row[slot], own.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.head.weight, reference.head.weight, rtol=1e-10, atol=1e-10)
    assert {"death", "birth", "full", "death and birth in one matrix"} <= seen
    assert clipped > 10


def test_a_newborn_row_takes_the_first_step_of_a_fresh_adam():
    """With one step counter per tensor a row born at step 500 would move several times too far."""
    generator = torch.Generator().manual_seed(0)
    slots = Directions(4, 1)
    p = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    slots.follow(lambda: (p.detach(),))
    optimizer = RowwiseAdamW([p], {p: slots}, lr=1e-3)
    for _ in range(500):
        p.grad = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        optimizer.step()
    slot = slots.be_born()
    before = p.detach().clone()
    p.grad = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    optimizer.step()
    moved = (p.detach() - before)[slot]
    # Adam's first step is lr * g / (|g| + eps)
    torch.testing.assert_close(moved, -1e-3 * p.grad[slot].sign(), rtol=1e-4, atol=0)


def test_inactive_rows_are_never_touched_and_have_no_moments():
    slots = Directions(4, 2)
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = RowwiseAdamW([p], {p: slots}, lr=0.1, weight_decay=0.1)
    p.grad = torch.ones(4, 3)
    optimizer.step()
    assert (p[2:] == 1).all() and (p[:2] < 1).all()
    assert {name: tuple(t.shape) for name, t in optimizer.state[p].items()} == {
        "step": (2,), "exp_avg": (2, 3), "exp_avg_sq": (2, 3),
    }  # fmt: skip


def test_death_and_birth_keep_every_parameter_object():
    ours, adapters, _, _, _ = twins(5, [2, 2, 2, 2], 0.0)
    before = [id(p) for p in ours.parameters()]
    adapter = next(iter(adapters.values()))
    adapter.directions.die(0)
    adapter.directions.be_born()
    assert [id(p) for p in ours.parameters()] == before


def test_slots_refuse_what_does_not_fit():
    with pytest.raises(UserError, match="rank 5 does not fit a matrix of 4 slots"):
        Directions(4, 5)
    slots = Directions(2, 2)
    with pytest.raises(IndexError):
        slots.be_born()
    with pytest.raises(IndexError):
        slots.die(2)


def test_a_matrix_can_lose_its_last_direction_and_get_one_again():
    ours, adapters, _, _, generator = twins(5, [1, 1, 1, 1], 0.0)
    name, adapter = next(iter(adapters.items()))
    adapter.directions.die(0)
    x, _ = batch(0)
    assert torch.isfinite(ours(x)).all() and adapter.delta().abs().max() == 0
    ours(x).sum().backward()
    bear(adapter, [], generator, 0.0)
    assert adapter.rank == 1 and adapter.delta().abs().max() > 0


def test_a_copied_or_saved_model_leaves_moments_and_importance_alone(tmp_path):
    net, method = Net(), ElaLoRA(ElaLoRAConfig(t_initial=2, t_final=2, interval=3, b=1), Budget(3))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    optimizer, _ = train(net, method, 2)
    torch.save(net, tmp_path / "net.pt")
    for other in (copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False)):
        adapter = other.layers[0].up
        adapter.directions.die(0)
        assert adapter.rank == 2 and not adapter.A[2].any()
    adapter = net.layers[0].up
    assert len(optimizer.state[adapter.A]["step"]) == len(method.importance.smooth[adapter.A]) == adapter.rank == 3
