"""Measures what adaptivity costs, arms interleaved in one process: `python -m experiments.bench`.

Quote the ratios and their spread; absolute times are those of one machine at one moment. No test asserts on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from elalora import RowwiseAdamW
from elalora.directions import Directions

# (number, d_in, d_out) of the adapted matrices
SHAPES = {
    "minilm": [(24, 384, 384), (6, 384, 1536), (6, 1536, 384)],
    "deberta-v3-base": [(48, 768, 768), (12, 768, 3072), (12, 3072, 768)],
}


def interleaved(
    arms: dict[str, Callable[[], Any]], blocks: int, repeats: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds per call of every arm in every block; the order of the arms turns with the block."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for name in names:
        for _ in range(warmup):
            arms[name]()
    for block in range(blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            began = time.perf_counter()
            for _ in range(repeats):
                arms[name]()
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def ratio(first: list[float], second: list[float], seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Median of the paired ratios of blocks, with a 95 % bootstrap interval of that median."""
    pairs = torch.tensor([a / b for a, b in zip(first, second, strict=True)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(pairs), (draws, len(pairs)), generator=generator)
    medians = pairs[picks].median(1).values
    low, high = torch.quantile(medians, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"median": pairs.median().item(), "low": low, "high": high}


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
        "rowwise / torch foreach": ratio(seconds["rowwise"], seconds["torch foreach"]),
    }


def main() -> None:
    """Prints one line of JSON a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for shape in SHAPES:
        for rank in (4, 8):
            print(json.dumps(optimizers(shape, rank, options.blocks, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
