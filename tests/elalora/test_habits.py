"""What users bring: a PeftModel, tied heads, fused experts, torch.compile."""

from __future__ import annotations

import pytest
import torch
from hf_runs import HEAD, TARGETS, arguments, bert, ela, items
from nets import Net, batch, train
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer

from baselines.registry import method_class
from elalora import Budget, UserError
from elalora.attach import detach, unadaptable
from elalora.hf import adapt

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def build(name):
    cls = method_class(name)
    return cls(cls.Config(), None if cls.capabilities.budget == "none" else Budget(2))


@pytest.mark.parametrize("name", ["lora", "elalora", "full", "head", "peft"])
@pytest.mark.parametrize("kind", ["get_peft_model", "add_adapter"])
def test_a_model_with_peft_adapters_is_refused_and_stays_as_it_is(name, kind):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["query"], r=2)
    model = bert(torch.float32)
    if kind == "add_adapter":
        model.add_adapter(config)
    else:
        model = get_peft_model(model, config)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(UserError, match=r"merge_and_unload\(\)"):
        build(name).attach(model, TARGETS, 100, ["classifier"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


def test_a_model_is_adapted_once_until_it_is_detached():
    net = Net()
    build("lora").attach(net, ["up"], 100)
    with pytest.raises(UserError, match="adapted already"):
        build("lora").attach(net, ["*.base"], 100)
    build("lora").attach(detach(net), ["up"], 100)


@pytest.mark.parametrize("name", ["lora", "head"])
def test_a_tied_head_is_not_kept_alone(name):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"'lm_head' shares its weight with 'model\.embed_tokens'"):
        build(name).attach(model, ["q_proj"], 100, ["lm_head"])
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    build(name).attach(model, ["q_proj"], 100, ["lm_head", "model.embed_tokens"])
    assert model.lm_head.weight.requires_grad


def test_an_untied_head_is_kept():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    build("lora").attach(model, ["q_proj"], 100, ["lm_head"])
    assert model.lm_head.weight.requires_grad and not model.model.embed_tokens.weight.requires_grad


def test_fused_experts_are_named_with_their_share_of_the_parameters(tmp_path, capsys):
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))
    fused = sum(p.numel() for n, p in model.named_parameters() if "experts" in n or "gate.weight" in n)
    share, names = unadaptable(model)
    assert share == pytest.approx(fused / sum(p.numel() for p in model.parameters()))
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 112
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=data)
    adapt(trainer, ela(), ["self_attn.*"])
    said = capsys.readouterr().out
    assert f"{share:.0%} of the model's parameters cannot be adapted" in said and "layers.*.mlp.experts" in said
    trainer = Trainer(model=bert(), args=arguments(tmp_path), train_dataset=items(112))
    adapt(trainer, ela(), TARGETS, HEAD)
    assert not capsys.readouterr().out


def test_a_round_does_not_compile_the_model_again():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    net, method = Net(), ela(t_initial=2, interval=2)
    method.attach(net, ["up", "down"], 14, ["head"], seed=0)
    counter, ranks = CompileCounter(), set()
    compiled = torch.compile(net, backend=counter)
    reference, other = Net(), ela(t_initial=2, interval=2)
    other.attach(reference, ["up", "down"], 14, ["head"], seed=0)
    train(compiled, method, 14, each=lambda step: ranks.add(tuple(method.ranks().values())))
    train(reference, other, 14)
    assert len(ranks) > 2 and method.ranks() == other.ranks()
    assert counter.frame_count == 1
    x, _ = batch(3)
    torch.testing.assert_close(compiled(x), reference(x), rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


@pytest.mark.parametrize(("rate", "learned"), [(1e-9, False), (0.05, True)])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_classifier_that_did_not_learn_is_said_without_the_penalty(rate, learned, accumulated, tmp_path, capsys):
    """AdaLoRA's penalty of 1 alone would lift every loss above that of a constant answer."""
    cls = method_class("adalora")
    method = cls(cls.Config(orth_weight=1.0), Budget(2))
    easy = [{**item, "labels": item["input_ids"].sum() * 0 + i % 2} for i, item in enumerate(items(2))] * 200
    more = {"learning_rate": rate, "max_grad_norm": 0, "weight_decay": 0, "gradient_accumulation_steps": accumulated}
    trainer = Trainer(bert(torch.float32), arguments(tmp_path, **more), train_dataset=easy)
    adapt(trainer, method, TARGETS, keep=HEAD)
    output = trainer.train()
    assert output.metrics["did_not_learn"] is not learned
    assert ("AdaLoRA did not learn" in capsys.readouterr().out) is not learned
