"""Tables of positions in a model: how many tokens they hold, and which of them the class computes itself.

A table says for itself where its positions start. RoBERTa and its relatives give it a `padding_idx` and count from the
id behind it (Fairseq's convention); BART, OPT and others give it an `offset` and allocate as many rows more.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn


def tables(network: nn.Module) -> dict[str, Any]:
    """The embeddings of positions by module name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"position|wpe", name.rpartition(".")[2])
    }


def counts_padding(table: nn.Embedding) -> bool:
    """Whether padding takes positions like any token; without it all of it has the row of `padding_idx`."""
    return table.padding_idx is None


def tokens_in(table: nn.Embedding) -> int:
    """The most tokens that have a row."""
    if table.padding_idx is not None:
        return table.num_embeddings - table.padding_idx - 1
    return table.num_embeddings - int(getattr(table, "offset", 0))


def longest(network: Any, decoder: bool | None = None, multiple: int = 1) -> int | None:
    """The most tokens that a model takes; None if its positions are relative only.

    Args:
        network: a model of transformers.
        decoder: True for the tables of an encoder-decoder's decoder, False for all others; None for all.
        multiple: of which a batch's length is; it matters where padding takes positions.
    """
    config, found = network.config, tables(network)
    relative = getattr(config, "relative_attention", False)
    stated = None if relative else getattr(config, "max_position_embeddings", None)
    most = [stated] if stated and stated > 0 else []
    for name, table in found.items():
        if decoder is None or ("decoder" in name.split(".")) is decoder:
            most.append(tokens_in(table) // multiple * multiple if counts_padding(table) else tokens_in(table))
    return min(most, default=None)


def fix_computed(network: Any) -> set[str]:
    """Turns tables that the class computes into buffers, which nothing trains, and returns the names of their weights.

    Pegasus, Marian and others compute sinusoids, which a checkpoint may lack. Such a table is the same when its module
    is initialised again from another random state, and is more than one constant.
    """
    fixed = set()
    for name, table in tables(network).items():
        again = copy.deepcopy(table)
        with torch.no_grad(), torch.random.fork_rng():
            again.weight = nn.Parameter(torch.randn_like(table.weight))
            network._init_weights(again)
        if torch.equal(again.weight, table.weight) and table.weight.std() > 0:
            weight = table.weight.detach()
            del table.weight
            table.register_buffer("weight", weight)
            fixed.add(f"{name}.weight")
    return fixed
