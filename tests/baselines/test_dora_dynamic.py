"""Dynamic-rank DoRA: a plain float64 reference with torch's AdamW, brute-force scores, and schedules by hand."""

from __future__ import annotations

import math

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.dora_dynamic import SWITCHES, DynamicDoRA, DynamicDoRAConfig, mean_variance, plan_window, shares
from elalora import Budget, UserError
from elalora.method import NeverActed
from elalora.resolve import RunSize

STEPS = 60
BETA = 0.1  # in the reference run, so that directions also return
PHASES = {"t_initial": 0.15, "t_final": 0.5, "interval": 4}


def dora(net=None, rank=3, seed=0, **knobs):
    net = net or Net()
    method = DynamicDoRA(DynamicDoRAConfig(**{**PHASES, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], STEPS, keep=["head"], seed=seed)
    return net, method


def brute_shares(a, b, c):
    """s_i from the whole outer products; a (r, d_in), b (r, d_out)."""
    parts = torch.einsum("r,ro,ri->roi", c, b, a)
    return parts.flatten(1).norm(dim=1) / (parts.sum(0).norm() + 1e-8)


# -- the formulas ----------------------------------------------------------------------------------------------


def test_the_score_is_the_norm_of_a_directions_outer_product_over_that_of_the_whole_update():
    _, method = dora()
    adapter = method.adapters["layers.0.up"]
    adapter.E.data.normal_(generator=torch.Generator().manual_seed(5))
    expected = brute_shares(adapter.A.detach(), adapter.B.detach(), adapter.E.detach())
    torch.testing.assert_close(shares(adapter).detach(), expected, rtol=1e-12, atol=0)
    adapter.E.data.zero_()
    assert shares(adapter).tolist() == [0.0] * 5


def test_the_regulariser_is_the_mean_of_torchs_variances():
    _, method = dora()
    rows = [row for a in method.adapters.values() for factor in (a.A, a.B) for row in factor]
    assert len(rows) == 2 * 6 * 5
    value = mean_variance(method.adapters.values())
    torch.testing.assert_close(value, torch.stack([torch.var(row) for row in rows]).mean(), rtol=1e-13, atol=0)
    assert method.penalty().item() == pytest.approx(0.1 * value.item(), rel=1e-13)


def test_factors_start_uniform_with_the_bounds_of_their_inputs_and_c_at_0():
    _, method = dora(Net(layers=1, width=150, inner=200), rank=8)
    adapter = method.adapters["layers.0.up"]
    assert adapter.rank == 12 and adapter.scale == 8 / 12 and not adapter.E.any()
    for factor, inputs in ((adapter.A, 150), (adapter.B, 12)):
        bound = math.sqrt(6 / inputs)
        assert factor.abs().max() <= bound
        assert factor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


# -- the schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "interval", "surplus", "table"),
    [
        # L = 35, from step 15 on: 36 (t / 35)^3, rounded down
        (100, 10, 36, {25: 0, 35: 6, 45: 22, 50: 36}),
        (100, 35, 36, {50: 36}),
        (100, 50, 36, {50: 36}),
        (200, 20, 10, {50: 0, 70: 1, 90: 6, 100: 10}),
    ],
)
def test_the_schedule_is_the_one_worked_out_by_hand(total, interval, surplus, table):
    window = plan_window(total, 0.15, 0.5, interval, first_round=False, truncates=False)
    assert {t + 1: window.pruned(t, surplus) for t in window.rounds()} == table


@pytest.mark.parametrize(
    ("total", "m1", "m6", "first"),
    [(100, False, True, [25, 35]), (100, True, True, [15, 25]), (110, True, False, [16, 26]),
     (110, True, True, [16, 17, 27]), (110, False, True, [27, 37])],
)  # fmt: skip
def test_M1_adds_a_round_at_the_start_and_M6_repeats_it_where_the_start_is_not_whole(total, m1, m6, first):
    window = plan_window(total, 0.15, 0.5, 10, m1, m6)
    assert [t + 1 for t in window.rounds()][: len(first)] == first


@pytest.mark.parametrize("total", [37, 60, 99, 100, 110, 333, 8025])
def test_official_rounds_are_those_of_the_authors_expressions(total):
    """The conditions as the code states them, over the steps of a run, which it counts from 1."""
    interval = max(1, total // 20)
    length = int(total * (1 - 0.15 - 0.5))
    expected = []
    for done in range(1, total + 1):
        at = int(done - total * 0.15)
        if 0 <= at <= length and (at % interval == 0 or at == length) and done - total * 0.15 > -1:
            expected.append((done, int(12 * ((6 - 4) / 6) * 7 * (at / length) ** 3)))
    window = plan_window(total, 0.15, 0.5, interval, True, True)
    rounds = [(t + 1, window.pruned(t, 28)) for t in window.rounds()]
    assert [done for done, _ in rounds] == [done for done, _ in expected]
    assert all(abs(mine - theirs) <= 1 for (_, mine), (_, theirs) in zip(rounds, expected, strict=True))


def test_the_default_interval_is_that_of_the_authors_example():
    assert DynamicDoRAConfig().resolved(RunSize(8025, 8)).interval == 100
    assert DynamicDoRAConfig().resolved(RunSize(8025, 8)).init_rank == 12


# -- a whole run against a plain reference ---------------------------------------------------------------------


class Plain(nn.Module):
    """W0 x + b + (alpha / r0) B (c * A x), with everything as it stands in the formula."""

    def __init__(self, base, adapter):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), adapter.scale
        self.a = nn.Parameter(adapter.A.detach().clone())
        self.b = nn.Parameter(adapter.B.detach().clone())
        self.c = nn.Parameter(adapter.E.detach().clone())

    def forward(self, x):
        return self.base(x) + self.scale * ((x @ self.a.T) * self.c) @ self.b


def reference(method, on, lr, decay, clip, weight, rank=3):
    """The run with torch's AdamW; returns the net, its layers and the kept slots after each round."""
    net = Net()
    layers = {}
    for name, adapter in method.adapters.items():
        parent, _, leaf = name.rpartition(".")
        layers[name] = Plain(net.get_submodule(name), adapter)
        setattr(net.get_submodule(parent), leaf, layers[name])
    gates = [layer.c for layer in layers.values()]
    factors = [p for layer in layers.values() for p in (layer.a, layer.b)]
    groups = [
        {"params": [*factors, net.head.weight], "weight_decay": decay},
        {"params": [net.head.bias], "weight_decay": 0.0},
        {"params": gates, "weight_decay": decay if on["M2"] else 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    everything = [p for group in groups for p in group["params"]]
    r0 = len(gates[0])
    start = math.ceil(0.15 * STEPS)
    length = STEPS - start - STEPS // 2
    scores = {name: torch.zeros(r0, dtype=torch.float64) for name in layers}
    masks, rounds = None, []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / STEPS)
        x, y = batch(step)
        loss = nn.functional.cross_entropy(net(x), y)
        if masks is None:
            rows = [row for factor in factors for row in factor]
            loss = loss + weight * torch.stack([row.var() for row in rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        if masks is not None and not on["M7"]:
            for name, layer in layers.items():
                layer.c.grad[masks[name]] = 0
        nn.utils.clip_grad_norm_(everything, clip)
        optimizer.step()
        with torch.no_grad():
            if masks is not None:
                for name, layer in layers.items():
                    layer.c[masks[name]] = 0
                continue
            for name, layer in layers.items():
                now = brute_shares(layer.a, layer.b, layer.c)
                scores[name] = BETA * scores[name] + (1 - BETA) * now
            at = step + 1 - start
            if at < 0 or (at == 0 and not on["M1"]) or not (at % 4 == 0 or at == length):
                continue
            number = (r0 - rank) * len(gates) * at**3 // length**3
            number = max(number, 1) if on["M1"] else number
            everyone = torch.cat(list(scores.values()))
            threshold = everyone.sort().values[number - 1] if number else -1.0
            pruned = {name: s <= threshold for name, s in scores.items()}
            for name, layer in layers.items():
                layer.c[pruned[name]] = 0
            rounds.append({name: int((~mask).sum()) for name, mask in pruned.items()})
            if at == length:
                masks = pruned
    return net, layers, masks, rounds


@pytest.mark.parametrize("switch", [None, *SWITCHES, "official"])
def test_a_whole_run_is_that_of_a_plain_loop_with_torchs_adamw(switch):
    knobs = {"variant": "official"} if switch == "official" else {switch: True} if switch else {}
    on = {name: switch in (name, "official") for name in SWITCHES}
    net, method = dora(beta=BETA, **knobs)
    plain, layers, masks, rounds = reference(method, on, lr=5e-2, decay=0.1, clip=0.05, weight=0.1)
    train(net, method, STEPS, lr=5e-2, weight_decay=0.1, clip=0.05)
    assert [round_.ranks for round_ in method.rounds_seen] == rounds
    assert len(rounds) == 7 if on["M1"] else 6
    assert switch or any(round_.grown for round_ in method.rounds_seen), "no direction came back"
    method.finish()
    for name, adapter in method.adapters.items():
        layer, kept = layers[name], ~masks[name]
        expected = layer.scale * (layer.b[kept].T * layer.c[kept]) @ layer.a[kept]
        torch.testing.assert_close(adapter.delta(), expected.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(net.head.weight, plain.head.weight, rtol=0, atol=1e-11)


# -- what lasts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_after_the_last_round_nothing_returns_and_the_rank_sum_is_the_budget(variant):
    net, method = dora(variant=variant)
    seen = []

    def look(step):
        if method.fixed:
            seen.append((method.ranks(), sum(int((a.E != 0).sum()) for a in method.adapters.values())))

    train(net, method, STEPS, each=look)
    assert len(seen) == STEPS // 2 + 1
    assert all(ranks == seen[0][0] and alive == 6 * 3 for ranks, alive in seen)
    sizes = {adapter.rank for adapter in method.adapters.values()}
    assert (sizes == {5}) is (variant == "official")  # there the pruned directions leave at the end
    method.finish()
    assert sum(adapter.rank for adapter in method.adapters.values()) == 6 * 3


def test_ties_at_the_threshold_go_together_only_with_M5():
    for switch, left in ((False, 18), (True, 0)):
        net, method = dora(M5=switch)
        method.scores["all"] = torch.zeros(30, dtype=torch.float64)
        method._round(method.phases.end - 1)
        assert sum(method.ranks().values()) == left


def test_a_parameter_budget_holds_at_the_end():
    net = Net()
    method = DynamicDoRA(DynamicDoRAConfig(**PHASES), Budget(params=6 * 3 * 25))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    train(net, method, STEPS)
    method.finish()
    assert method.count().params <= 6 * 3 * 25


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("stop", [20, 41])
def test_a_run_resumes_bit_for_bit(variant, stop):
    check_resumes(lambda net: dora(net, variant=variant)[1], STEPS, stop)


def test_a_run_whose_last_round_did_not_happen_fails():
    net, method = dora()
    train(net, method, 20)
    with pytest.raises(NeverActed, match=r"the last after step 29"):
        method.finish()


def test_a_start_that_is_not_above_the_budget_is_refused():
    with pytest.raises(UserError, match=r"method\.init_rank=3 must be above the final rank 3"):
        dora(init_rank=3)


def test_only_the_official_variant_is_not_reconstructed():
    assert dora()[1].reconstructed and not dora(variant="official")[1].reconstructed
