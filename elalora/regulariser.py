"""Keeps the directions of a matrix near orthonormal (AdaLoRA eq. 4; ElaLoRA's R).

    norm:     (gamma / 2N) * sum over matrices ( ||A A^T - I||_F   + ||B^T B - I||_F )     as every code has it
    squared:   gamma       * sum over matrices ( ||A A^T - I||_F^2 + ||B^T B - I||_F^2 )   as the papers print it

Matrices of one width share one batched product, cut to the largest active rank, and the backward pass is explicit:
2 (F F^T - I) F divided by the norm, or 4 (F F^T - I) F. Inactive rows are exactly 0 and their entry of I is masked, so
they add nothing and get no gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elalora.adapters import LowRankLinear

FORMS = ("norm", "squared")


def orthogonality(adapters: Iterable[LowRankLinear], form: str = "norm") -> Tensor:
    """The regulariser without its weight gamma: a mean over 2N norms, or a sum of squares.

    Args:
        adapters: at least one.
        form: "norm" or "squared", see the module's docstring.
    """
    pairs = [(factor, adapter.rank) for adapter in adapters for factor in (adapter.A, adapter.B)]
    return Deviation.apply(form, [rank for _, rank in pairs], *(factor for factor, _ in pairs))


class Deviation(torch.autograd.Function):
    """The regulariser of factors (capacity, width), each with its number of active rows, with an explicit backward."""

    @staticmethod
    def forward(ctx: Any, form: str, ranks: Sequence[int], *factors: Tensor) -> Tensor:
        """The scalar of `orthogonality`."""
        ctx.form, ctx.ranks, ctx.groups = form, ranks, []
        ctx.save_for_backward(*factors)
        total = factors[0].new_zeros(())
        by_width: dict[tuple[int, torch.device], list[int]] = defaultdict(list)
        for i, factor in enumerate(factors):
            by_width[factor.shape[1], factor.device].append(i)
        for members in by_width.values():
            rows = _stacked(factors, ranks, members)
            identities = _identities(tuple(ranks[i] for i in members), rows.dtype, rows.device)
            gap = torch.bmm(rows, rows.transpose(1, 2)) - identities  # F F^T - I of each, (m, most, most)
            squares = gap.square().sum((1, 2))  # (m,)
            size = squares if form == "squared" else squares.sqrt()
            total = total + size.sum().to(total)
            ctx.groups.append((members, gap, size))
        return total / len(factors) if form == "norm" else total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of every factor; it is 0 if the norm is 0."""
        factors = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * len(factors)
        for members, gap, size in ctx.groups:
            if ctx.form == "squared":
                weight = torch.full_like(size, 4.0)
            else:
                weight = torch.where(size > 0, 2 / (size * len(factors)), 0.0)
            gap = gap * (weight * grad.to(size))[:, None, None]  # (m, most, most)
            # written in place: filling and copying whole factors in newly allocated memory costs more than the
            # arithmetic
            most, capacities = gap.shape[1], [len(factors[i]) for i in members]
            rows = _stacked(factors, ctx.ranks, members)  # stacked again, to save memory during the step
            whole = rows.new_empty(len(members), max(capacities), rows.shape[2])
            torch.bmm(gap, rows, out=whole[:, :most])
            whole[:, most:].zero_()
            for i, part, capacity in zip(members, whole.unbind(0), capacities, strict=True):
                grads[i] = part[:capacity]
        return None, None, *grads


def _stacked(factors: Sequence[Tensor], ranks: Sequence[int], members: Sequence[int]) -> Tensor:
    """The active rows of some factors, (m, most, width)."""
    most = max(ranks[i] for i in members)
    rows = [factors[i][:most] for i in members]
    # a factor may have fewer slots (with transplanted ranks, for example), and is padded with 0
    return torch.stack([r if len(r) == most else F.pad(r, (0, 0, 0, most - len(r))) for r in rows])


@lru_cache(maxsize=32)
def _identities(ranks: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(m, most, most): I of each factor, cut after its rank; cached, because ranks seldom change."""
    alive = torch.arange(max(ranks), device=device) < torch.tensor(ranks, device=device)[:, None]  # (m, most)
    return torch.diag_embed(alive.to(dtype))
