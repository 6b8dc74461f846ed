"""Checks every method against what its capabilities promise.

To check your own method, add its name and settings for a short run to METHODS in tests/support/contract.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from contract import METHODS, RANK, STEPS, build
from nets import Nested, Net, batch, begin_due, train
from torch import nn

from baselines.registry import METHODS as REGISTERED
from baselines.registry import method_class
from elalora import Budget, LowRankMethod, RowwiseAdamW, Schedule, UserError
from elalora.attach import merge
from elalora.export import export_peft
from elalora.method import BudgetExceeded, Capabilities, gross_share


def of(**capabilities):
    """Names of the methods with these capabilities."""
    for name in METHODS:
        have = method_class(name.split()[0]).capabilities
        if all(getattr(have, key) == value for key, value in capabilities.items()):
            yield name


def rank_sums(net, method):
    """The rank sum before the first step and after every one."""
    sums = [sum(method.ranks().values())]
    train(net, method, STEPS, each=lambda step: sums.append(sum(method.ranks().values())))
    return sums


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_every_registered_method_is_held_to_the_contract():
    assert {name.split()[0] for name in METHODS} >= set(REGISTERED) - {
        "peft",
        "class_means",
    }  # their own tests hold them


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", REGISTERED)
def test_no_setting_of_any_method_may_be_infinite_or_nan(name, value):
    cls = method_class(name)
    budget = Budget(RANK) if cls.capabilities.budget != "none" else None
    for field in dataclasses.fields(cls.Config):
        with pytest.raises(UserError, match=rf"method\.{field.name}="):
            cls(cls.Config(**{field.name: value}), budget)


def test_no_option_of_a_stock_tuner_may_be_infinite():
    cls = method_class("peft")
    with pytest.raises(UserError, match=r"method\.options\.lora_alpha=inf must be a finite number"):
        cls(cls.Config(options={"lora_alpha": math.inf}), Budget(RANK))


@pytest.mark.parametrize("name", list(of(neutral=True)))
def test_the_model_computes_the_same_before_the_first_step(name):
    net = Net()
    x, _ = batch(0)
    before = net(x).detach()
    net, _ = build(name, net=net)
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss_and_the_method_finishes(name):
    net, method = build(name)
    x, y = batch(500, items=200)
    before = nn.functional.cross_entropy(net(x), y).item()
    train(net, method, STEPS)
    method.finish()
    assert nn.functional.cross_entropy(net(x), y).item() < 0.9 * before


@pytest.mark.parametrize("name", METHODS)
def test_gradients_flow_only_where_promised(name):
    net, method = build(name)
    frozen = {n: p.detach().clone() for n, p in net.named_parameters() if not p.requires_grad}
    train(net, method, 10)
    own = {id(p) for p in method.directions()}
    for n, p in net.named_parameters():
        if n in frozen:
            assert p.grad is None and torch.equal(p, frozen[n]), n
        elif isinstance(method, LowRankMethod):
            layer_norm = "norm" in n.lower()
            assert id(p) in own or n.startswith("head.") or layer_norm or n.endswith(".magnitudes"), n


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_run(name):
    first, one = build(name, seed=3)
    second, two = build(name, seed=3)
    train(first, one, 30)
    train(second, two, 30)
    assert torch.equal(weights(first), weights(second)) and one.ranks() == two.ranks()


@pytest.mark.parametrize("name", [name for name in of(ranked=True) if name != "eva"])  # its start is the data's
def test_another_seed_gives_another_run(name):
    first, one = build(name, seed=3)
    second, two = build(name, seed=4)
    train(first, one, 5)
    train(second, two, 5)
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("name", list(of(budget="constant")))
def test_a_constant_budget_holds_at_every_step(name):
    net, method = build(name)
    sums = rank_sums(net, method)
    allowed = RANK * len(method.ranks())
    assert max(sums) <= allowed
    if "official" not in name:  # there, ties may cost ranks
        assert set(sums) == {allowed}


@pytest.mark.parametrize("name", list(of(budget="at_most")))
def test_a_budget_that_holds_at_most_starts_there_and_never_rises(name):
    net, method = build(name)
    sums = rank_sums(net, method)
    assert sums[0] == RANK * len(method.ranks()) and sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("name", list(of(budget="growing")))
def test_a_growing_budget_starts_below_never_falls_and_is_met_at_the_end(name):
    net, method = build(name)
    allowed = RANK * len(method.ranks())
    with pytest.raises(BudgetExceeded):  # the first ranks are no result
        method.check_budget()
    sums = rank_sums(net, method)
    assert sums[0] < allowed and sums == sorted(sums)
    method.finish()
    assert sum(method.ranks().values()) == allowed == method.count().rank_sum
    assert not any(method.reserve().values())


@pytest.mark.parametrize("name", list(of(budget="trained")))
def test_what_trains_at_once_stays_within_the_budget_and_the_sum_of_all_pieces_exceeds_it(name):
    net, method = build(name)
    sums = []
    train(net, method, STEPS, each=lambda step: sums.append(method.trained().rank_sum))
    method.finish()
    allowed, counts = RANK * len(method.ranks()), method.further_counts()
    assert max(sums) == counts["trained"].rank_sum == allowed < counts["accumulated"].rank_sum
    assert method.count().rank_sum == counts["accumulated"].rank_sum == sum(method.ranks().values())


@pytest.mark.parametrize("name", list(of(budget="final")))
def test_a_final_budget_holds_at_the_end(name):
    net, method = build(name)
    assert sum(method.ranks().values()) > RANK * len(method.ranks())
    train(net, method, STEPS)
    method.finish()
    assert sum(method.ranks().values()) <= RANK * len(method.ranks())


@pytest.mark.parametrize("name", list(of(budget="soft")))
def test_a_soft_budget_is_approached(name):
    net, method = build(name)
    train(net, method, STEPS)
    method.finish()
    assert sum(method.ranks().values()) == pytest.approx(RANK * len(method.ranks()), rel=0.5)


@pytest.mark.parametrize("name", list(of(adaptive=True)))
def test_an_adaptive_method_reports_rounds_that_add_up(name):
    net, method = build(name)
    ranks = start = method.ranks()
    train(net, method, STEPS)
    assert method.rounds_seen
    for done in method.rounds_seen:
        for matrix, rank in done.ranks.items():
            lost = sum(m == matrix for m, _ in done.pruned)
            assert rank == ranks[matrix] - lost + done.grown.count(matrix), (done.step, matrix)
        ranks = done.ranks
        json.dumps(vars(done))
    growing = method.capabilities.budget in ("growing", "trained")
    assert any(done.grown if growing else done.pruned for done in method.rounds_seen)
    assert not growing or 0 < gross_share(method.rounds_seen, start, method.ranks()) < 1


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_parameters_that_are_there(name):
    net, method = build(name)
    shapes = method.shapes()
    held = {m: rank + method.reserve().get(m, 0) for m, rank in method.ranks().items()}
    expected = sum(rank * (sum(shapes[m]) + getattr(method, "singular", False)) for m, rank in held.items())
    assert method.count().params == expected and method.count().rank_sum == sum(held.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_model_loaded_in_bfloat16_trains(name):
    net, method = build(name, net=Net().to(torch.bfloat16), steps=STEPS)
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
    schedule = Schedule(optimizer, STEPS)
    before = weights(net)
    for step in range(2):
        x, y = batch(step)
        with method.watching(None):
            loss = nn.functional.cross_entropy(net(x.bfloat16()), y)
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
    assert loss.isfinite() and not torch.equal(before, weights(net))


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_goes_on_bit_for_bit(name):
    whole, one = build(name)
    train(whole, one, STEPS)
    first, two = build(name)
    optimizer, schedule = train(first, two, 37)
    second, three = build(name, seed=11)
    other = RowwiseAdamW(three.groups(second, 5e-3, 0.0), three.directions())
    state = {
        k: v.clone() if isinstance(v, torch.Tensor) else json.loads(json.dumps(v)) for k, v in two.state_dict().items()
    }
    three.load_state_dict(state)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    held = schedule.held
    peaks = [group["lr"] for group in other.param_groups]

    for group in other.param_groups:
        group["lr"] = group["lr"] if group.get("constant_rate") else 5e-3
    again = Schedule(other, three.total_steps, stages=three.stages())
    again.load_state_dict({"held": held})
    again.at(37)
    for step in range(37, STEPS):
        x, y = batch(step)
        with three.watching(None):
            loss = nn.functional.cross_entropy(second(x), y)
        penalty = three.penalty()
        (loss if penalty is None else loss + penalty).backward()
        three.gradients_ready(step)
        other.step()
        again.at(step + 1)
        three.after_step(step, other, again)
        other.zero_grad()
        begin_due(three, step, other)
    assert peaks
    assert torch.equal(weights(whole), weights(second)) and one.ranks() == three.ranks()


@pytest.mark.parametrize("name", list(of(exports_lora=True)))
def test_the_exported_factors_are_the_trained_update(name):
    net, method = build(name)
    base = {n: p.detach().clone() for n, p in Net().named_parameters()}
    train(net, method, STEPS)
    method.finish()
    x, _ = batch(7)
    trained = net(x).detach()
    factors, ranks = method.lora_factors(), method.ranks()
    assert {m: a.shape[0] for m, (a, _) in factors.items()} == ranks
    plain = Net()
    plain.head.load_state_dict(net.head.state_dict())
    with torch.no_grad():
        for matrix, (a, b) in factors.items():
            plain.get_submodule(matrix).weight += b @ a
    torch.testing.assert_close(plain(x), trained, rtol=1e-8, atol=1e-10)
    assert base
    merge(net)
    torch.testing.assert_close(net(x), trained, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(of(budget="none")))
def test_a_method_without_a_budget_has_no_ranks(name):
    _, method = build(name)
    assert method.ranks() == {} and method.count().params == 0


def test_an_unknown_kind_of_budget_names_the_known_ones():
    with pytest.raises(ValueError, match="budget=growth is unknown; allowed: constant, at_most, final, growing, soft"):
        Capabilities(budget="growth")


def test_asking_for_an_unknown_method_names_the_known_ones():
    from elalora import UserError

    with pytest.raises(UserError, match="method=lore is unknown; allowed: elalora, lora"):
        method_class("lore")
    with pytest.raises(UserError, match="cannot be loaded"):
        method_class("baselines.lora:Lore")


def test_naming_the_methods_loads_none_of_them():
    code = "import baselines.registry, sys; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_length_is_refused_before_a_model_is_loaded_if_attach_refuses_it(name):
    """`check_length` never refuses what some model could train, and finds all but what depends on a small rank sum."""

    def refusal(action):
        try:
            action()
        except UserError as error:
            return str(error)
        return ""

    cls = method_class(name.split()[0])
    knobs = {"variant": "official"} if name.endswith("official") else {}
    for steps in range(1, 61):
        early = cls(cls.Config(**knobs), Budget(RANK) if cls.capabilities.budget != "none" else None)
        before = refusal(lambda m=early, n=steps: m.check_length(n))
        there = refusal(lambda n=steps: build(name, steps=n, knobs=knobs))
        by_size = "has fallen to 0" in there or "pieces do not fit" in there  # the number depends on the model
        assert before == there or by_size and (not before or "pieces do not fit" in before), steps


@pytest.mark.parametrize("name", list(of(exports_lora=True)))
def test_stock_peft_loads_names_that_end_alike(name, tmp_path):
    from peft import PeftModel

    net, method = build(name, net=Nested())
    train(net, method, STEPS)
    method.finish()
    x, _ = batch(7)
    trained = net(x).detach()
    reloaded = PeftModel.from_pretrained(Nested(), export_peft(method, net, tmp_path))
    torch.testing.assert_close(reloaded(x), trained, rtol=1e-8, atol=1e-10)
