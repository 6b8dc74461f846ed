"""Counts the operations of tensor programs, so that neither the machine nor other processes matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


# torch's table has the attention of accelerators only
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counting(more: Mapping[Any, Callable[..., int]] | None = None) -> FlopCounterMode:
    """A context that counts multiplications and additions in matrix products, attention and convolutions.

    Args:
        more: functions of shapes for operations that torch's table lacks, such as `CPU_ATTENTION`.
    """

    def in_place(added: Any, left: Any, right: Any, **_: Any) -> int:
        """Operations of `addmm_`, which torch's table lacks; the arguments are shapes."""
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place, **(more or {})})
