"""A causal model in 4-bit or 8-bit trains in the stock Trainer, saves an adapter and loads again; on the CPU."""

from __future__ import annotations

import pytest
import torch
from hf_runs import arguments, ela
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, Trainer

from elalora import UserError
from elalora.hf import adapt, prepare_quantised

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[quantised]'")

IDS = torch.arange(12)
DATA = [{"input_ids": (IDS + i) % 60, "labels": (IDS + i) % 60} for i in range(56)]


def config(bits):
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(**{"load_in_8bit": True} if bits == 8 else nf4)


def base(folder, bits, **more):
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=16, **shape, **more)).save_pretrained(
            folder
        )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config(bits), dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=DATA[3]["input_ids"][None]).logits


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_trains_in_the_stock_trainer_and_its_checkpoint_loads(bits, tmp_path):
    model = base(tmp_path / "base", bits)
    with pytest.raises(ValueError, match="purely quantized"):  # why prepare_quantised exists
        Trainer(model=model, args=arguments(tmp_path), train_dataset=DATA)
    before = logits(model)
    args = arguments(tmp_path / "run", learning_rate=2e-2, warmup_steps=0, save_strategy="steps", save_steps=7)
    trainer = Trainer(model=prepare_quantised(model), args=args, train_dataset=DATA)
    method = adapt(trainer, ela(t_initial=1, t_final=2, interval=2), ["q_proj", "v_proj", "down_proj"])
    trainer.train()
    assert any(r.grown for r in method.rounds_seen)
    assert all(a.A.dtype == torch.float32 for a in method.adapters.values())
    trained = logits(model)
    assert (trained - before).abs().max() > 0.05
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-7", quantization_config=config(bits))
    torch.testing.assert_close(logits(again), trained, rtol=1e-2, atol=1e-2)


def test_evaluation_between_steps_changes_no_gradient(tmp_path):
    model = prepare_quantised(base(tmp_path / "base", 4))
    method = ela(t_initial=1, t_final=2, interval=2)
    method.attach(model, ["q_proj"], 7)
    for adapter in method.adapters.values():
        torch.nn.init.normal_(adapter.E)

    def gradient():
        model.zero_grad()
        batch = {key: value[None] for key, value in DATA[0].items()}
        model.train()(**batch).loss.backward()
        return next(iter(method.adapters.values())).A.grad.clone()

    first = gradient()
    logits(model)
    assert first.any() and torch.equal(gradient(), first)


def test_forgetting_adapt_trains_nothing(tmp_path):
    model = prepare_quantised(base(tmp_path / "base", 8))
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=DATA)
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.train()


def test_a_quantised_head_is_not_trained_whole(tmp_path):
    model = base(tmp_path / "base", 8)
    with pytest.raises(UserError, match=r"llm_int8_skip_modules=\['model.layers.0.mlp'\]"):
        ela().attach(model, ["q_proj"], 14, ["model.layers.0.mlp"])


def test_a_model_in_full_precision_needs_no_preparation(tmp_path):
    with pytest.raises(UserError, match="not quantised"):
        prepare_quantised(torch.nn.Linear(2, 2))
