"""Models and batches at the papers' shapes: MiniLM-L6 with its real weights, the others with random weights.

A step takes as long with random weights as with trained ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PER_LAYER = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]
DEBERTA = ["query_proj", "key_proj", "value_proj", *PER_LAYER[3:]]


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
}


def build(name: str) -> nn.Module:
    """The model of a shape, in float32 and training mode."""
    import transformers

    tf: Any = transformers  # its config classes accept more than their stubs declare
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if name == "minilm":
        from experiments.models.files import embedded_minilm

        model: Any = tf.AutoModelForSequenceClassification.from_pretrained(
            embedded_minilm(), num_labels=2, dtype=torch.float32
        )
    elif name == "deberta-v3-base":
        config = tf.DebertaV2Config(
            vocab_size=128100, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
            share_att_key=True, pos_att_type=["p2c", "c2p"], layer_norm_eps=1e-7, max_relative_positions=-1,
            position_biased_input=False, type_vocab_size=0, num_labels=2,
        )  # fmt: skip
        model = tf.DebertaV2ForSequenceClassification(config)
    elif name == "bart-base":
        config = tf.BartConfig(
            vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072,
            decoder_ffn_dim=3072, encoder_attention_heads=12, decoder_attention_heads=12,
        )  # fmt: skip
        model = tf.BartForConditionalGeneration(config)
    else:
        model = tf.ViTForImageClassification(tf.ViTConfig(num_labels=10))
    return model.train()


def make_batch(shape: Shape, batch: int, length: int, device: str) -> dict[str, Tensor]:
    """A random batch without padding."""
    generator = torch.Generator().manual_seed(1)
    if shape.name == "vit-b16":
        inputs = {"pixel_values": torch.randn(batch, 3, length, length, generator=generator)}
    else:
        ids = torch.randint(1000, 30000, (batch, length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if shape.name == "bart-base":
        inputs["labels"] = torch.randint(1000, 30000, (batch, max(8, length // 4)), generator=generator)
    else:
        inputs["labels"] = torch.randint(2, (batch,), generator=generator)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def twin(model: nn.Module, shape: Shape) -> nn.Module:
    """A copy that shares the frozen weights but not the head."""
    head = tuple(f"{name}." for name in shape.head)
    memo = {id(p): p for name, p in model.named_parameters() if not name.startswith(head)}
    return copy.deepcopy(model, memo)
