"""A tiny random BERT classifier, and the matrices of it that are adapted."""

from __future__ import annotations

import torch

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]


def bert(seed=0):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_labels=3
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)
