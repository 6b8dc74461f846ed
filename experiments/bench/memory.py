"""Peak bytes of a training step, counted from its allocations: they depend on no other process and on no clock."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.bench.arms import Arm


def counted(arm: Arm) -> dict[str, int]:
    """Bytes that a step holds at its peak.

    Args:
        arm: has made a step before, so that its state is there.

    Returns:
        parameters: of the whole model; state: optimizer and method, after a step; step: the most that a step holds at
        one time beside these (what is saved for the backward pass, gradients, temporary results); total: their sum.
    """
    parts = {
        "parameters": _size(arm.model.parameters()),
        "state": _size(arm.tensors()),
        "step": _peak(arm),
    }
    return parts | {"total": sum(parts.values())}


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _peak(arm: Arm) -> int:
    if next(arm.model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        arm.step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the profiler writes two lines to stderr every time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        arm.step()
    # the events of `seen` that are public leave out what is allocated within an operation
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)
