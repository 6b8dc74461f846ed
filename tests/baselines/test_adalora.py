"""AdaLoRA's settings, resuming and failures."""

from __future__ import annotations

import json

import pytest
import torch
from adalora_runs import small
from nets import Net, train
from torch import Tensor, nn

from baselines.adalora import AdaLoRA, AdaLoRAConfig, plan_masking
from elalora import Budget, MethodFailure, RowwiseAdamW, UserError
from elalora.method import BudgetExceeded

torch.set_num_threads(1)


def trained_values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_two_runs_are_equal_bit_for_bit():
    runs = []
    for _ in range(2):
        net, method = small()
        train(net, method, 60)
        runs.append(trained_values(net))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("variant", "compact", "at"),
    [("peft", False, 25), ("peft", True, 50), ("official", False, 41), ("official", True, 40), ("paper", False, 50)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(variant, compact, at):
    net, method = small(variant=variant, compact=compact)
    train(net, method, 60)
    method.finish()

    first_net, first = small(variant=variant, compact=compact)
    optimizer, _ = train(first_net, first, at)
    state = first.state_dict()
    rest = json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)}))
    state = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)} | rest

    second_net, second = small(variant=variant, compact=compact)
    second.load_state_dict(state)
    second_net.load_state_dict(first_net.state_dict())
    again = RowwiseAdamW(second.groups(second_net, 5e-3, 0.0), second.directions())
    again.load_state_dict(optimizer.state_dict())
    train(second_net, second, 60 - at, start=at, optimizer=again)
    second.finish()
    assert all(torch.equal(a, b) for a, b in zip(trained_values(net), trained_values(second_net), strict=True))
    assert second.ranks() == method.ranks()


@pytest.mark.parametrize("total", [20, 100, 600, 5000])
def test_default_phases_scale_with_the_run(total):
    plan = plan_masking(total, None, None, None)
    assert (plan.start, plan.final) == (round(0.13 * total), round(0.47 * total))
    assert plan.interval == max(1, total // 600) and len(plan.rounds()) >= 5


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"init_rank": 2}, "method.init_rank=2 must be above the final rank 2"),
        ({"init_rank": 11}, r"min\(d_in, d_out\) = 10 .* method.init_rank=10"),
        ({"t_initial": 40}, "leave no step for rounds"),
        ({"interval": 41}, r"no multiple between steps 10 and 40.*method.interval=10"),
        ({"interval": 0}, "method.interval=0 must be at least 1"),
        ({"t_final": 0}, "method.t_final=1 or more"),
        ({"t_final": 1, "variant": "official", "interval": 10}, "method.t_final=2 or more"),
        ({"t_final": 1.5}, "method.t_final=1.5"),
        ({"variant": "stock"}, "allowed: peft, official, paper"),
        ({"orth_form": "l1"}, "allowed: norm, squared"),
        ({"beta1": 1.0}, r"method.beta1=1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused_with_what_to_type(knobs, message):
    with pytest.raises(UserError, match=message):
        small(**knobs)


def test_a_run_whose_allocator_was_never_called_fails():
    _, method = small()
    with pytest.raises(MethodFailure, match="the final pattern was never set"):
        method.finish()


def test_no_rank_counts_before_the_pattern_is_final():
    """Between maskings the regrown singular values still compute, so a reading there is of a model above its budget."""
    method = AdaLoRA(AdaLoRAConfig(t_initial=4, t_final=8, interval=4), Budget(2))
    net = method.attach(Net(), ["up", "down"], 40, keep=["head"])
    outcomes = {}

    def look(step):
        try:
            method.check_budget()
            outcomes[step] = True
        except BudgetExceeded:
            outcomes[step] = False

    train(net, method, 40, each=look)
    assert [step for step, within in outcomes.items() if within] == [step for step in range(40) if step >= 32]
