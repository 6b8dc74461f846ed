"""Floating-point operations of a step, counted by torch from the products it dispatches."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.arms import Arm


def _in_place(added: Any, left: Any, right: Any, **rest: Any) -> int:
    """Operations of `addmm_`, which torch's table lacks; the arguments are shapes."""
    return 2 * left[0] * left[1] * right[1]


def counted_flops(arm: Arm) -> int:
    """Multiplications and additions in the matrix products, attention and convolutions of one step."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _in_place}) as counter:
        arm.step()
    return counter.get_total_flops()
