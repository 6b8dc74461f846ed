"""SoRA: against a plain float64 loop, the authors' three lines, and values worked out by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from scipy.stats import norm
from torch import nn

from baselines.sora import SoRA, SoRAConfig, shrink, spaced, stage_lengths
from elalora import Budget, MethodFailure, RowwiseAdamW, Schedule, UserError
from experiments.training.evaluation import within_budget


def sora(net, steps, rank=3, seed=0, **knobs):
    method = SoRA(SoRAConfig(**knobs), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return method


class Gated(nn.Module):
    """W0 x + scale B (g * (A x)), in the shapes of the paper."""

    def __init__(self, base, adapter, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.A = nn.Parameter(adapter.A.detach().clone())
        self.B = nn.Parameter(adapter.B.detach().T.clone())
        self.g = nn.Parameter(adapter.E.detach().clone())

    def forward(self, x):
        return self.base(x) + self.scale * (self.g * (x @ self.A.T)) @ self.B.T


def soft(g, xi):
    return g.sign() * (g.abs() - xi).clamp(min=0)


def three_lines(g, xi):
    g = g.clone()
    g[g > xi] -= xi
    g[g < -xi] += xi
    g[g.abs() < xi] = 0
    return g


@pytest.mark.parametrize(
    "knobs", [{"xi": 0.007}, {"xi": 0.014, "multiply_lr": True}, {"xi": 0.007, "variant": "official"}]
)
def test_fifty_steps_equal_plain_adamw_and_the_proximal_formula(knobs):
    net, steps, lr = Net(), 50, 2e-2
    twin = copy.deepcopy(net)
    method = sora(net, steps, **knobs)
    official = knobs.get("variant") == "official"
    twins = {}
    for name, adapter in method.adapters.items():
        parent, _, child = name.rpartition(".")
        twins[name] = Gated(twin.get_submodule(name), adapter, 16 / 6)
        setattr(twin.get_submodule(parent), child, twins[name])
    train(net, method, steps, lr=lr, weight_decay=0.1, warmup=3, clip=0.1)

    twin.requires_grad_(False)
    gates = [t.g.requires_grad_() for t in twins.values()]
    decay = [p.requires_grad_() for t in twins.values() for p in (t.A, t.B)] + [twin.head.weight.requires_grad_()]
    plain = [twin.head.bias.requires_grad_()]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": 0.1},
            {"params": plain, "weight_decay": 0.0},
            {"params": gates, "weight_decay": 0.0, "eps": 1e-6},
        ],
        lr=lr,
    )
    for step in range(steps):
        factor = step / 3 if step < 3 else (steps - step) / (steps - 3)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        x, y = batch(step)
        loss = nn.functional.cross_entropy(twin(x), y)
        if official:
            loss = loss + 10 * sum(g.abs().sum() for g in gates) / sum(g.numel() for g in gates)
        loss.backward()
        nn.utils.clip_grad_norm_(decay + plain + gates, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        xi = knobs["xi"] * (factor if knobs.get("multiply_lr") else 1)
        for g in gates:
            g.data = (three_lines if official else soft)(g.data, xi)
    for name, adapter in method.adapters.items():
        torch.testing.assert_close(adapter.E, twins[name].g, rtol=1e-10, atol=1e-12)
        assert torch.equal(adapter.E == 0, twins[name].g == 0)
        torch.testing.assert_close(adapter.A, twins[name].A, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(adapter.B, twins[name].B.T, rtol=1e-10, atol=1e-12)
    died = sum(len(r.pruned) for r in method.rounds_seen)
    returned = sum(len(r.grown) for r in method.rounds_seen)
    assert died > 5 and returned > 0  # the proof covers gates that come back
    torch.testing.assert_close(net.head.weight, twin.head.weight, rtol=1e-10, atol=1e-12)


def test_the_official_shrink_is_the_authors_three_lines():
    xi = 0.25  # exact in binary, so the edges are exact too
    g = torch.cat([torch.arange(-9, 10) * 0.125, torch.randn(500, generator=torch.Generator().manual_seed(0))])
    out = shrink(g, xi, dead_zone=True)
    assert torch.equal(out, three_lines(g, xi))
    by_hand = {0.125: 0.0, 0.25: 0.25, 0.375: 0.0, 0.5: 0.25, 0.75: 0.5, -0.25: -0.25, -0.375: 0.0, -0.5: -0.25}
    for value, expected in by_hand.items():
        assert shrink(torch.tensor([value]), xi, dead_zone=True).item() == expected
        assert shrink(torch.tensor([value]), xi).item() == np.sign(value) * max(abs(value) - xi, 0)


@pytest.mark.parametrize("knobs", [{}, {"multiply_lr": True}, {"variant": "official"}])
@pytest.mark.parametrize(("r_max", "kept"), [(None, 1 / 2), (12, 1 / 3)])
def test_the_default_xi_leaves_the_budget_where_gates_have_no_gradient(knobs, r_max, kept):
    steps, net = 100, Net(layers=16, width=24, inner=30)
    method = sora(net, steps, rank=4, r_max=r_max, **knobs)
    start = torch.cat([a.E.detach().clone() for a in method.adapters.values()])
    optimizer = RowwiseAdamW(method.groups(net, 1e-3, 0.0), method.directions())
    schedule = Schedule(optimizer, steps, warmup=10)
    for step in range(steps):
        method.after_step(step, optimizer, schedule)
    edge = norm.isf(kept / 2)  # P(|g| > edge) = kept
    # gates within one step's shrinkage of the edge may fall on either side of it
    clear = (start.abs() - edge).abs() > 3 * edge / steps
    now = torch.cat([a.E.detach() for a in method.adapters.values()])
    assert torch.equal((now != 0)[clear], (start.abs() > edge)[clear])
    count, spread = len(start) * kept, (len(start) * kept * (1 - kept)) ** 0.5
    assert abs(int((now != 0).sum()) - count) < 3 * spread
    assert abs(method.budget_distance) < 3 * spread / count


def test_removing_zero_gates_leaves_the_outputs_as_they_were():
    net = Net()
    method = sora(net, 60, xi=0.015, seed=3)
    train(net, method, 60)
    x, _ = batch(99)
    before, factors, ranks, count = net(x), method.lora_factors(), method.ranks(), method.count()
    assert 0 in ranks.values() or min(ranks.values()) < 6
    assert sum(ranks.values()) == sum(int((a.E != 0).sum()) for a in method.adapters.values()) < 36
    method.finish()
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-13)
    assert {n: a.rank for n, a in method.adapters.items()} == ranks == method.ranks()
    assert method.count() == count and all(bool((a.E[: a.rank] != 0).all()) for a in method.adapters.values())
    for name, (a, b) in method.lora_factors().items():
        assert a.shape[0] == ranks[name]
        torch.testing.assert_close(b @ a, factors[name][1] @ factors[name][0], rtol=1e-12, atol=1e-13)


def test_a_model_without_any_gate_left_is_the_frozen_model():
    net = Net()
    frozen = copy.deepcopy(net)
    method = sora(net, 4, xi=10.0)
    train(net, method, 4)
    method.finish()
    assert set(method.ranks().values()) == {0} and method.count().params == 0
    net.head.load_state_dict(frozen.head.state_dict())
    assert torch.equal(net(batch(0)[0]), frozen(batch(0)[0]))


def test_a_gate_at_zero_may_return_and_the_record_has_every_change():
    net = Net()
    method = sora(net, 80, xi=0.004, report_every=7)
    train(net, method, 80, lr=2e-2)
    alive = {(name, slot) for name, a in method.adapters.items() for slot in range(a.rank)}
    for entry in method.rounds_seen:
        count = {name: sum(m == name for m, _ in alive) for name in method.adapters}
        gone = set(entry.pruned)
        assert gone <= alive
        for name in method.adapters:
            lost = sum(m == name for m, _ in gone)
            assert entry.ranks[name] == count[name] - lost + entry.grown.count(name)
            assert entry.ranks[name] == sum(size > 0 for size in entry.scores[name])
        alive = {(n, i) for n, sizes in entry.scores.items() for i, size in enumerate(sizes) if size > 0}
    assert sum(len(r.grown) for r in method.rounds_seen) > 0
    assert [r.step for r in method.rounds_seen] == [*range(6, 80, 7), 79]


def test_gates_are_a_group_of_their_own_without_decay():
    net = Net()
    method = sora(net, 10, gate_lr=0.3)
    *others, gates = method.groups(net, 1e-3, 0.1)
    assert {id(p) for p in gates["params"]} == {id(a.E) for a in method.adapters.values()}
    assert (gates["lr"], gates["weight_decay"], gates["eps"]) == (0.3, 0.0, 1e-6)
    every = [id(p) for g in (*others, gates) for p in g["params"]]
    assert sorted(every) == sorted(id(p) for p in net.parameters() if p.requires_grad)


# -- stages --------------------------------------------------------------------------------------------------


def test_the_three_spacings_are_those_of_algorithm_1():
    low, high, n = 1e-4, 7e-4, 7
    expected = {
        "linear": np.linspace(low, high, n),
        "log_linear": np.log(np.linspace(np.exp(low), np.exp(high), n)),
        "exp_linear": np.exp(np.linspace(np.log(low), np.log(high), n)),
    }
    for spacing, values in expected.items():
        np.testing.assert_allclose(spaced(low, high, n, spacing), values, rtol=1e-9)
    assert spaced(0.0, 6e-4, 7, "linear") == pytest.approx([0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4])


def test_later_stages_are_three_tenths_of_the_first_and_fill_the_run():
    assert stage_lengths(1000, 1, 0.3) == (1000,)
    assert stage_lengths(140, 7, 0.3) == (50, 15, 15, 15, 15, 15, 15)
    assert sum(stage_lengths(1003, 5, 0.3)) == 1003
    with pytest.raises(UserError, match="lambda_num=7"):
        stage_lengths(5, 7, 0.3)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_in_later_stages_the_official_code_only_shrinks_gates(variant):
    net = Net()
    method = sora(net, 80, variant=variant, xi=0.0, lambda_num=3, max_lambda=0.02, lambda1=0.0)
    assert method.lengths == (50, 15, 15)
    rates, thresholds, factors = [], [], []
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.0), method.directions())
    schedule = Schedule(optimizer, 80, 2, stages=method.stages())

    def look(step):
        rates.append(schedule.factor(step))
        thresholds.append(method.threshold(step, schedule))
        factors.append([a.A.detach().clone() for a in method.adapters.values()])

    train(net, method, 80, optimizer=optimizer, warmup=2, each=look)
    assert thresholds == [0.0] * 50 + [0.01] * 15 + [0.02] * 15
    assert rates[:2] == [0.0, 0.5] and rates[49] == pytest.approx(1 / 48)
    still = all(torch.equal(a, b) for a, b in zip(factors[49], factors[79], strict=True))
    if variant == "official":
        assert rates[50:] == [0.0] * 30 and still
    else:
        assert rates[50:53] == [0.0, 0.5, 1.0] and rates[65:68] == [0.0, 0.5, 1.0] and not still
    assert sum(method.ranks().values()) < 36
    assert (method.phase(0), method.phase(50), method.phase(79)) == ("stage 1 of 3", "stage 2 of 3", "stage 3 of 3")


# -- LayerNorms ----------------------------------------------------------------------------------------------


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def test_layernorms_train_by_default_and_reload_with_the_adapter_in_stock_peft(tmp_path):
    from peft import PeftModel

    from elalora.export import export_peft

    model, head = bert(), ["bert.pooler", "classifier"]
    method = SoRA(SoRAConfig(xi=0.05), Budget(2))
    method.attach(model, ["query", "intermediate.dense"], 20, keep=head)
    names = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert set(method.trained_modules()) == names and len(names) == 5
    ids = torch.arange(24).view(3, 8)
    optimizer = RowwiseAdamW(method.groups(model, 1e-2, 0.0), method.directions())
    schedule = Schedule(optimizer, 20)
    for step in range(20):
        model(input_ids=ids, labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
    method.finish()
    assert not torch.equal(model.bert.embeddings.LayerNorm.weight, bert().bert.embeddings.LayerNorm.weight)
    export_peft(method, model, tmp_path, head + method.trained_modules(), task_type="SEQ_CLS")
    theirs = PeftModel.from_pretrained(bert(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_layernorms_can_be_frozen_for_a_matched_comparison():
    model = bert()
    method = SoRA(SoRAConfig(train_layernorms=False), Budget(2))
    method.attach(model, ["query"], 20, keep=["classifier"])
    assert method.trained_modules() == []
    assert not any(p.requires_grad for n, p in model.named_parameters() if "LayerNorm" in n)


# -- the rest of the contract --------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one():
    check_resumes(lambda net: sora(net, 40, xi=0.01, lambda_num=2, max_lambda=0.02), 40, 33)
    check_resumes(lambda net: sora(net, 40, variant="official", xi=0.01, lambda_num=2, max_lambda=0.02), 40, 33)


def test_gates_that_were_never_shrunk_fail_the_run():
    with pytest.raises(MethodFailure, match="after_step was not called"):
        sora(Net(), 10).finish()


def test_a_parameter_budget_is_approached_too():
    method = SoRA(SoRAConfig(), Budget(params=500))
    method.attach(Net(), ["up", "down"], 10)  # 6 matrices of 10 + 14 + 1 numbers per rank: rank 3
    assert method.mean_rank == 3 and method.count().params == 36 * 25
    assert method.budget_distance == pytest.approx(900 / 500 - 1) and method.remarks() == ["off budget"]
    for adapter in method.adapters.values():
        adapter.E.data[3:] = 0  # 6 matrices of rank 3 are 450 numbers
    assert method.budget_distance == pytest.approx(-0.1) and method.remarks() == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"variant": "none"}, "allowed: paper, official"),
        ({"xi": -1.0}, "method.xi=-1.0 must not be negative"),
        ({"lambda_num": 3}, "method.max_lambda=7e-4"),
        ({"lambda_num": 0}, "method.lambda_num=0 must be at least 1"),
        ({"lambda_num": 3, "max_lambda": 1e-3, "xi": 0.0, "lambda_schedule": "exp_linear"}, "exp_linear"),
        ({"r_max": 2}, "method.r_max=2 must lie between"),
        ({"r_max": 11}, "r_max=11 must lie between the budget's rank 3 and 10"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        sora(Net(), 20, **knobs)


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_a_step_off_the_budget_is_no_best_one(kept):
    net, method = Net(), SoRA(SoRAConfig(), Budget(3))
    method.attach(net, ["up", "down"], 40, keep=["head"])
    for adapter in method.adapters.values():
        adapter.E.data.fill_(1.0)
        adapter.E.data[int(kept * adapter.rank) :] = 0.0
    assert within_budget(method) == (kept == 0.5)
