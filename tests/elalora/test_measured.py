"""Ranks that a method takes from training batches before the first step."""

from __future__ import annotations

import pytest
import torch
from nets import Net, batch, kwargs, train

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, MethodFailure, UserError
from elalora.measured import MeasuredRanks


class Given(MeasuredRanks):
    """Takes ranks in proportion to `wishes`, and notes what it saw."""

    name = title = "given"
    Config = LoRAConfig
    wishes: dict[str, float] = {}

    def measure(self, batches):
        self.read = [next(batches) for _ in range(2)]
        self.clean = not any(hasattr(m, "directions") for m in self.model.modules()) and not self.model.training
        self.start_scores = self.wishes or dict.fromkeys(self.adapters, 1.0)
        return self.allocate(self.start_scores)


def build(budget=None, wishes=None, seed=3):
    net, method = Net(), Given(LoRAConfig(), budget or Budget(3))
    method.wishes = wishes or {}
    method.attach(net, ["up", "down"], 20, keep=["head"], seed=seed)
    method.prepare(kwargs(*batch(step), like=net.head.weight) for step in range(20))
    return net, method


def uneven():
    return {f"layers.{i}.{kind}": float(1 + 3 * i + (kind == "up")) for i in range(3) for kind in ("up", "down")}


def test_equal_ranks_are_lora_of_the_same_seed_bit_for_bit():
    net, method = build()
    plain, lora = Net(), LoRA(LoRAConfig(), Budget(3))
    lora.attach(plain, ["up", "down"], 20, keep=["head"], seed=3)
    train(net, method, 20)
    train(plain, lora, 20)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


def test_it_measures_the_pretrained_model_in_evaluation_mode_and_trains_on():
    net, method = build(wishes=uneven())
    assert method.clean and net.training and len(method.read) == 2
    assert method.ranks() == {"layers.0.up": 1, "layers.0.down": 1, "layers.1.up": 3, "layers.1.down": 3,
                              "layers.2.up": 5, "layers.2.down": 5}  # fmt: skip
    assert [a.A.shape[0] for a in method.adapters.values()] == list(method.ranks().values())  # no slot is wasted


def test_ranks_that_were_found_before_need_no_batch():
    _, method = build(wishes=uneven())
    again = Given(LoRAConfig(), Budget(3))
    again.attach(Net(), ["up", "down"], 20, keep=["head"], seed=3)
    again.prepare(iter(()), method.ranks())
    assert again.ranks() == method.ranks() and not again.batches_wanted


@pytest.mark.parametrize("params", [150, 333, 500, 1000])
def test_a_parameter_budget_is_used_up_to_the_price_of_one_rank(params):
    _, method = build(Budget(params=params), uneven())
    assert params - 24 < method.count().params <= params


def test_training_without_the_pass_is_refused():
    method = Given(LoRAConfig(), Budget(3))
    net = method.attach(Net(), ["up", "down"], 20, keep=["head"])
    with pytest.raises(MethodFailure, match=r"prepare\(batches\) was not called"):
        method.groups(net, 1e-3, 0.0)
    with pytest.raises(UserError, match="cannot start from another run's adapter"):
        method.start_from({})
