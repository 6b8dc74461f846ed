"""Adds a low-rank update to the weight of a frozen layer, and measures what rounding loses of it.

An nn.Linear keeps its type. A subclass, or a layer with hooks, may compute something else than x W^T + b, so it is
compared in float64 with layer plus update before anything is changed. Layers of bitsandbytes (int8, 4-bit) cannot hold
an update without quantising it, so they become nn.Linear.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elalora.adapters import is_plain
from elalora.errors import UserError

PROBE = 8  # rows of the comparison


@dataclass(frozen=True)
class Rounding:
    """What rounding to the type of the weights loses of the merged updates.

    Attributes:
        vanished: share of the updates' entries that change no weight, between 0 and 1.
        error: norm of the difference between the stored and the exact updates, divided by the norm of the exact ones.
    """

    vanished: float
    error: float


class RoundingSum:
    """Collects the rounding of all merged layers."""

    def __init__(self) -> None:
        self.entries = self.vanished = 0
        self.updates = self.errors = 0.0

    def add(self, before: Tensor, after: Tensor, delta: Tensor) -> None:
        """Counts one layer: its weight before and after, and the exact update, all (d_out, d_in)."""
        stored = after.to(delta.dtype) - before.to(delta.dtype)
        moved = delta != 0
        self.entries += int(moved.sum())
        self.vanished += int((moved & (after == before)).sum())
        self.updates += float(delta.square().sum())
        self.errors += float((stored - delta).square().sum())

    def total(self) -> Rounding:
        """The shares over all layers."""
        error = (self.errors / self.updates) ** 0.5 if self.updates else 0.0
        return Rounding(self.vanished / max(1, self.entries), error)


def is_quantised(base: nn.Module) -> bool:
    """Whether it is an int8 or 4-bit layer of bitsandbytes; by name, because bitsandbytes is optional."""
    return any(k.__module__.startswith("bitsandbytes.") and k is not nn.Linear for k in type(base).__mro__)


def restore_layout(model: nn.Module) -> None:
    """Puts quantised weights back into the order that dequantising reads.

    On CPUs with AVX-512, bitsandbytes packs 4-bit weights differently in evaluation, and packed layers pass no gradient
    on. Reading the state unpacks them, but leaves the scales transposed (0.50.2).
    """
    for module in model.modules():
        if is_quantised(module):
            module.state_dict()
            state: Any = getattr(module.weight, "quant_state", None)
            if state is not None and state.absmax.ndim == 2:
                state.absmax = state.absmax.T.reshape(-1).float()


def float_type(parameters: Iterable[Tensor]) -> torch.dtype:
    """The first floating-point type among the parameters of a partly quantised model; float32 if there is none."""
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


@torch.no_grad()
def check_mergeable(name: str, base: Any, delta: Tensor) -> None:
    """Raises UserError if `base` with `delta` added to its weight does not compute base(x) + delta x."""
    if is_plain(base) or is_quantised(base):
        return
    problem = "does not compute x W^T + b"
    try:
        delta = delta.cpu().double()  # not every GPU has float64
        frozen, folded = (copy.deepcopy(base).cpu().double().eval() for _ in range(2))
        folded.weight.add_(delta)
        x = torch.randn(PROBE, base.in_features, generator=torch.Generator().manual_seed(0)).to(folded.weight)
        update = x @ delta.T
        if torch.allclose(folded(x) - frozen(x), update, rtol=1e-6, atol=1e-9 * float(update.abs().max() + 1)):
            return
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        problem = f"cannot be checked ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise UserError(
        f"'{name}' is a {type(base).__name__}, which {problem}, so an update cannot be merged into its weight: "
        "use elalora.export.export_peft"
    )


@torch.no_grad()
def folded(base: Any, delta: Tensor, kind: torch.dtype, rounding: RoundingSum) -> nn.Linear:
    """A new layer that computes base(x) + delta x; `base` is unchanged.

    Args:
        base: passed `check_mergeable`.
        delta: (d_out, d_in).
        kind: type of the weight if `base` is an int8 layer.
        rounding: counts what is lost.
    """
    layer = _dequantised(base, kind) if is_quantised(base) else copy.deepcopy(base)
    before = layer.weight.detach().clone()
    layer.weight.copy_(before.to(torch.promote_types(before.dtype, delta.dtype)) + delta)
    rounding.add(before, layer.weight.detach(), delta)
    return layer


def _dequantised(base: Any, kind: torch.dtype) -> nn.Linear:
    """An nn.Linear with the weight that an int8 or 4-bit layer stands for."""
    from bitsandbytes import functional

    state = getattr(base.weight, "quant_state", None)
    if state is not None:
        weight = functional.dequantize_4bit(base.weight.data, state)
    else:
        scales = base.state.SCB if base.state.SCB is not None else base.weight.SCB
        weight = functional.int8_vectorwise_dequant(base.weight.data, scales).to(kind)
    has_bias = base.bias is not None
    layer = nn.Linear(base.in_features, base.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    if has_bias:
        layer.bias.copy_(base.bias)
    return layer
