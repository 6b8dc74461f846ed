"""The row-wise AdamW against torch's foreach AdamW."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from elalora import RowwiseAdamW
from elalora.directions import Directions
from experiments.bench.timing import interleaved, ratio

# (number, d_in, d_out) of the adapted matrices
SHAPES = {
    "minilm": [(24, 384, 384), (6, 384, 1536), (6, 1536, 384)],
    "deberta-v3-base": [(48, 768, 768), (12, 768, 3072), (12, 3072, 768)],
}


def optimizers(shape: str, rank: int, blocks: int, repeats: int) -> dict[str, Any]:
    """The row-wise AdamW against torch's foreach AdamW: one step over A, B and E of every matrix.

    The row-wise one holds max(2N, N + 8) slots of which N are active, and its directions have different ages.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [(a, b) for count, a, b in SHAPES[shape] for _ in range(count)]
    plain = [nn.Parameter(torch.zeros(rank, n)) for pair in sizes for n in (*pair, 1)]
    slots: dict[Any, Directions] = {}
    for pair in sizes:
        directions = Directions(max(2 * rank, rank + 8), rank)
        for n in (*pair, 1):
            slots[nn.Parameter(torch.zeros(directions.capacity, n))] = directions
    for parameter in [*plain, *slots]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    rowwise = RowwiseAdamW(list(slots), slots, lr=1e-3, weight_decay=0.01)
    rowwise.step()
    for directions in list(dict.fromkeys(slots.values()))[::2]:  # half of the matrices get a younger direction
        directions.die(0)
        directions.be_born()
    foreach = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.01, foreach=True)
    seconds = interleaved({"rowwise": rowwise.step, "torch foreach": foreach.step}, blocks, repeats)
    return {
        "shape": shape,
        "rank": rank,
        "matrices": len(sizes),
        "blocks": blocks,
        "milliseconds": {name: 1e3 * statistics.median(s) for name, s in seconds.items()},
        "rowwise / torch foreach": ratio(seconds["rowwise"], seconds["torch foreach"])._asdict(),
    }
