"""Layouts by a rule in the methods with fixed ranks, on a network whose matrices cost 26 and 30 parameters a rank."""

from __future__ import annotations

import json

import pytest
import torch
from nets import Net, train

from baselines.lora import LoRA, LoRAConfig
from baselines.svd_lora import SVDLoRA, SVDLoRAConfig
from elalora import Budget, UserError
from elalora.resolve import RunSize, canonical, identifying

BOTH = pytest.mark.parametrize(("cls", "config"), [(LoRA, LoRAConfig), (SVDLoRA, SVDLoRAConfig)])


def attached(cls, config, budget=None, pattern=None):
    method = cls(config, budget or Budget(3))
    method.pattern = pattern
    net = Net()
    method.attach(net, ["up", "down"], 40, keep=["head"], seed=0)
    return method, net


def names(method, kind):
    return [rank for name, rank in method.ranks().items() if name.endswith(kind)]


@BOTH
def test_a_rule_moves_ranks_between_matrices_and_keeps_their_sum_and_scale(cls, config):
    method, _ = attached(cls, config(pattern="up:2"))
    assert names(method, "up") == [4, 4, 4] and names(method, "down") == [2, 2, 2]
    assert {adapter.scale for adapter in method.adapters.values()} == {16 / 3}
    method.check_budget()


@BOTH
def test_matrices_of_rank_0_stay_as_they_are_while_the_others_train(cls, config):
    method, net = attached(cls, config(pattern="up:1 rest:0"))
    assert names(method, "down") == [0, 0, 0] and names(method, "up") == [6, 6, 6]
    train(net, method, 20)
    factors = method.lora_factors()
    for name, (a, b) in factors.items():
        assert (b @ a).abs().max() > 0 if name.endswith("up") else a.shape[0] == 0
    method.finish()


@BOTH
def test_a_budget_in_parameters_is_used_as_far_as_whole_ranks_go(cls, config):
    uniform, _ = attached(cls, config(), Budget(params=600))
    method, _ = attached(cls, config(pattern="up:3"), Budget(params=600))
    costs = {name: adapter.cost for name, adapter in method.adapters.items()}
    assert 600 - max(costs.values()) < method.count().params <= 600
    assert names(method, "up") > names(method, "down") and uniform.mean_rank == method.mean_rank


@BOTH
def test_another_runs_ranks_are_inverted_within_their_own_sum(cls, config):
    given = {f"layers.{i}.{kind}": rank for i in range(3) for kind, rank in (("up", 4), ("down", 1))}
    method, _ = attached(cls, config(ranks_from="somewhere", pattern="inverted"), pattern=given)
    assert names(method, "up") == [1, 1, 1] and names(method, "down") == [4, 4, 4]
    shuffled, _ = attached(cls, config(pattern="layer0:5", shuffle=True))
    plain, _ = attached(cls, config(pattern="layer0:5"))
    for kind in ("up", "down"):
        assert sorted(names(shuffled, kind)) == sorted(names(plain, kind))


@BOTH
def test_what_a_rule_cannot_meet_is_refused_before_the_model_is_changed(cls, config):
    for rule, line in (("query:2", "names none of the 6"), ("layer0:1 rest:0", r"above the largest it can have")):
        net = Net()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(UserError, match=line):
            cls(config(pattern=rule), Budget(10)).attach(net, ["up", "down"], 40, keep=["head"])
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(UserError, match=r"method\.pattern=\.\.\."):
        config(shuffle=True)


@BOTH
def test_the_identity_has_the_rule_in_one_spelling_and_nothing_where_there_is_none(cls, config, tmp_path):
    size = RunSize(100, 4, 24)
    plain = identifying(canonical(config(), size))
    assert "pattern" not in plain
    assert identifying(canonical(config(pattern="up:1.0"), size)) == plain
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({"up": 3, "down": 1.0}))
    rule = identifying(canonical(config(pattern=str(path)), size))
    assert rule["pattern"] == "down:1 up:3 rest:0" == config(pattern=rule["pattern"]).pattern
    path.write_text(json.dumps({"up": 2}))
    assert identifying(canonical(config(pattern=str(path)), size)) != rule


def test_labels_name_the_layout_and_a_long_rule_by_its_digest():
    assert LoRA(LoRAConfig(pattern="ffn:3"), Budget(4)).label == "LoRA (ffn:3)"
    assert SVDLoRA(SVDLoRAConfig(ranks_from="elalora", shuffle=True), Budget(4)).label == "SVD-LoRA transplant shuffled"
    assert (
        SVDLoRA(SVDLoRAConfig(ranks_from="x", pattern="inverted"), Budget(4)).label == "SVD-LoRA transplant (inverted)"
    )
    long = " ".join(f"layer{i}:{i + 2}" for i in range(12))
    assert len(LoRA(LoRAConfig(pattern=long), Budget(4)).label) < 30
