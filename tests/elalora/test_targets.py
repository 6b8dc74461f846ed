"""Named target sets against the architectures of the installed transformers, at their real depth."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, UserError
from elalora.attach import find_linears, is_conv1d
from elalora.targets import (
    ARCHITECTURES,
    NAMES,
    architecture_of,
    expected_matrices,
    matrices_in,
    patterns_in,
    patterns_of,
)
from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
PAGE, CONF = ROOT / "docs" / "models.md", ROOT / "conf" / "model"


def build(name, layers, width=16, inner=32, heads=2, deeper=0, device="meta"):
    """The architecture with a head; the decoder has `deeper` layers more than the encoder."""
    import transformers as tf

    encoder = {
        "hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": 40,
        "num_hidden_layers": layers, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    bart = {
        "d_model": width, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "vocab_size": 40, "max_position_embeddings": 40,
        "encoder_layers": layers, "decoder_layers": layers + deeper,
    }  # fmt: skip
    t5 = {
        "vocab_size": 40, "d_model": width, "d_kv": width // heads, "d_ff": inner, "num_heads": heads,
        "num_layers": layers, "num_decoder_layers": layers + deeper,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    image = {k: encoder[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers")} | {
        "intermediate_size": inner, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    swin = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, layers - 1],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    keys = {"head_dim": 8, "num_key_value_heads": 1}
    clip = tf.CLIPConfig(vision_config=image, text_config=encoder)

    def sequence(family, **more):
        return getattr(tf, f"{family}ForSequenceClassification")(getattr(tf, f"{family}Config")(**encoder | more))

    made = {
        "bert": lambda: sequence("Bert"),
        "roberta": lambda: sequence("Roberta"),
        "xlm-roberta": lambda: sequence("XLMRoberta"),
        "camembert": lambda: sequence("Camembert"),
        "electra": lambda: sequence("Electra"),
        "deberta-v2": lambda: sequence("DebertaV2"),
        "mpnet": lambda: sequence("MPNet"),
        "modernbert": lambda: sequence("ModernBert", cls_token_id=1, sep_token_id=2),
        "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**bart)),
        "mbart": lambda: tf.MBartForConditionalGeneration(tf.MBartConfig(**bart)),
        "pegasus": lambda: tf.PegasusForConditionalGeneration(tf.PegasusConfig(**bart)),
        "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**bart, decoder_vocab_size=40, pad_token_id=0)),
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**t5, feed_forward_proj="relu")),
        "t5-gated": lambda: tf.T5ForSequenceClassification(tf.T5Config(**t5, feed_forward_proj="gated-gelu")),
        "mt5-gated": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**t5)),
        "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**image)),
        "dinov2": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**image)),
        "dinov2-gated": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**image, use_swiglu_ffn=True)),
        "swin": lambda: tf.SwinForImageClassification(tf.SwinConfig(**swin)),
        "clip": lambda: tf.CLIPForImageClassification(clip),
        "clip_vision_model": lambda: tf.CLIPVisionModel(clip.vision_config),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**encoder)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**encoder, num_key_value_heads=1)),
        "qwen3": lambda: sequence("Qwen3", **keys),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**encoder, num_key_value_heads=1)),
        "gemma": lambda: sequence("Gemma", **keys),
        "gemma2": lambda: sequence("Gemma2", **keys),
        "gemma3_text": lambda: sequence("Gemma3Text", **keys),
        "phi3": lambda: sequence("Phi3"),
        "gpt2": lambda: sequence("GPT2", n_inner=inner),
    }
    with torch.device(device):
        return made[name]()


# the papers' counts: DeBERTa-v3-base 12 layers, BART-base 6 + 6, ViT-B/16 12; MiniLM-L6 6
PAPER = {"deberta-v2": (12, 72), "bart": (6, 96), "vit": (12, 60), "bert": (6, 36), "roberta": (12, 72)}
# in a model of 3 layers (and 4 of the decoder), counted by hand: paper, all, attention, qv
COUNTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2", "mpnet"), (18, 18, 12, 6)),
    "modernbert": (12, 12, 6, 3),  # Wqkv and Wo, Wi and Wo
    **dict.fromkeys(
        ("bart", "mbart", "pegasus", "marian", "t5"), (58, 58, 44, 22)
    ),  # 3 + 4 + 4 attentions of 4, 3 + 4 feed-forward parts of 2
    **dict.fromkeys(("t5-gated", "mt5-gated"), (65, 65, 44, 22)),  # a gate more in each of the 7
    **dict.fromkeys(("vit", "dinov2", "swin", "clip", "clip_vision_model"), (15, 18, 12, 6)),
    "dinov2-gated": (18, 21, 12, 6),
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"), (21, 21, 12, 6)),
    "phi3": (12, 12, 6, 3),  # qkv_proj and o_proj, gate_up_proj and down_proj
    "gpt2": (12, 12, 6, 3),
}
HEADS = ["classifier", "pooler", "lm_head", "bert.pooler", "score", "head", "classification_head"]


@pytest.mark.parametrize(("name", "layers", "count"), [(n, *v) for n, v in PAPER.items()])
def test_the_papers_matrices_are_found_at_the_papers_depth(name, layers, count):
    decoder = layers if name == "bart" else 0
    assert expected_matrices(name, ["paper"], layers, decoder) == count


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_set_matches_as_many_layers_as_it_says(name):
    model = build(name, 3, deeper=1)
    assert architecture_of(model) == name
    for which, count in zip(NAMES, COUNTS[name], strict=True):
        found = find_linears(model, patterns_in(model, [which]), outside=HEADS)
        assert len(found) == matrices_in(model, [which]) == count
    blocks = {
        n for n, m in model.named_modules()
        if (isinstance(m, torch.nn.Linear) or is_conv1d(m)) and re.search(r"\.\d+\.", n) and "downsample" not in n
    }  # fmt: skip
    assert set(find_linears(model, patterns_in(model, ["all"]), outside=HEADS)) == blocks


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"clip_vision_model"}))
def test_every_adapter_of_an_architecture_starts_at_zero_and_gets_a_gradient(name):
    """T5 reads the weight of a feed-forward layer, fused projections split their output: both still see the adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, 2, device="cpu").eval()
    image, ids = {"vit": 16, "dinov2": 16, "swin": 32, "clip": 16}.get(name.removesuffix("-gated")), torch.arange(3, 9)
    inputs = {"pixel_values": torch.rand(2, 3, image, image)} if image else {"input_ids": ids.view(2, 3)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if name == "t5-gated":  # its classifier answers at the end of the text
        inputs = {"input_ids": torch.tensor([[3, 4, 1], [5, 6, 1]])}
    before = model(**inputs).logits
    method = LoRA(LoRAConfig(), Budget(2))
    model = method.attach(model, patterns_in(model, ["all"]), 10, keep=[], seed=0)
    assert len(method.adapters) == matrices_in(model, ["all"])
    after = model(**inputs).logits
    torch.testing.assert_close(after, before)
    (after * torch.linspace(1, 2, after.numel()).view(after.shape)).square().sum().backward()
    assert not [matrix for matrix, adapter in method.adapters.items() if not adapter.B.grad.abs().sum() > 0]


def test_a_set_that_reaches_beyond_the_images_of_clip_is_noticed():
    import transformers as tf

    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    with torch.device("meta"):
        both = tf.CLIPModel(tf.CLIPConfig(vision_config=text | {"image_size": 16, "patch_size": 8}, text_config=text))
    assert len(find_linears(both, patterns_in(both, ["paper"]))) == 2 * matrices_in(both, ["paper"])


# the published shapes: layers, width, width of the feed-forward layers
SHAPES = {
    "minilm": ("bert", 6, 384, 1536), "minilm_hub": ("bert", 6, 384, 1536), "bert_base": ("bert", 12, 768, 3072),
    "roberta_base": ("roberta", 12, 768, 3072), "deberta_v3_base": ("deberta-v2", 12, 768, 3072),
    "deberta_v3_small": ("deberta-v2", 6, 768, 3072), "bart_base": ("bart", 6, 768, 3072),
    "bart_large": ("bart", 12, 1024, 4096), "vit_b16_in21k": ("vit", 12, 768, 3072), "vit_digits": ("vit", 4, 64, 128),
    "modernbert_base": ("modernbert", 22, 768, 1152), "random_encoder": ("bert", 4, 64, 256),
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
