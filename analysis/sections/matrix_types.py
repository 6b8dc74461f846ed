"""Adapted matrices by layer and type: short names of types, their order in figures, and maps of values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

ATTENTION = ("query", "key", "value", "attn out")
SHORT_TYPES = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.self.query_proj": "query", "attention.self.key_proj": "key", "attention.self.value_proj": "value",
    "attention.attention.query": "query", "attention.attention.key": "key", "attention.attention.value": "value",
    "attention.output.dense": "attn out", "intermediate.dense": "ffn in", "output.dense": "ffn out",
    "mlp.fc1": "ffn in", "mlp.fc2": "ffn out",
    "mlp.gate_proj": "ffn gate", "mlp.up_proj": "ffn in", "mlp.down_proj": "ffn out",
}  # fmt: skip
for _part in ("attention", "self_attn"):  # of images and of decoders
    SHORT_TYPES |= {f"{_part}.{kind}_proj": name for kind, name in zip("qkvo", ATTENTION, strict=True)}
TYPE_ORDER = [*ATTENTION, "ffn gate", "ffn in", "ffn out"]
BART_SIDES = {"encoder self_attn": "enc", "decoder self_attn": "dec", "decoder encoder_attn": "cross"}
for _part, _side in BART_SIDES.items():
    SHORT_TYPES |= {f"{_part}.{kind}_proj": f"{_side} {ATTENTION[i]}" for i, kind in enumerate(("q", "k", "v", "out"))}
for _part, _side in (("encoder", "enc"), ("decoder", "dec")):
    SHORT_TYPES |= {f"{_part} fc1": f"{_side} ffn in", f"{_part} fc2": f"{_side} ffn out"}
TYPE_ORDER += [f"{side} {kind}" for side in ("enc", "dec", "cross") for kind in TYPE_ORDER]


def layers_and_types(places: Mapping[str, tuple[int, str]]) -> Mapping[str, tuple[int, str]]:
    """(layer, short type) of every matrix; longer names if two share both, as in models of two towers.

    Args:
        places: layer and type of every matrix, as a result stores them.
    """
    return _named(tuple(places.items()))


@lru_cache(maxsize=64)
def _named(places: tuple[tuple[str, tuple[int, str]], ...]) -> dict[str, tuple[int, str]]:
    """Once for all runs of a model."""
    short = {name: (layer, SHORT_TYPES.get(kind, kind)) for name, (layer, kind) in places}
    for longer in (lambda name: re.sub(r"\.\d+\.", ".*.", name, count=1), str):
        count = Counter(short.values())
        short |= {name: (pair[0], longer(name)) for name, pair in short.items() if count[pair] > 1}
    return short


def types_of(matrices: Sequence[str], places: Mapping[str, tuple[int, str]]) -> list[str]:
    """The short type of each matrix."""
    short = layers_and_types(places)
    return [short[name][1] for name in matrices]


def type_order(kind: str) -> tuple[int, str]:
    """Sort key of a type: in the order of a transformer layer, unknown types last."""
    return (TYPE_ORDER.index(kind) if kind in TYPE_ORDER else len(TYPE_ORDER), kind)


def layer_map(values: Mapping[str, Any], places: Mapping[str, tuple[int, str]]) -> pd.DataFrame:
    """Values by matrix as (layers, types); NaN for a type that a layer lacks."""
    short = layers_and_types(places)
    kinds = sorted({short[name][1] for name in values}, key=type_order)
    layers = sorted({short[name][0] for name in values})
    table = np.full((len(layers), len(kinds)), np.nan)
    for name, value in values.items():
        layer, kind = short[name]
        table[layers.index(layer), kinds.index(kind)] = value
    return pd.DataFrame(table, pd.Index(layers, name="layer"), pd.Index(kinds, name="type"))
