"""Small random checkpoints of each architecture, in the layout of a hub snapshot, for smoke runs without a hub.

Each has two layers of width 32 and a tokenizer of letters and common words, or an image processor for 32 x 32 pixels.
Scores on them mean nothing.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("bert", "roberta", "deberta-v2", "bart", "vit")
DECODER = "llama"
LAYERS, WIDTH, HEADS, INNER, POSITIONS = 2, 32, 2, 64, 514
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
}


def make_models(folder: str | Path, seed: int = 0) -> Path:
    """Writes one checkpoint per family into subfolders of `folder`; the global generator is unchanged."""
    import transformers

    folder = Path(folder)
    with torch.random.fork_rng():
        for name in FAMILIES:
            torch.manual_seed(seed)
            checkpoint = folder / name
            size = None if name == "vit" else _save_tokenizer(checkpoint, name)
            cls, config = _architecture(transformers, name, size)
            cls(config).save_pretrained(checkpoint)
            if name == "vit":
                _save_image_processor(checkpoint)
        torch.manual_seed(seed)
        _save_decoder(folder / DECODER)
    return folder


def _save_decoder(folder: Path) -> None:
    """A Llama whose tokens are single bytes, so that a prompt ends between two tokens wherever it ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    begin, end = "<s>", "</s>"
    pieces = [begin, end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=2 * WIDTH, intermediate_size=2 * INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2 * POSITIONS, bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _architecture(tf: Any, name: str, size: int | None) -> tuple[Any, Any]:
    encoder = {
        "vocab_size": size, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "pad_token_id": 0,
    }  # fmt: skip
    if name == "bert":
        return tf.BertModel, tf.BertConfig(**encoder)
    if name == "roberta":
        return tf.RobertaModel, tf.RobertaConfig(**encoder | {"bos_token_id": 2, "eos_token_id": 3})
    if name == "deberta-v2":
        config = tf.DebertaV2Config(
            **encoder, relative_attention=True, position_buckets=32, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, layer_norm_eps=1e-7,
        )  # fmt: skip
        return tf.DebertaV2Model, config
    if name == "bart":
        config = tf.BartConfig(
            vocab_size=size, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=INNER,
            decoder_ffn_dim=INNER, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
            max_position_embeddings=POSITIONS, pad_token_id=0, bos_token_id=2, eos_token_id=3,
            decoder_start_token_id=3, forced_eos_token_id=3, init_std=0.2,
        )  # fmt: skip
        return tf.BartForConditionalGeneration, config
    config = tf.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return tf.ViTModel, config


def _save_tokenizer(folder: Path, name: str) -> int:
    """Saves a lower-casing word-piece tokenizer that spells unknown words; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, begin, end, mask = SPECIAL["bert" if name in ("bert", "deberta-v2") else "roberta"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    common = "the a an is was not no very good bad great poor of to in on and or it this that film he she we".split()
    pieces = dict.fromkeys([pad, unknown, begin, end, mask, *common, *letters, *(f"##{x}" for x in letters)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    types = ["token_type_ids"] if name == "bert" else []
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=begin, sep_token=end, mask_token=mask,
        model_max_length=512, model_input_names=["input_ids", *types, "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return len(vocabulary)


def _save_image_processor(folder: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
