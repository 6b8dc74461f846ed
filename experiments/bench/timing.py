"""Times arms in turn and computes ratios of paired blocks."""

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
    """Seconds per call of every arm in every block of `repeats` calls; the order of the arms rotates with the block.

    Before the first block each arm is called `warmup` times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for work in arms.values():
        for _ in range(warmup):
            work()
    for block in range(blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(seconds_of(arms[name], repeats))
    return seconds


def seconds_of(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds per call.

    With one CPU thread they are seconds of the process and not of the clock, so that other processes disturb little.
    """
    one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if one_thread else time.perf_counter
    synchronise()
    began = clock()
    for _ in range(repeats):
        work()
    synchronise()
    return (clock() - began) / repeats


def synchronise() -> None:
    """Waits for the GPU, if any."""
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


def verdict(measured: Ratio, target: float) -> str:
    """met, missed, or unresolved if the target lies within the interval."""
    return "met" if measured.high <= target else "missed" if measured.low > target else "unresolved"
