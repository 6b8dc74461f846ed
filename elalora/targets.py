"""Named sets of target layers by architecture, as patterns for `elalora.attach`.

    paper      what ElaLoRA and AdaLoRA adapt: all six kinds in text encoders, attention and feed-forward of BART, all
               but the attention's output in ViT (72 matrices in DeBERTa-v3-base, 96 in BART-base, 60 in ViT-B/16).
               Other text models follow the encoders and BART, other image models follow ViT
    all        every linear layer of the transformer blocks
    attention  the linear layers of the attention
    qv         query and value, as in LoRA's own experiments

Some checkpoints store several projections as one matrix: query, key and value in GPT-2, ModernBERT and Phi-3, gate and
up in ModernBERT and Phi-3. Such a matrix gets one adapter with one rank, and `qv` takes the whole of it.

A set knows its number of matrices for a given number of layers. If a library renames its modules (transformers 5 did so
for ViT), patterns that match nothing or too much are noticed before training. Architectures have the names of
`config.model_type` in transformers 5; "-gated" marks a variant with gated feed-forward layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from elalora.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """The linear layers of one architecture's blocks.

    Attributes:
        attention: patterns of the attention's layers.
        rest: patterns of the feed-forward layers.
        qv: patterns of query and value.
        outside_paper: patterns that the set `paper` leaves out.
        cross: whether decoder layers also attend to the encoder.
    """

    attention: tuple[str, ...]
    rest: tuple[str, ...]
    qv: tuple[str, ...]
    outside_paper: tuple[str, ...] = ()
    cross: bool = False

    def sets(self) -> dict[str, tuple[str, ...]]:
        """Patterns by name of the set."""
        every = self.attention + self.rest
        paper = tuple(p for p in every if p not in self.outside_paper)
        return {"paper": paper, "all": every, "attention": self.attention, "qv": self.qv}

    def matrices(self, name: str, layers: int, decoder_layers: int = 0) -> int:
        """Number of linear layers in a set; the arguments are those of `expected_matrices`."""
        chosen = self.sets()[name]
        attending = sum(p in self.attention for p in chosen)
        twice = 2 if self.cross else 1
        return attending * (layers + twice * decoder_layers) + (len(chosen) - attending) * (layers + decoder_layers)


_BERT = Architecture(
    ("query", "key", "value", "attention.output.dense"),
    ("intermediate.dense", "layer.*.output.dense"),
    ("query", "value"),
)
_LLAMA = Architecture(
    ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj"), ("q_proj", "v_proj")
)
_VIT = Architecture(
    ("q_proj", "k_proj", "v_proj", "o_proj"), ("fc1", "fc2"), ("q_proj", "v_proj"), outside_paper=("o_proj",)
)
_CLIP = Architecture(
    ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2"), ("q_proj", "v_proj"), outside_paper=("out_proj",)
)
_BART = Architecture(
    ("q_proj", "k_proj", "v_proj", "layers.*.*.out_proj"), ("fc1", "fc2"), ("q_proj", "v_proj"), cross=True
)
_T5 = Architecture(("q", "k", "v", "o"), ("wi", "wo"), ("q", "v"), cross=True)
_T5_GATED = replace(_T5, rest=("wi_0", "wi_1", "wo"))
ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta-v2": Architecture(
        ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
        ("intermediate.dense", "layer.*.output.dense"),
        ("query_proj", "value_proj"),
    ),
    "mpnet": Architecture(
        ("attn.q", "attn.k", "attn.v", "attn.o"), ("intermediate.dense", "output.dense"), ("attn.q", "attn.v")
    ),
    "modernbert": Architecture(("Wqkv", "attn.Wo"), ("Wi", "mlp.Wo"), ("Wqkv",)),
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": _BART,
    "t5": _T5,
    "t5-gated": _T5_GATED,
    "mt5-gated": _T5_GATED,
    "vit": _VIT,
    "dinov2": _VIT,
    "dinov2-gated": replace(_VIT, rest=_LLAMA.rest),
    "swin": _VIT,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": Architecture(("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj"), ("qkv_proj",)),
    "gpt2": Architecture(("c_attn", "attn.c_proj"), ("c_fc", "mlp.c_proj"), ("c_attn",)),
}
GATES = ("is_gated_act", "use_swiglu_ffn")  # settings of T5 and DINOv2 that give the feed-forward layers a gate
NAMES = ("paper", "all", "attention", "qv")


def patterns_of(model_type: str, targets: Sequence[str]) -> list[str]:
    """The patterns that the targets stand for: the name of a set is replaced by its patterns.

    Args:
        model_type: a name in `ARCHITECTURES`.
        targets: the name of one set, or patterns.

    Raises:
        UserError: the architecture has no named sets, or a set is mixed with patterns.
    """
    if not any(name in NAMES for name in targets):
        return list(targets)
    if len(targets) != 1:
        raise UserError(f"model.targets={list(targets)} mixes a set with patterns: use {' or '.join(NAMES)} alone")
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"model.targets=[{targets[0]}]: {model_type} has no named sets (available for "
            f"{', '.join(ARCHITECTURES)}); use patterns of module names, for example model.targets=[query,value]"
        )
    return list(ARCHITECTURES[model_type].sets()[targets[0]])


def expected_matrices(model_type: str, targets: Sequence[str], layers: int, decoder_layers: int = 0) -> int | None:
    """Number of layers that a named set must match; None if the targets are patterns.

    Args:
        model_type: a name in `ARCHITECTURES`.
        targets: as for `patterns_of`.
        layers: number of layers of the encoder, or of a model with one stack.
        decoder_layers: number of layers of the decoder in an encoder-decoder model.
    """
    if len(targets) != 1 or targets[0] not in NAMES or model_type not in ARCHITECTURES:
        return None
    return ARCHITECTURES[model_type].matrices(targets[0], layers, decoder_layers)


def architecture_of(model: Any) -> str:
    """The name under which `ARCHITECTURES` has a model of transformers; its class if it has no config."""
    config = getattr(model, "config", None)
    gated = any(getattr(config, name, False) for name in GATES)
    return getattr(config, "model_type", type(model).__name__) + ("-gated" if gated else "")


def patterns_in(model: Any, targets: Sequence[str]) -> list[str]:
    """`patterns_of` for the architecture of a model of transformers."""
    return patterns_of(architecture_of(model), targets)


def matrices_in(model: Any, targets: Sequence[str]) -> int | None:
    """Number of matrices that a named set must match in a model of transformers; None for patterns."""
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)  # of CLIP
    stages = getattr(config, "depths", None)  # of Swin
    layers = _setting(config, "encoder_layers", "num_hidden_layers") if stages is None else sum(stages)
    both = getattr(config, "is_encoder_decoder", False)
    decoder = _setting(config, "decoder_layers", "num_decoder_layers") if both else 0
    return expected_matrices(architecture_of(model), targets, layers, decoder)


def _setting(config: Any, *names: str) -> int:
    """The first of these settings that is above 0; 0 if there is none."""
    return next((value for name in names if (value := getattr(config, name, 0))), 0)
