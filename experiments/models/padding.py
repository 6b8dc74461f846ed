"""The padding token: the tokenizer's, or its end-of-sequence token, the same for tokenizer and model.

GPT-2, Llama and others were trained without padding. A model that classifies by the last token finds it as the last one
that is not padding, by `config.pad_token_id`, which their checkpoints leave out.
"""

from __future__ import annotations

from typing import Any

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.models.positions import counts_padding, tables


def set_pad_token(tokenizer: Any, model: ModelConfig) -> None:
    """Gives a tokenizer `model.pad_token`, or its end-of-sequence token if it has no padding token.

    Raises:
        UserError: the vocabulary has no such token, or the tokenizer has neither.
    """
    token = model.pad_token or tokenizer.pad_token or tokenizer.eos_token
    if token is None:
        raise UserError(
            f"model.path={model.path}: its tokenizer has neither a padding nor an end-of-sequence token; "
            "type model.pad_token=TOKEN, a token of its vocabulary"
        )
    if token not in tokenizer.get_vocab():
        raise UserError(
            f"model.pad_token={token} is not in the vocabulary of model.path={model.path}; type one that is"
        )
    tokenizer.pad_token = token


def share_pad_token(network: Any, tokenizer: Any, model: ModelConfig) -> None:
    """Gives a model the tokenizer's padding token.

    Raises:
        UserError: the model counts its positions from another padding token, or padding on the left would shift them.
    """
    pad = tokenizer.pad_token_id
    for table in tables(network).values():
        if table.padding_idx not in (None, pad):
            raise UserError(
                f"model.path={model.path} counts positions from the padding id {table.padding_idx}, its tokenizer pads "
                f"with {tokenizer.pad_token} (id {pad}); they are not of the same model, or model.pad_token is wrong"
            )
        if counts_padding(table) and tokenizer.padding_side == "left":
            raise UserError(
                f"model.path={model.path}: its tokenizer pads on the left, which would shift the model's absolute "
                'positions; copy the model and set "padding_side": "right" in tokenizer_config.json'
            )
    for config in (network.config, network.config.get_text_config()):
        config.pad_token_id = pad
