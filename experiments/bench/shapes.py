"""Models and batches at the papers' shapes: MiniLM-L6 with its real weights, the others with random weights.

A step takes as long with random weights as with trained ones. The tiny form of a shape has two narrow layers, so that a
long measurement can be tried before it starts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PER_LAYER = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEBERTA = ["query_proj", "key_proj", "value_proj", *PER_LAYER[3:]]


MOST_ID = 30_000  # of the tokens in a batch, and one more


@dataclass(frozen=True)
class Shape:
    """One architecture."""

    name: str
    targets: list[str]  # patterns of the adapted layers
    matrices: int  # number of layers they match
    head: list[str]  # modules that train whole
    batch: int  # default number of items
    length: int  # default number of tokens, or pixels per side of an image


SHAPES = {
    "minilm": Shape("minilm", PER_LAYER, 36, ["bert.pooler", "classifier"], 32, 32),
    "deberta-v3-base": Shape("deberta-v3-base", DEBERTA, 72, ["pooler", "classifier"], 8, 64),
    "bart-base": Shape("bart-base", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], 96, [], 8, 64),
    "vit-b16": Shape("vit-b16", ["q_proj", "k_proj", "v_proj", "fc1", "fc2"], 60, ["classifier"], 8, 224),
    "smollm2-135m": Shape("smollm2-135m", LLAMA, 210, [], 8, 128),
    "llama-1b": Shape("llama-1b", LLAMA, 112, [], 8, 128),  # the sizes of Llama 3.2 1B
}
DECODERS = ("smollm2-135m", "llama-1b")
NARROW = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
VOCABULARY = {"vocab_size": MOST_ID}
TINY: dict[str, dict[str, Any]] = {
    "deberta-v3-base": NARROW | VOCABULARY,
    "bart-base": VOCABULARY | {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    },
    "vit-b16": NARROW,
    **dict.fromkeys(DECODERS, NARROW | VOCABULARY | {"num_key_value_heads": 1, "head_dim": 32}),
}  # fmt: skip


def build(name: str, tiny: bool = False) -> nn.Module:
    """The model of a shape, in float32 and training mode; MiniLM has no tiny form."""
    import transformers

    tf: Any = transformers  # its config classes accept more than their stubs declare
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    less = TINY.get(name, {}) if tiny else {}
    if name == "minilm":
        from experiments.models.files import embedded_minilm

        model: Any = tf.AutoModelForSequenceClassification.from_pretrained(
            embedded_minilm(), num_labels=2, dtype=torch.float32
        )
    elif name == "deberta-v3-base":
        base = {
            "vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072,
        }  # fmt: skip
        config = tf.DebertaV2Config(
            max_position_embeddings=512, relative_attention=True, position_buckets=256,
            norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], layer_norm_eps=1e-7,
            max_relative_positions=-1, position_biased_input=False, type_vocab_size=0, num_labels=2, **base | less,
        )  # fmt: skip
        model = tf.DebertaV2ForSequenceClassification(config)
    elif name == "bart-base":
        base = {
            "vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12,
        }  # fmt: skip
        model = tf.BartForConditionalGeneration(tf.BartConfig(**base | less))
    elif name in DECODERS:
        base = {
            "smollm2-135m": {
                "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            },
            "llama-1b": {
                "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
            },
        }[name]  # fmt: skip
        model = tf.LlamaForCausalLM(tf.LlamaConfig(tie_word_embeddings=True, use_cache=False, **base | less))
    else:
        model = tf.ViTForImageClassification(tf.ViTConfig(num_labels=10, **less))
    return model.train()


def make_batch(shape: Shape, batch: int, length: int, device: str) -> dict[str, Tensor]:
    """A random batch without padding."""
    generator = torch.Generator().manual_seed(1)
    if shape.name == "vit-b16":
        inputs = {"pixel_values": torch.randn(batch, 3, length, length, generator=generator)}
    else:
        ids = torch.randint(1000, MOST_ID, (batch, length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if shape.name in DECODERS:
        inputs["labels"] = inputs["input_ids"]
    elif shape.name == "bart-base":
        inputs["labels"] = torch.randint(1000, MOST_ID, (batch, max(8, length // 4)), generator=generator)
    else:
        inputs["labels"] = torch.randint(2, (batch,), generator=generator)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def twin(model: nn.Module, shape: Shape) -> nn.Module:
    """A copy that shares the frozen weights but not the head."""
    head = tuple(f"{name}." for name in shape.head)
    memo = {id(p): p for name, p in model.named_parameters() if not name.startswith(head)}
    return copy.deepcopy(model, memo)
