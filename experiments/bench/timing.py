"""Arms in turn, and ratios of paired blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Ratio(NamedTuple):
    """Median of paired ratios with the ends of its 95 % interval."""

    median: float
    low: float
    high: float


def interleaved(
    arms: dict[str, Callable[[], Any]], blocks: int, repeats: int = 1, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds per call of every arm in every block; the order of the arms turns with the block.

    On a CPU with one thread they are seconds of the process and not of the clock: other processes then disturb little.

    Args:
        arms: by name.
        blocks: how many times every arm is timed.
        repeats: calls in a block.
        warmup: calls of every arm before the first block.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    clock = time.process_time if one_thread() else time.perf_counter
    for name in names:
        for _ in range(warmup):
            arms[name]()
    for block in range(blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            synchronise()
            began = clock()
            for _ in range(repeats):
                arms[name]()
            synchronise()
            seconds[name].append((clock() - began) / repeats)
    return seconds


def one_thread() -> bool:
    """Whether all the work is done by one thread of this process."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def synchronise() -> None:
    """Waits for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(first: list[float], second: list[float], seed: int = 0, draws: int = 2000) -> Ratio:
    """Median of the blocks' ratios first / second, with a 95 % percentile bootstrap interval of that median."""
    pairs = torch.tensor([a / b for a, b in zip(first, second, strict=True)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(pairs), (draws, len(pairs)), generator=generator)
    medians = pairs[picks].quantile(0.5, dim=1)
    low, high = torch.quantile(medians, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Ratio(pairs.quantile(0.5).item(), low, high)


def verdict(found: Ratio, target: float) -> str:
    """met, missed, or unresolved where the interval holds the target."""
    return "met" if found.high <= target else "missed" if found.low > target else "unresolved"
