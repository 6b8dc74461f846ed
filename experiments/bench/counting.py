"""Operations and peak bytes of a training step, counted, so that other processes do not matter."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.bench.arms import Arm
from experiments.runtime.flops import counting


def counted_flops(arm: Arm) -> int:
    """Multiplications and additions in the matrix products, attention and convolutions of one step."""
    with counting() as counter:
        arm.step()
    return counter.get_total_flops()


def peak_bytes(arm: Arm) -> dict[str, int]:
    """Bytes that a step holds at its peak, of an arm that has run a step before, so that its state exists.

    Returns:
        parameters (of the whole model), state (optimizer and method), step (the most held at one time on top of these:
        gradients, temporary results, what is saved for the backward pass) and total, their sum.
    """
    parts = {"parameters": _size(arm.model.parameters()), "state": _size(arm.tensors()), "step": _peak(arm)}
    return parts | {"total": sum(parts.values())}


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _peak(arm: Arm) -> int:
    if next(arm.model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        arm.step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # silences two lines on stderr per profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        arm.step()
    # the profiler's public events leave out allocations within an operation
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)
