"""The loss of a causal language model from its labelled positions alone, in chunks.

With all positions, logits take batch x length x vocabulary numbers, several times over: 8 sequences of 512 tokens and a
vocabulary of 128,256 are 2.1 GB in float32. Only labelled positions have a loss, so only their hidden states are turned
into logits, a chunk at a time, and a chunk's logits are computed again in the backward pass instead of being kept. The
loss is the same mean over the same tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elalora.errors import UserError
from experiments.data.text_items import IGNORED

CHUNK = 256  # positions whose logits exist at a time


def loss_of_labels(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """Mean cross-entropy of the labelled tokens, each predicted from the position before it; 0 without any.

    Args:
        hidden: last hidden states, (b, length, width).
        labels: token ids, `IGNORED` where there is no loss, (b, length).
        head: hidden states (n, width) to logits (n, vocabulary).
        chunk: most positions whose logits exist at a time.
    """
    seen = labels[:, 1:] != IGNORED
    rows, targets = hidden[:, :-1][seen], labels[:, 1:][seen]  # (n, width), (n,)

    def summed(rows: Tensor, targets: Tensor) -> Tensor:
        logits = head(rows)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(wide, targets, reduction="sum")

    if len(rows) <= chunk:
        return summed(rows, targets) / max(1, len(rows))
    parts = zip(rows.split(chunk), targets.split(chunk), strict=True)
    sums = [checkpoint(summed, *part, use_reentrant=False) for part in parts]
    return torch.stack(sums).sum() / len(rows)


def use_labelled_positions(network: Any) -> None:
    """Makes a causal model of transformers compute its loss by `loss_of_labels` where it is given labels.

    Its output then has no logits. Without labels it computes what it did.

    Raises:
        UserError: its logits are not those of its output layer, so the loss would be another one.
    """
    own, head = network.forward, logits_of(network)
    _check_head(network, head)

    @functools.wraps(own)
    def forward(*args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return own(*args, **inputs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        hidden = network.base_model(*args, **inputs, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(loss=loss_of_labels(hidden, labels, head, CHUNK))

    network.forward = forward


def logits_of(network: Any) -> Callable[[Tensor], Tensor]:
    """The function from last hidden states to logits of a causal model of transformers."""
    cap = getattr(network.config.get_text_config(), "final_logit_softcapping", None)  # of the Gemma family

    def head(hidden: Tensor) -> Tensor:
        logits = network.get_output_embeddings()(hidden)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


@torch.no_grad()
def _check_head(network: Any, head: Callable[[Tensor], Tensor]) -> None:
    """Compares the logits of two tokens with the model's own; other models scale theirs, for instance."""
    training, device = network.training, next(network.parameters()).device
    ids = torch.tensor([[0, 1]], device=device)
    network.eval()
    try:
        expected = network(input_ids=ids, use_cache=False).logits
        found = head(network.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        network.train(training)
    if not torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{network.config.model_type} changes the logits of its output layer in a way that is not known here, so "
            "its loss cannot be computed in chunks; use another model"
        )
