"""The row-wise AdamW against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from elalora import RowwiseAdamW
from elalora.directions import Directions


def drive(parameters, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def make():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 5), (7,), (), (2, 3, 4)]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_without_directions_it_is_torch_adamw(decay, eps):
    ours, theirs = make(), make()
    drive(ours, RowwiseAdamW(ours, lr=1e-2, betas=(0.8, 0.95), eps=eps, weight_decay=decay), 50)
    drive(theirs, torch.optim.AdamW(theirs, lr=1e-2, betas=(0.8, 0.95), eps=eps, weight_decay=decay), 50)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_state_saved_and_loaded_goes_on_as_if_nothing_had_happened():
    whole, parts = make(), make()
    slots = {whole[0]: Directions(3, 2)}
    again = {parts[0]: Directions(3, 2)}
    first = RowwiseAdamW(whole, slots, lr=1e-2)
    drive(whole, first, 10, seed=2)
    drive(whole, first, 10, seed=3)
    second = RowwiseAdamW(parts, again, lr=1e-2)
    drive(parts, second, 10, seed=2)
    third = RowwiseAdamW(parts, again, lr=5.0)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    drive(parts, third, 10, seed=3)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_gradient_is_left_alone():
    p, q = make()[:2]
    optimizer = RowwiseAdamW([p, q], lr=1e-2, weight_decay=0.1)
    p.grad = torch.ones_like(p)
    before = q.detach().clone()
    optimizer.step()
    assert torch.equal(q, before) and q not in optimizer.state


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -0.1}, {"betas": (1.0, 0.9)}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        RowwiseAdamW(make(), **wrong)


def test_a_parameter_with_gaps_in_memory_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        RowwiseAdamW([nn.Parameter(torch.zeros(3, 4).T)])


def test_a_gradient_with_gaps_in_memory_is_read_right():
    ours, theirs = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    grad = torch.arange(12.0).view(4, 3).T
    for p, optimizer in ((ours, RowwiseAdamW([ours])), (theirs, torch.optim.AdamW([theirs], weight_decay=0.0))):
        p.grad = grad
        optimizer.step()
    assert torch.equal(ours, theirs)


class Elsewhere(torch.Tensor):
    """Stands for a tensor of a device that is not here."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_counters_come_back_to_the_cpu_from_wherever_they_were_loaded():
    first, second = make(), make()
    one, two = RowwiseAdamW(first), RowwiseAdamW(second)
    drive(first, one, 3)
    state = copy.deepcopy(one.state_dict())
    for moments in state["state"].values():
        moments["step"] = moments["step"].as_subclass(Elsewhere)
    two.load_state_dict(state)
    assert all(type(moments["step"]) is torch.Tensor for moments in two.state.values())


def test_a_parameter_that_was_moved_in_memory_is_still_updated():
    ours, theirs = make(), make()
    one, two = RowwiseAdamW(ours, weight_decay=0.1), torch.optim.AdamW(theirs, weight_decay=0.1)
    for parameters, optimizer in ((ours, one), (theirs, two)):
        drive(parameters, optimizer, 2)
        for p in parameters:
            p.data = p.data.clone()
        drive(parameters, optimizer, 2, seed=1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_ranks_restored_without_the_moments_are_refused_and_a_replaced_optimizer_does_no_harm():
    slots = Directions(4, 3)
    p = nn.Parameter(torch.ones(4, 5))
    old = RowwiseAdamW([p], {p: slots})
    drive([p], old, 2)
    saved = copy.deepcopy(old.state_dict())
    slots.die(1)
    slots.die(0)
    slots.restore(3)
    with pytest.raises(ValueError, match="load the optimizer's state after the method's"):
        drive([p], old, 1)
    new = RowwiseAdamW([p], {p: slots})
    new.load_state_dict(saved)
    slots.die(2)
    slots.be_born()
    drive([p], new, 1)
    assert new.state[p]["step"].tolist() == [3, 3, 1]
    assert old.state[p]["step"].tolist() == [2]


def test_rows_with_rates_of_their_own_equal_one_optimizer_for_each_direction():
    """Warm-up and decay that restart for late rows, births, deaths and weight decay, in float64."""
    steps, lr, decay, widths = 60, 1e-2, 0.2, (5, 7)
    generator = torch.Generator().manual_seed(3)

    def rate(step, start):
        now, length = step - start, steps - start
        return 0.0 if start is None else now / 6 if now < 6 else (length - now) / (length - 6)

    slots = Directions(6, 2)
    whole = [nn.Parameter(torch.zeros(6, width, dtype=torch.float64)) for width in widths]
    slots.follow(lambda: [p.detach() for p in whole])
    ours = RowwiseAdamW([{"params": whole, "lr": 1.0, "weight_decay": decay}], {p: slots for p in whole})
    lone, starts = [], []

    def born(start):
        rows = [torch.randn(width, generator=generator, dtype=torch.float64) for width in widths]
        lone.append([nn.Parameter(row.clone()) for row in rows])
        lone[-1].append(torch.optim.AdamW(lone[-1][:2], lr=1.0, weight_decay=decay))
        starts.append(start)
        return rows

    for slot in range(2):
        for p, row in zip(whole, born(0), strict=True):
            p.data[slot] = row
    for step in range(steps):
        if step in (10, 11, 30):
            for p, row in zip(whole, born(step), strict=True):
                p.data[slots.rank] = row
            values = [p.data[slots.rank].clone() for p in whole]
            slot = slots.be_born()
            for p, value in zip(whole, values, strict=True):
                p.data[slot] = value
        if step == 20:
            slots.die(1)
            lone[1], starts[1] = lone.pop(), starts.pop()
        common = max(rate(step, 0), 1e-3)
        rates = [rate(step, start) / common for start in starts]
        ours.set_rates({p: rates for p in whole})
        ours.param_groups[0]["lr"] = lr * common
        for p in whole:
            p.grad = torch.zeros_like(p)
        for slot, (a, b, optimizer) in enumerate(lone):
            for p, row in zip(whole, (a, b), strict=True):
                row.grad = torch.randn(row.shape, generator=generator, dtype=torch.float64)
                p.grad[slot] = row.grad
            optimizer.param_groups[0]["lr"] = lr * rate(step, starts[slot])
            optimizer.step()
        ours.step()
    for slot, (a, b, _) in enumerate(lone):
        torch.testing.assert_close(whole[0][slot], a, rtol=0, atol=1e-13)
        torch.testing.assert_close(whole[1][slot], b, rtol=0, atol=1e-13)
    assert slots.rank == len(lone) == 4


def test_rates_are_saved_with_the_moments_and_must_fit_the_rows():
    slots = Directions(4, 2)
    p = nn.Parameter(torch.ones(4, 3))
    first = RowwiseAdamW([p], {p: slots}, lr=1e-2)
    first.set_rates({p: [0.0, 0.5]})
    drive([p], first, 1)
    assert p[0].eq(1).all() and p[1].ne(1).all()
    second = RowwiseAdamW([p], {p: slots}, lr=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state[p]["rate"].tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="3 rates do not fit 2 active rows"):
        first.set_rates({p: [1.0] * 3})
