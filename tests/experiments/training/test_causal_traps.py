"""What is commonly wrong with causal language models: each test shows the naive way fail and ours not."""

from __future__ import annotations

import re

import torch
from tiny_causal import causal_task, reviews, tiny_llama, tiny_tokenizer

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, ElaLoRA, ElaLoRAConfig
from elalora.attach import merge
from experiments.data.batches import eval_batches
from experiments.data.items import make_items
from experiments.data.text_items import IGNORED
from experiments.runtime.places import CHECKOUT

TARGETS = ["q_proj", "down_proj"]
PAGE = CHECKOUT / "docs" / "causal.md"


def logits(model, **inputs):
    with torch.inference_mode():
        return model(**inputs).logits


def test_a_packed_row_sees_its_neighbour_so_each_item_is_a_row_of_its_own(tmp_path):
    """Restarted positions alone isolate nothing where a mask is given, or a cache is made."""
    model, items = tiny_llama(), make_items(reviews(), tiny_tokenizer(), causal_task(), str(tmp_path))
    batch = items.batch([0, 1])
    first, second = (batch["input_ids"][i, : items.lengths[i]][None] for i in (0, 1))
    alone = logits(model, input_ids=second)[0]
    packed = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(first.shape[1]), torch.arange(second.shape[1])])[None]
    naive = logits(model, input_ids=packed, position_ids=positions, attention_mask=torch.ones_like(packed))
    assert (naive[0, first.shape[1] :] - alone).abs().max() > 0.01
    ours = logits(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(ours[1, : second.shape[1]], alone, rtol=1e-4, atol=1e-4)


def test_a_template_without_generation_tags_masks_everything_and_the_prefix_rule_does_not(tmp_path):
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "Review: bad\nSentiment:"}, {"role": "assistant", "content": " negative"}]
    naive = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    assert not any(naive["assistant_masks"])  # a model would be trained on nothing
    labels = make_items(reviews(), tokenizer, causal_task(chat=True), str(tmp_path)).batch([1])["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORED]).strip() == "negative<|im_end|>"


def test_a_small_update_counts_beside_bfloat16_weights_and_vanishes_when_merged_into_them():
    """Eight bits of mantissa: what a run evaluates is therefore never the merged model."""
    model = tiny_llama().to(torch.bfloat16)
    inputs = {"input_ids": torch.arange(4, 24)[None]}
    before, stored = logits(model, **inputs), model.model.layers[0].mlp.down_proj.weight.clone()
    LoRA(LoRAConfig(alpha=2.0), Budget(2)).attach(model, TARGETS, 10, seed=0)
    with torch.no_grad():
        for factor in (p for p in model.parameters() if p.requires_grad and not p.any()):  # LoRA starts with B = 0
            factor.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(logits(model, **inputs), before)
    merge(model)
    same = (model.model.layers[0].mlp.down_proj.weight == stored).float().mean()
    assert same > 0.5  # most of the update is rounded away


def test_importance_and_rank_moves_need_no_gradient_of_a_frozen_weight():
    """Such a gradient would cost as much memory as the weight, for every matrix."""
    model = tiny_llama()
    method = ElaLoRA(ElaLoRAConfig(t_initial=2, t_final=3, interval=2, b=4), Budget(3))
    method.attach(model, TARGETS, 12, seed=0)
    inputs = torch.arange(4, 24)[None]
    model(input_ids=inputs, labels=inputs).loss.backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_evaluated_batches_depend_on_lengths_alone():
    """On a GPU a bfloat16 result can depend on the shape of its batch, so arms must see the same ones."""
    lengths = [7, 3, 9, 3, 5, 8]
    assert eval_batches(lengths, 2) == eval_batches(list(lengths), 2) == [[2, 5], [0, 4], [1, 3]]


def rows_of_the_page() -> list[str]:
    table = PAGE.read_text(encoding="utf-8").partition("## What is commonly wrong")[2]
    return re.findall(r"`(test_\w+)`", table)


def test_every_trap_of_the_page_names_a_test_that_exists():
    text = "\n".join(file.read_text(encoding="utf-8") for file in (CHECKOUT / "tests").rglob("test_*.py"))
    named = rows_of_the_page()
    assert len(named) >= 20 and not [name for name in named if f"def {name}(" not in text]
