"""A small BERT with random weights and MiniLM's tokenizer: a thousand steps take half a minute.

What it can learn is what its adapters learn, so a task made for it (task=planted) has no other explanation. Weights
are drawn wider than BERT's, so that every layer changes its input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.models.files import embedded_minilm
from experiments.models.kept import kept
from experiments.runtime.cache import cache_dir

VERSION = 1  # of the model; part of a run's identity, so raise it in conf/model/random_encoder.yaml too
SPREAD = 0.12  # standard deviation of a weight; about 1 / sqrt(width)


def drawn() -> Path:
    """The folder of the model, created if it is missing or damaged."""
    return kept(cache_dir(None) / f"random_encoder-{VERSION}", _make)


def _make(folder: Path) -> None:
    import transformers

    tf: Any = transformers
    tokenizer = tf.AutoTokenizer.from_pretrained(embedded_minilm())
    config = tf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=64, initializer_range=SPREAD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
