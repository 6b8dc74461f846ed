"""Named target sets against the architectures of the installed transformers, at their real depth."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from elalora import UserError
from elalora.attach import find_linears
from elalora.targets import ARCHITECTURES, NAMES, expected_matrices, patterns_of
from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
PAGE, CONF = ROOT / "docs" / "models.md", ROOT / "conf" / "model"


def build(name, layers, width=16, inner=32, heads=2):
    import transformers as tf

    encoder = {
        "hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": 40,
        "num_hidden_layers": layers,
    }  # fmt: skip
    bart = {
        "d_model": width, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "vocab_size": 40, "max_position_embeddings": 40,
    }  # fmt: skip
    made = {
        "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**encoder)),
        "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**encoder)),
        "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**encoder)),
        "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**encoder)),
        "bart": lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(**bart, encoder_layers=layers, decoder_layers=layers)
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


# the published shapes: layers, width, width of the feed-forward layers
SHAPES = {
    "minilm": ("bert", 6, 384, 1536), "minilm_hub": ("bert", 6, 384, 1536), "bert_base": ("bert", 12, 768, 3072),
    "roberta_base": ("roberta", 12, 768, 3072), "deberta_v3_base": ("deberta-v2", 12, 768, 3072),
    "deberta_v3_small": ("deberta-v2", 6, 768, 3072), "bart_base": ("bart", 6, 768, 3072),
    "bart_large": ("bart", 12, 1024, 4096), "vit_b16_in21k": ("vit", 12, 768, 3072), "vit_digits": ("vit", 4, 64, 128),
}  # fmt: skip


def table_of_models():
    """docs/models.md: matrices and cost of a rank by the name of the model."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: tuple(int(v.replace(",", "")) for v in values) for name, *values in rows}


@pytest.mark.parametrize("name", SHAPES)
def test_matrices_and_costs_of_the_page_are_those_of_the_architecture(name):
    kind, layers, width, inner = SHAPES[name]
    model = build(name=kind, layers=layers, width=width, inner=inner, heads=4)
    found = find_linears(model, patterns_of(kind, ["paper"]), outside=HEADS)
    assert table_of_models()[name] == (len(found), sum(m.in_features + m.out_features for m in found.values()))
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert settings.get("matrices", len(found)) == len(found)


def test_the_page_has_every_model_and_deberta_costs_what_the_logs_of_the_authors_say():
    assert set(table_of_models()) == {f.stem for f in CONF.glob("*.yaml")} - {"local"}
    assert table_of_models()["deberta_v3_base"] == (72, 165_888)


def test_patterns_are_left_as_they_are_and_wrong_sets_are_refused():
    assert patterns_of("bert", ["query", "layer.*.output.dense"]) == ["query", "layer.*.output.dense"]
    assert patterns_of("nobody", ["query"]) == ["query"] and expected_matrices("nobody", ["query"], 3) is None
    with pytest.raises(UserError, match="nobody has no named sets .* patterns"):
        patterns_of("nobody", ["paper"])
    with pytest.raises(UserError, match=r"'papre' matches no linear layer; .*named set \(paper, all, attention, qv\)"):
        find_linears(build("bert", 1), patterns_of("bert", ["papre"]))
    with pytest.raises(UserError, match="mixes a set with patterns"):
        patterns_of("bert", ["paper", "query"])
