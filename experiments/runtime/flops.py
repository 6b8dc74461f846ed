"""Counts the operations of tensor programs, so that neither the machine nor other processes matter."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def counting() -> FlopCounterMode:
    """A context that counts multiplications and additions in matrix products, attention and convolutions."""

    def in_place(added: Any, left: Any, right: Any, **_: Any) -> int:
        """Operations of `addmm_`, which torch's table lacks; the arguments are shapes."""
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
