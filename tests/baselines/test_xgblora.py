"""XGBLoRA: LoRA of rank 1 with one booster, boosting as deflation, and draws until the budget is spent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.lora import LoRA, LoRAConfig
from baselines.xgblora import XGBLoRA, XGBLoRAConfig
from elalora import Budget, UserError
from elalora.names import layer_of

STEPS = 60


def boosted(net=None, rank=2, steps=STEPS, seed=0, budget=None, **knobs):
    net = net or Net()
    method = XGBLoRA(XGBLoRAConfig(**knobs), budget or Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


def test_one_booster_on_all_layers_is_lora_of_rank_1_bit_for_bit():
    nets = []
    for method in (LoRA(LoRAConfig(), Budget(1)), XGBLoRA(XGBLoRAConfig(layers=3), Budget(1))):
        net = Net()
        method.attach(net, ["up", "down"], STEPS, keep=["head"])
        train(net, method, STEPS, weight_decay=0.01, warmup=5, clip=1.0)
        method.finish()
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in nets), strict=True))


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
def test_boosters_that_are_solved_exactly_deflate_the_target_by_its_singular_values(shape):
    """Least squares ||W - M||^2 by alternating exact steps: after k boosters the rest is the tail of the spectrum."""
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)).double()
    model[0].weight.data.zero_()
    target = torch.randn(*shape, generator=g, dtype=torch.float64)
    method = XGBLoRA(XGBLoRAConfig(alpha=2.0), Budget(4))
    method.attach(model, ["0"], 4)
    adapter = method.adapters["0"]
    values = torch.linalg.svdvals(target)
    with torch.no_grad():
        for k in range(4):
            rest = target - adapter.delta()
            a = adapter.A[:1]
            for _ in range(3000):  # exact in b for given a, and in a for given b
                b = rest @ a.T / a.square().sum()
                a = (rest.T @ b / b.square().sum()).T
            adapter.A[:1], adapter.B[:1] = a, b.T / adapter.scale
            left = (target - adapter.delta()).square().sum().item()
            assert left == pytest.approx(values[k + 1 :].square().sum().item(), rel=1e-9, abs=1e-12)
            method.after_step(k, None, None)
    assert method.ranks() == {"0": 4}


def test_only_the_drawn_layers_train():
    net, method = boosted(Net(layers=6), layers=2)
    seen = []

    def look(step):
        now = {name: adapter.delta() for name, adapter in method.adapters.items()}
        for name, before in seen[-1].items() if seen and (step + 1) % 10 and step % 10 else ():
            inside = method.adapters[name].rank == 1
            assert torch.equal(now[name], before) != inside
        seen.append(now)

    names = list(method.adapters)
    assert len(method.members) == 6 and {len(m) for m in method.members} == {4}
    train(net, method, STEPS, each=look, weight_decay=0.1)
    x, y = batch(0)
    nn.functional.cross_entropy(net(x), y).backward()
    drawn = {names[i] for i in method.members[method.piece]}
    assert len({layer_of(name) for name in drawn}) == 2
    for name, adapter in method.adapters.items():
        for factor in adapter.factors():
            assert bool(factor.grad.any()) == (name in drawn)


def test_every_booster_adds_one_rank_to_the_matrices_of_its_layers():
    net, method = boosted(Net(layers=6), rank=3)
    start = method.ranks()
    assert start == {n: int(i in method.members[0]) for i, n in enumerate(start)} and sum(start.values()) == 4
    train(net, method, STEPS)
    method.finish()
    counted = [sum(i in members for members in method.members) for i in range(len(start))]
    assert list(method.ranks().values()) == counted and sum(counted) == 3 * 12
    assert method.remarks() == ["budget = sum of all pieces (9 pieces)"]
    assert method.further_counts()["trained"].rank_sum == 4
    assert method.further_counts()["accumulated"] == method.count()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 7), st.integers(0, 5))
def test_the_accumulated_ranks_are_the_budget_exactly_whatever_the_layers(layers, rank, drawn, seed):
    method = XGBLoRA(XGBLoRAConfig(layers=min(drawn, layers)), Budget(rank))
    method.attach(Net(layers=layers, width=8), ["up", "down"], 500, seed=seed)
    sizes = [len(members) for members in method.members]
    times = [sum(number in members for members in method.members) for number in range(2 * layers)]
    assert sum(sizes) == rank * 2 * layers and max(times) <= 8  # min(d_in, d_out)
    if max(times) < 8:  # no matrix was left out
        assert len(sizes) == math.ceil(rank * layers / min(drawn, layers))
        assert all(size == 2 * min(drawn, layers) for size in sizes[:-1])


def test_a_budget_in_parameters_is_never_exceeded_and_leaves_less_than_one_direction():
    net, method = boosted(budget=Budget(params=500), steps=100)
    train(net, method, 100)
    method.finish()
    assert 500 - 24 < method.count().params <= 500  # a direction costs 10 + 14


def test_matched_while_training_the_number_of_boosters_is_a_setting():
    net, method = boosted(matched="trained", boosters=12, layers=1, rank=1)
    assert not method.capabilities.final_only
    train(net, method, STEPS)
    method.finish()
    assert method.count().rank_sum == 24 > method.budget_use()[1] == 6 > method.budget_use()[0] == 2
    assert method.remarks() == ["budget = ranks trained at once (12 pieces)"]


@pytest.mark.parametrize("stop", [8, 30, 47])
@pytest.mark.parametrize("knobs", [{}, {"rewarm": True, "layers": 2}])
def test_a_run_resumes_bit_for_bit(knobs, stop):
    check_resumes(lambda net: boosted(net, rank=3, **knobs)[1], STEPS, stop)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"method\.layers=4 is above the model's 3 adapted layers"):
        boosted(layers=4)
    with pytest.raises(UserError, match=r"9 pieces do not fit a run of 5 steps: raise method\.layers"):
        boosted(rank=3, steps=5)
    with pytest.raises(UserError, match="3 pieces do not fit a run of 2 steps"):
        XGBLoRA(XGBLoRAConfig(), Budget(3)).check_length(2)
    with pytest.raises(UserError, match="rank 11 is above"):
        boosted(rank=11, steps=500)
    with pytest.raises(UserError, match=r"method\.matched=peak is unknown"):
        XGBLoRAConfig(matched="peak")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.3.attention.self.query", "bert.encoder.layer.3"),
        ("model.decoder.layers.0.fc1", "model.decoder.layers.0"),
        ("model.encoder.layers.0.fc1", "model.encoder.layers.0"),
        ("0", "0"),
        ("classifier.dense", "classifier.dense"),
    ],
)
def test_a_layer_is_the_name_up_to_its_first_number(name, layer):
    assert layer_of(name) == layer
