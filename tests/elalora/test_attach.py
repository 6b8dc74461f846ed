"""Attaching, detaching and merging; patterns and what they refuse."""

from __future__ import annotations

import pytest
import torch
from nets import Net, batch, train
from torch import nn

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, ElaLoRA, ElaLoRAConfig, UserError
from elalora.attach import detach, find_linears, merge
from elalora.budget import Count
from elalora.names import matches, place


def lora(net, rank=3, targets=("up", "down"), **knobs):
    method = LoRA(LoRAConfig(**knobs), Budget(rank))
    method.attach(net, list(targets), 10, keep=["head"])
    return method


@pytest.mark.parametrize(
    ("name", "pattern", "answer"),
    [
        ("bert.encoder.layer.0.attention.self.query", "query", True),
        ("bert.encoder.layer.0.attention.self.query", "self.query", True),
        ("bert.encoder.layer.0.output.dense", "layer.*.output.dense", True),
        ("bert.encoder.layer.0.attention.output.dense", "layer.*.output.dense", False),
        ("bert.encoder.layer.0.attention.output.dense", "attention.output.dense", True),
        ("deberta.layer.0.query_proj", "query", False),
        ("deberta.layer.0.query_proj", "query_*", True),
        ("query", "self.query", False),
    ],
)
def test_patterns_match_whole_components_from_the_end(name, pattern, answer):
    assert matches(name, pattern) is answer


def test_detaching_leaves_the_model_as_it_was():
    net = Net()
    x, _ = batch(0)
    before, modules = net(x), [type(m) for m in net.modules()]
    lora(net)
    assert [type(m) for m in net.modules()] != modules
    detach(net)
    assert [type(m) for m in net.modules()] == modules
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("make", [lambda n: lora(n), lambda n: _ela(n)])
def test_merging_computes_the_same_with_plain_layers(make):
    net = Net()
    weights = {n: p.clone() for n, p in net.named_parameters()}
    method = make(net)
    train(net, method, 10)
    x, _ = batch(5)
    adapted = net(x).detach()
    bases = {n: a.base.weight for n, a in method.adapters.items()}
    merge(net)
    assert all(isinstance(m, nn.Linear) for n, m in net.named_modules() if n in bases)
    torch.testing.assert_close(net(x), adapted, rtol=1e-12, atol=1e-12)
    for name, weight in bases.items():  # the frozen weight itself is never added to
        assert torch.equal(weight, weights[f"{name}.weight"])


def _ela(net):
    method = ElaLoRA(ElaLoRAConfig(t_initial=2, t_final=2, interval=2, b=2), Budget(3))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    return method


def test_only_adapters_and_the_kept_modules_train():
    net = Net()
    method = lora(net)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    own = {f"{n}.{f}" for n in method.adapters for f in "AB"}
    assert trained == own | {"head.weight", "head.bias"}


def test_cost_follows_the_rank_and_counts_are_those_of_the_formula():
    net = Net()
    method = lora(net, rank=3)
    assert method.count() == Count(18, 18 * (10 + 14))
    method = _ela(Net())
    assert method.count() == Count(18, 18 * (10 + 14 + 1))


def test_inputs_of_any_leading_shape():
    net = Net()
    lora(net)
    x, _ = batch(0)
    flat = net(x)
    assert torch.allclose(net(x.view(4, 4, -1)).view(16, -1), flat)
    assert net(x[0]).shape == (3,)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.free = nn.Linear(4, 4)
        self.out.weight = self.table.weight


def test_no_target_at_all_is_refused():
    with pytest.raises(UserError, match="model.targets is empty; candidates: head"):
        find_linears(Net(), [])


def test_an_adapter_still_looks_like_its_layer():
    net = Net()
    method = lora(net)
    adapter = method.adapters["layers.0.up"]
    assert adapter.weight is adapter.base.weight and adapter.bias is adapter.base.bias
    assert (adapter.in_features, adapter.out_features) == (10, 14)


def test_a_pattern_without_a_match_lists_the_candidates():
    with pytest.raises(
        UserError, match=r"'query' matches no linear layer; candidates: head, layers.\*.down, layers.\*.up"
    ):
        find_linears(Net(), ["query"])


def test_a_module_that_is_no_linear_layer_is_refused():
    with pytest.raises(UserError, match="'table' matches a Embedding, but only nn.Linear"):
        find_linears(Odd(), ["table"])


def test_hugging_face_conv1d_is_found_as_the_linear_layer_it_is():
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential()
    net.add_module("c_attn", Conv1D(6, 4))
    found = find_linears(net, ["c_attn"])["c_attn"]
    assert (found.in_features, found.out_features) == (4, 6)
    x = torch.randn(3, 4)
    torch.testing.assert_close(found(x), net(x))
    assert isinstance(net.c_attn, Conv1D)


def test_a_layer_that_multi_head_attention_never_calls_is_refused():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(UserError, match="'self_attn.out_proj' belongs to an nn.MultiheadAttention, which reads"):
        find_linears(model, ["out_proj"])


@pytest.mark.parametrize("padded", [False, True])
def test_evaluation_of_torch_s_own_encoder_calls_the_adapters(padded):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = padded
    with torch.no_grad():
        frozen = model(x, src_key_padding_mask=mask)
    method = LoRA(LoRAConfig(), Budget(2))
    method.attach(model, ["linear1", "linear2"], 10)
    for adapter in method.adapters.values():
        adapter.B.data.normal_()
    expected = model(x, src_key_padding_mask=mask)  # gradients are on: torch calls every layer
    with torch.no_grad():
        found = model(x, src_key_padding_mask=mask)
    assert not torch.allclose(found[~mask], frozen[~mask], atol=1e-2)
    torch.testing.assert_close(found[~mask], expected[~mask])


def test_a_tied_weight_is_refused():
    with pytest.raises(UserError, match="shares its weight with 'table.weight'"):
        find_linears(Odd(), ["out"])


def test_the_head_is_never_adapted():
    assert set(find_linears(Net(), ["*"], outside=["head"])) == {
        f"layers.{i}.{k}" for i in range(3) for k in ("up", "down")
    }


def test_an_unknown_head_is_refused():
    with pytest.raises(UserError, match="'classifier' is not a module"):
        LoRA(LoRAConfig(), Budget(2)).attach(Net(), ["up"], 10, keep=["classifier"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rank": 0}, "budget.rank=0 is not a positive integer"),
        ({"rank": -2}, "not a positive integer"),
        ({"rank": 2.5}, "not a positive integer"),
        ({"rank": True}, "not a positive integer"),
        ({}, "either a rank or a number of parameters"),
        ({"rank": 2, "params": 10}, "either a rank or a number of parameters"),
        ({"params": 0}, "budget.params=0"),
    ],
)
def test_a_budget_that_is_none_is_refused(given, says):
    with pytest.raises(UserError, match=says):
        Budget(**given)


def test_a_parameter_budget_below_rank_one_is_refused():
    with pytest.raises(UserError, match="does not pay for rank 1 in all 2 matrices"):
        Budget(params=10).mean_rank([20, 30])
    assert Budget(params=149).mean_rank([20, 30]) == 2


def test_places_of_known_architectures():
    assert place("bert.encoder.layer.3.attention.self.query") == (3, "attention.self.query")
    assert place("model.decoder.layers.0.fc1") == (0, "decoder fc1")
    assert place("model.encoder.layers.5.self_attn.q_proj") == (5, "encoder self_attn.q_proj")
    assert place("layers.2.up") == (2, "up")
    assert place("head") == (0, "head")
