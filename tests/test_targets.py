"""Named target sets against the architectures of the installed transformers, at their real depth."""

from __future__ import annotations

import pytest
import torch

from elalora import UserError
from elalora.attach import find_linears
from elalora.targets import ARCHITECTURES, NAMES, expected_matrices, patterns_of

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
BART = {
    "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "vocab_size": 40, "max_position_embeddings": 40,
}  # fmt: skip


def build(name, layers):
    import transformers as tf

    encoder = {**SMALL, "num_hidden_layers": layers}
    made = {
        "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**encoder)),
        "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**encoder)),
        "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**encoder)),
        "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**encoder)),
        "bart": lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(**BART, encoder_layers=layers, decoder_layers=layers)
        ),
        "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**encoder, image_size=16, patch_size=8)),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**encoder)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**encoder)),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**encoder, num_key_value_heads=1)),
    }
    with torch.device("meta"):
        return made[name]()


# the papers' counts: DeBERTa-v3-base 12 layers, BART-base 6 + 6, ViT-B/16 12; MiniLM-L6 6
PAPER = {"deberta-v2": (12, 72), "bart": (6, 96), "vit": (12, 60), "bert": (6, 36), "roberta": (12, 72)}
HEADS = ["classifier", "pooler", "lm_head", "bert.pooler"]


@pytest.mark.parametrize(("name", "layers", "count"), [(n, *v) for n, v in PAPER.items()])
def test_the_papers_matrices_are_found_at_the_papers_depth(name, layers, count):
    model = build(name, layers)
    assert model.config.model_type == name
    found = find_linears(model, patterns_of(name, ["paper"]), outside=HEADS)
    decoder = layers if name == "bart" else 0
    assert len(found) == count == expected_matrices(name, ["paper"], layers, decoder)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"gpt2"}))
@pytest.mark.parametrize("which", NAMES)
def test_every_set_matches_as_many_layers_as_it_says(name, which):
    model = build(name, 3)
    found = find_linears(model, patterns_of(name, [which]), outside=HEADS)
    assert len(found) == expected_matrices(name, [which], 3, 3 if name == "bart" else 0)
    if which == "all":  # nothing of a block is left out
        blocks = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layer" in f".{n}"}
        assert set(found) == {n for n in blocks if ".3" not in n}


def test_a_rank_in_deberta_v3_base_costs_what_the_logs_of_the_authors_say():
    import transformers as tf

    with torch.device("meta"):
        model = tf.DebertaV2ForSequenceClassification(
            tf.DebertaV2Config(
                hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, vocab_size=10
            )
        )
    found = find_linears(model, patterns_of("deberta-v2", ["paper"]), outside=["pooler", "classifier"])
    assert sum(m.in_features + m.out_features for m in found.values()) == 165_888


def test_patterns_are_left_as_they_are_and_wrong_sets_are_refused():
    assert patterns_of("bert", ["query", "layer.*.output.dense"]) == ["query", "layer.*.output.dense"]
    assert patterns_of("nobody", ["query"]) == ["query"] and expected_matrices("nobody", ["query"], 3) is None
    with pytest.raises(UserError, match="no named sets for nobody .* patterns"):
        patterns_of("nobody", ["paper"])
    with pytest.raises(UserError, match="mixes a set with patterns"):
        patterns_of("bert", ["paper", "query"])
