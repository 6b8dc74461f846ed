"""The loss from labelled positions: the value and gradients of the whole, without logits of all positions."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from elalora import Budget, ElaLoRA, ElaLoRAConfig, UserError
from experiments.models.causal_loss import loss_of_labels, use_labelled_positions
from experiments.runs.prepare import checkpoint_layers

SMALL = {"vocab_size": 500, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=500, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
                                         embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3)),
}  # fmt: skip


def made(name):
    cls, config = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config)


def batch(length=40):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 500, (3, length), generator=g)
    mask = (torch.arange(length) < torch.tensor([length, length - 9, length - 20])[:, None]).long()
    labels = torch.where((torch.arange(length) >= 5) & mask.bool(), ids, -100)
    labels[:, 0] = ids[:, 0]  # has no position before it
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradients_are_those_of_the_formula_over_all_positions(name, monkeypatch):
    monkeypatch.setattr("experiments.models.causal_loss.CHUNK", 7)
    given = batch()
    model = made(name).double()
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    chosen = torch.log_softmax(logits[:, :-1], -1).gather(-1, given["labels"][:, 1:, None].clamp_min(0))[..., 0]
    seen = given["labels"][:, 1:] >= 0
    expected = -(chosen * seen).sum() / seen.sum()
    expected.backward()
    other = made(name).double()
    use_labelled_positions(other)
    out = other(**given)
    out.loss.backward()
    assert out.logits is None
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-10)
    for (which, a), (_, b) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10, msg=which)
    unlabelled = {key: value for key, value in given.items() if key != "labels"}
    torch.testing.assert_close(other(**unlabelled).logits, logits)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    given, model = batch(), made("llama").double()
    hidden = model.model(given["input_ids"]).last_hidden_state
    whole = loss_of_labels(hidden, given["labels"], model.lm_head, 10_000)
    torch.testing.assert_close(loss_of_labels(hidden, given["labels"], model.lm_head, chunk), whole, rtol=1e-12, atol=0)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor with a vocabulary dimension that any operation returns, in positions."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == 500:
                self.most = max(self.most, tensor.numel() // 500)
        return out


def most_logits(model, given):
    with Largest() as seen:
        model(**given).loss.backward()
    return seen.most


def test_logits_exist_for_one_chunk_of_labelled_positions_at_a_time(monkeypatch):
    monkeypatch.setattr("experiments.models.causal_loss.CHUNK", 20)
    given, model = batch(), made("llama").requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.requires_grad_(True)
    assert most_logits(model, given) == 3 * 40  # what transformers does
    use_labelled_positions(model)
    assert most_logits(model, given) == 20


def test_a_batch_without_a_label_has_the_loss_0_and_not_nan():
    given, model = batch(), made("llama")
    use_labelled_positions(model)
    loss = model(**given | {"labels": torch.full_like(given["labels"], -100)}).loss
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_model_that_scales_its_logits_in_another_way_is_refused():
    from transformers import CohereConfig, CohereForCausalLM

    model = CohereForCausalLM(CohereConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.0625))
    with pytest.raises(UserError, match="cohere changes the logits of its output layer"):
        use_labelled_positions(model)


def test_layers_that_run_again_change_neither_the_loss_in_chunks_nor_a_gradient(monkeypatch):
    monkeypatch.setattr("experiments.models.causal_loss.CHUNK", 20)
    seen = []
    for again in (False, True):
        model, given = made("llama").train(), batch()
        use_labelled_positions(model)
        method = ElaLoRA(ElaLoRAConfig(), Budget(2))
        method.attach(model, ["q_proj", "down_proj"], 100)
        if again:
            checkpoint_layers(model)
        loss = model(**given).loss
        loss.backward()
        seen.append([loss, *(p.grad for p in method.adapter_parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True)) and len(seen[0]) > 12


def test_beside_bfloat16_weights_the_loss_is_summed_in_float32():
    given, half, whole = batch(), made("llama").bfloat16(), made("llama").bfloat16().float()
    losses = []
    for model in (half, whole):
        use_labelled_positions(model)
        losses.append(model(**given).loss)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-3, atol=0)
