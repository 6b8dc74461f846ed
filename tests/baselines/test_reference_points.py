"""Full fine-tuning, head only and BitFit: what trains, against plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Net, batch, train
from torch import nn

from baselines.reference_points import BitFit, FullFineTuning, HeadOnly, NoSettings
from elalora import RowwiseAdamW, UserError

CLASSES = {"full": (FullFineTuning, NoSettings), "head": (HeadOnly, NoSettings), "bitfit": (BitFit, NoSettings)}


def make(name, net, steps=30, keep=("head",)):
    cls, config = CLASSES[name]
    method = cls(config())
    assert method.attach(net, ["up"], steps, keep=list(keep)) is net
    return method


EXPECTED = {
    "full": lambda name: True,
    "head": lambda name: name.startswith("head."),
    "bitfit": lambda name: name.startswith("head.") or name.endswith(".bias"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_exactly_the_named_parameters_train_and_equal_plain_adamw(name):
    net, steps, lr = Net(), 30, 1e-2
    twin = copy.deepcopy(net)
    start = copy.deepcopy(net.state_dict())
    method = make(name, net, steps)
    train(net, method, steps, lr=lr, weight_decay=0.1, warmup=3, clip=1.0)
    method.finish()

    named = {n: p for n, p in twin.named_parameters() if EXPECTED[name](n)}
    for n, p in twin.named_parameters():
        p.requires_grad_(n in named)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 3 if t < 3 else (steps - t) / (steps - 3))
    for step in range(steps):
        x, y = batch(step)
        nn.functional.cross_entropy(twin(x), y).backward()
        nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p, twin.get_parameter(n), rtol=1e-9, atol=1e-11)
        assert torch.equal(p, start[n]) != EXPECTED[name](n)


@pytest.mark.parametrize("name", CLASSES)
def test_there_is_no_budget_no_rank_and_no_lora_form(name):
    method = make(name, Net())
    c = method.capabilities
    assert (c.budget, c.ranked, c.adaptive, c.exports_lora) == ("none", False, False, False)
    assert method.ranks() == {} and method.count().params == 0 and method.directions() == {}
    with pytest.raises(UserError, match="cannot be written as fixed-rank LoRA"):
        method.lora_factors()


@pytest.mark.parametrize("name", CLASSES)
def test_a_head_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match="model.head="):
        make(name, Net(), keep=["classifier"])


def test_bitfit_counts_every_bias_of_a_bert_and_no_weight():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, num_labels=2
    )
    model = BertForSequenceClassification(config)
    BitFit(NoSettings()).attach(model, [], 10, keep=["classifier"])
    backbone = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.startswith("classifier")]
    # a layer: 4 attention biases and 2 LayerNorm biases of 16, 24 and 16 in the FFN; embedding norm and pooler 16 each
    assert sum(p.numel() for _, p in backbone) == 3 * (4 * 16 + 2 * 16 + 24 + 16) + 16 + 16
    assert all(n.endswith("bias") for n, _ in backbone)


def test_bitfit_without_a_bias_is_refused_before_anything_is_frozen():
    net = nn.Sequential(nn.Linear(3, 3, bias=False))
    with pytest.raises(UserError, match="the model has none"):
        BitFit(NoSettings()).attach(net, [], 10)
    assert all(p.requires_grad for p in net.parameters())


def test_full_fine_tuning_moves_every_tensor_in_one_optimizer():
    net = Net()
    method = make("full", net)
    optimizer = RowwiseAdamW(method.groups(net, 1e-3, 0.1), method.directions())
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in net.parameters()
    )
