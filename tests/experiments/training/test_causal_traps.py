"""What is commonly wrong with causal language models: each test shows the naive way fail and ours not."""

from __future__ import annotations

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
TRAPS = {  # what is commonly wrong -> tests that fail on it; docs/causal.md has the list in short
    "prompt and completion encoded apart get other ids than together": (
        "test_ids_are_those_of_the_whole_text_encoded_once",
        "test_a_prompt_that_merges_with_its_completion_is_refused_in_one_line",
    ),
    "a chat template without generation tags masks every token; templates rewrite earlier turns": (
        "test_a_template_without_generation_tags_masks_everything_and_the_prefix_rule_does_not",
        "test_a_chat_template_that_rewrites_earlier_turns_is_refused",
    ),
    "where the padding token is the end token, a mask by id hides every end": (
        "test_the_loss_sees_the_completion_and_its_end_even_where_padding_is_the_end_token",
    ),
    "generation does not stop at the end that was trained": (
        "test_the_end_token_of_training_stops_generation_even_if_the_checkpoint_does_not_know_it",
    ),
    "truncation on the right leaves rows without an answer": (
        "test_too_long_rows_lose_the_left_of_their_prompt_or_are_left_out_and_both_are_counted",
        "test_a_completion_that_does_not_fit_is_never_cut",
    ),
    "a second begin token": (
        "test_the_begin_token_is_there_once_and_survives_a_cut",
        "test_a_chat_ends_at_the_stop_token_of_its_template_and_begins_with_no_second_begin_token",
    ),
    "padding on the right, a checkpoint that samples, positions that count padding": (
        "test_generation_is_that_of_each_prompt_alone_whatever_the_checkpoint_asks_for",
        "test_prompts_are_padded_on_the_left_with_positions_that_do_not_count_padding",
    ),
    "results that depend on the shape of a batch": ("test_evaluated_batches_depend_on_lengths_alone",),
    "packed sequences see their neighbours": ("test_a_packed_row_sees_its_neighbour_so_each_item_is_a_row_of_its_own",),
    "the mean of micro-batches' means; a batch without a label is nan": (
        "test_accumulation_weighs_tokens_and_not_micro_batches",
        "test_two_processes_train_and_read_what_one_does",
        "test_a_batch_without_a_label_has_the_loss_0_and_not_nan",
    ),
    "options of unequal length win or lose by the normalisation": (
        "test_every_normalisation_follows_from_what_is_stored",
        "test_options_score_as_each_does_alone_without_padding",
    ),
    "logits of every position at once": ("test_logits_exist_for_one_chunk_of_labelled_positions_at_a_time",),
    "gradient checkpointing runs hooks twice": (
        "test_layers_do_run_again_and_statistics_do_not_count_it",
        "test_layers_that_run_again_change_no_loss_no_rank_and_no_statistic",
    ),
    "factors in bfloat16; merged bfloat16 weights are another model": (
        "test_factors_of_a_bfloat16_model_are_float32",
        "test_a_small_update_counts_beside_bfloat16_weights_and_vanishes_when_merged_into_them",
    ),
    "quantised weights are nn.Linear to a careless eye": (
        "test_a_quantised_model_trains_in_the_stock_trainer_and_its_checkpoint_loads",
    ),
    "a GGUF file becomes a model that cannot be saved": (
        "test_a_gguf_file_becomes_a_plain_tied_model_with_the_values_of_its_blocks",
    ),
    "the tied output layer is adapted by accident": ("test_a_tied_output_layer_is_never_adapted",),
    "importance by dense gradients": ("test_importance_and_rank_moves_need_no_gradient_of_a_frozen_weight",),
}


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


def test_every_trap_names_a_test_that_exists():
    text = "\n".join(file.read_text(encoding="utf-8") for file in (CHECKOUT / "tests").rglob("test_*.py"))
    named = [name for names in TRAPS.values() for name in names]
    assert len(named) >= 20 and not [name for name in named if f"def {name}(" not in text]
