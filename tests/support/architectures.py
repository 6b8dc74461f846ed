"""Tiny random models of many architectures in folders, with a tokenizer that need not have a padding token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"a b c d e f g h i j k l m n o p q r s t u v w x y z <|endoftext|>".split()]
SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PAIR = {
    "vocab_size": len(WORDS), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


def save_tokenizer(folder: Path, side: str = "right", ending: bool = True, **special: str) -> None:
    """A tokenizer of single letters; `ending` appends </s>, `special` names its special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ending:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 2)])
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", padding_side=side, model_input_names=names, **special
    ).save_pretrained(folder)


def random_model(cls: Any, config: Any, seed: int = 0, scale: float = 1.0) -> Any:
    """A model with random weights; the global generator is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
    return model
