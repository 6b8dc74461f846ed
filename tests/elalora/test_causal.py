"""Causal language models: Llama, Qwen2 and GPT-2 train in the stock Trainer, export and merge."""

from __future__ import annotations

import math

import pytest
import torch
from hf_runs import arguments, ela, moves
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
)

from elalora import Budget, ElaLoRA, ElaLoRAConfig
from elalora.attach import detach, merge
from elalora.export import export_peft
from elalora.hf import adapt

SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.2}
LLAMA_TARGETS = ["q_proj", "v_proj", "down_proj"]
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL), LLAMA_TARGETS),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL), LLAMA_TARGETS),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        ["attn.c_attn", "mlp.c_fc"],
    ),
}


def made(name, dtype=torch.float32):
    cls, config, targets = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config).to(dtype), targets


class Counting(torch.utils.data.Dataset):
    """Sequences of unequal length that count upwards, so there is something to learn."""

    def __len__(self):
        return 8 * 14

    def __getitem__(self, i):
        ids = [(i + j) % 29 + 1 for j in range(5 + i % 5)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in rows]) for k, v in fill.items()}


def train(name, folder, dtype=torch.float32, **more):
    model, targets = made(name, dtype)
    method = ela()
    args = arguments(folder, **{"per_device_train_batch_size": 8} | more)
    trainer = Trainer(model=model, args=args, train_dataset=Counting(), data_collator=collate)
    adapt(trainer, method, targets)
    trainer.train()
    return method, model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_causal_model_trains_exports_and_merges(name, tmp_path):
    from peft import AutoPeftModelForCausalLM

    made(name)[0].save_pretrained(tmp_path / "base")
    method, model = train(name, tmp_path / "run")
    assert any(r.grown for r in method.rounds_seen)
    batch = collate([Counting()[i] for i in range(4)])
    export_peft(method, model, tmp_path / "adapter", task_type="CAUSAL_LM", base=str(tmp_path / "base"))
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        ours, before = model(**batch).logits, made(name)[0].eval()(**batch).logits
        torch.testing.assert_close(reloaded(**batch).logits, ours, rtol=1e-4, atol=1e-5)
        assert (ours - before).abs().max() > 0.01
        merge(model)
        model.save_pretrained(tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(**batch).logits, ours, rtol=1e-4, atol=1e-5)


def test_tokens_of_unequal_micro_batches_weigh_alike(tmp_path):
    one, first = train("llama", tmp_path / "one", torch.float64)
    four, second = train(
        "llama", tmp_path / "four", torch.float64, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert moves(one) == moves(four)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # transformers computes the loss in float32


def test_a_conv1d_layer_comes_back_as_it_was():
    model, targets = made("gpt2")
    batch = collate([Counting()[0]])
    before, kinds = model.eval()(**batch).logits, [type(m) for m in model.modules()]
    ela().attach(model, targets, 30)
    assert torch.allclose(model(**batch).logits, before, atol=1e-6)
    detach(model)
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("name", MODELS)
def test_factors_of_a_bfloat16_model_are_float32(name, tmp_path):
    method, model = train(name, tmp_path, torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    for adapter in method.adapters.values():
        assert {p.dtype for p in adapter.factors()} == {torch.float32}
        assert adapter.E[: adapter.rank].abs().max() > 1e-3


def test_a_pretrained_llama_learns_new_text(shared, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder = shared / "models" / "stories260K-llama"
    if not folder.is_dir():
        pytest.skip("the small Llama is not in ../shared")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "The harbour master counted {} grey boats, wrote the number down and rang the bell {} times."
    rows = [tokenizer(text.format(n, n % 7)) for n in range(120)]
    rows = [{"input_ids": r["input_ids"], "attention_mask": r["attention_mask"]} for r in rows]
    rows = [r | {"labels": list(r["input_ids"])} for r in rows]

    def perplexity(of):
        with torch.no_grad():
            return math.exp(float(of(**collate(rows[96:])).loss))

    before = perplexity(model.eval())
    method = ElaLoRA(ElaLoRAConfig(t_initial=4, t_final=6, interval=4, b=8), Budget(2))
    args = arguments(tmp_path, num_train_epochs=2, lr_scheduler_type="cosine")
    trainer = Trainer(model=model, args=args, train_dataset=rows[:96], data_collator=collate)
    adapt(trainer, method, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    trainer.train()
    after = perplexity(model.eval())
    assert after < 0.5 * before
    assert len(set(method.ranks().values())) > 1
    export_peft(method, model, tmp_path / "adapter", task_type="CAUSAL_LM", base=str(folder))
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert perplexity(reloaded) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("name", ["elalora", "prilora"])
def test_a_seq2seq_trainer_trains_generates_and_counts_no_padding(name, tmp_path):
    """Padding added to inputs and targets changes nothing: losses, weights, decisions and input statistics."""
    from transformers import BartConfig, BartForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments

    from baselines.prilora import PRILoRA, PRILoRAConfig

    config = BartConfig(
        vocab_size=30,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        init_std=0.2,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )

    def padded(extra):
        def made_up(rows):
            batch = collate(rows)
            wide = {"input_ids": 0, "attention_mask": 0, "labels": -100}
            return {k: torch.nn.functional.pad(v, (0, extra), value=wide[k]) for k, v in batch.items()}

        return made_up

    trained = []
    for extra in (0, 5):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BartForConditionalGeneration(config).double()
        method = ela() if name == "elalora" else PRILoRA(PRILoRAConfig(every=4), Budget(2))
        plain = arguments(tmp_path).to_dict()
        chosen = {k: plain[k] for k in ("learning_rate", "warmup_steps", "train_sampling_strategy", "seed", "use_cpu")}
        args = Seq2SeqTrainingArguments(
            str(tmp_path), **chosen, num_train_epochs=1, per_device_train_batch_size=8, save_strategy="no",
            report_to=[], disable_tqdm=True, predict_with_generate=True, generation_max_length=6,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(
            model=model,
            args=args,
            train_dataset=Counting(),
            eval_dataset=[Counting()[i] for i in range(4)],
            data_collator=padded(extra),
        )
        adapt(trainer, method, ["q_proj", "v_proj", "fc1"])
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        trained.append((method, model))
    assert moves(trained[0][0]) == moves(trained[1][0])
    assert all(any(r.grown for r in m.rounds_seen) for m, _ in trained) or name == "prilora"
    for a, b in zip(trained[0][1].parameters(), trained[1][1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
