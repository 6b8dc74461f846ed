"""Merging is right or refused, for every kind of layer that can be adapted, and says what rounding loses."""

from __future__ import annotations

import pytest
import torch
from hf_runs import HEAD, TARGETS, bert, items
from nets import Net, batch, train
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, UserError
from elalora.attach import merge


class Noted(nn.Linear):
    """Computes what nn.Linear computes, and counts its calls."""

    def __init__(self, width, out):
        super().__init__(width, out)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Clipped(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-0.1, 0.1))


def trained(change):
    """A trained net with another layer at layers.1.up, its method and its outputs."""
    net = Net()
    net.layers[1].up = change(net.layers[1].up)
    method = LoRA(LoRAConfig(), Budget(2))
    method.attach(net, ["up", "down"], 20, keep=["head"])
    train(net, method, 20, lr=3e-2)
    x, _ = batch(5)
    return net, x, net(x).detach()


def of_class(kind):
    def change(linear):
        layer = kind(linear.in_features, linear.out_features).double()
        layer.load_state_dict(linear.state_dict())
        return layer

    return change


def hooked(linear):
    linear.register_forward_hook(lambda module, inputs, output: output + inputs[0].sum())
    return linear


@pytest.mark.parametrize("change", [of_class(Noted), hooked], ids=["subclass", "hook"])
def test_a_layer_that_is_linear_in_its_weight_keeps_its_kind_and_its_outputs(change):
    net, x, before = trained(change)
    kind = type(net.layers[1].up.base)
    merge(net)
    assert type(net.layers[1].up) is kind
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "change", [of_class(Doubled), of_class(Clipped), weight_norm], ids=["doubled", "clipped", "weight norm"]
)
def test_a_layer_whose_output_does_not_follow_its_weight_is_refused_and_nothing_changes(change):
    net, x, before = trained(change)
    with pytest.raises(UserError, match=r"layers\.1\.up.*export_peft"):
        merge(net)
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
def test_the_loss_by_rounding_is_what_a_count_entry_by_entry_says(kind, capsys):
    model = bert(kind)
    method = LoRA(LoRAConfig(), Budget(2))
    method.attach(model, TARGETS, 10, HEAD)
    torch.manual_seed(0)
    for adapter in method.adapters.values():
        nn.init.normal_(adapter.B, std=2e-3)
    before = {n: a.base.weight.clone() for n, a in method.adapters.items()}
    deltas = {n: a.delta() for n, a in method.adapters.items()}
    lost = merge(model)
    entries = vanished = 0
    errors = updates = 0.0
    for name, delta in deltas.items():
        stored = model.get_submodule(name).weight.double() - before[name].double()
        for want, have in zip(delta.double().flatten().tolist(), stored.flatten().tolist(), strict=True):
            entries += want != 0
            vanished += want != 0 and have == 0
            updates += want**2
            errors += (have - want) ** 2
    assert lost.vanished == pytest.approx(vanished / entries, abs=1e-9)
    assert lost.error == pytest.approx((errors / updates) ** 0.5, rel=1e-2)
    said = capsys.readouterr().out
    if kind == torch.bfloat16:
        assert lost.vanished > 0.01 and f"{lost.vanished:.1%}" in said and "export_peft" in said
    else:
        assert lost.vanished < 0.001 and not said


def quantised(folder, bits):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[quantised]'")
    from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes)).save_pretrained(folder)
    options = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=HEAD)
    return BertForSequenceClassification.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("evaluated", [False, True])
def test_quantised_layers_are_merged_into_a_plain_model_that_saves_and_loads(bits, evaluated, tmp_path):
    model = quantised(tmp_path / "base", bits)
    exact = quantised(tmp_path / "base", bits).dequantize(torch.float32).state_dict()  # by transformers
    method = LoRA(LoRAConfig(), Budget(2))
    method.attach(model, TARGETS, 10, HEAD)
    torch.manual_seed(0)
    for adapter in method.adapters.values():
        nn.init.normal_(adapter.B, std=0.05)
    for name, adapter in method.adapters.items():
        exact[f"{name}.weight"] += adapter.delta()
    sentence = {key: value[None] for key, value in items(1)[0].items() if key != "labels"}
    if evaluated:  # which packs 4-bit weights on some CPUs and rounds their scales to bfloat16
        with torch.no_grad():
            model.eval()(**sentence)
    merge(model)
    assert all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            tensor, exact[name], rtol=1e-2 if evaluated else 1e-6, atol=1e-3 if evaluated else 1e-6
        )
    model.save_pretrained(tmp_path / "merged")
    from transformers import BertForSequenceClassification

    reloaded = BertForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(reloaded(**sentence).logits, model(**sentence).logits, rtol=1e-5, atol=1e-6)
