"""Keeps the directions of a matrix near orthonormal (AdaLoRA eq. 4; ElaLoRA's R).

    norm:     (gamma / 2N) * sum over matrices ( ||A A^T - I||_F   + ||B^T B - I||_F )     as every code has it
    squared:   gamma       * sum over matrices ( ||A A^T - I||_F^2 + ||B^T B - I||_F^2 )   as the papers print it

What is unusual: matrices of one width are one batched product, cut to the largest active rank. Inactive rows
are exactly 0 and their entry of I is masked, so they add nothing and get no gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from elalora.adapters import LowRankLinear

FORMS = ("norm", "squared")


def orthogonality(adapters: Iterable[LowRankLinear], form: str = "norm") -> Tensor:
    """The regulariser without its weight gamma: a mean over 2N norms, or a sum of squares.

    Args:
        adapters: at least one.
        form: "norm" or "squared", see the module's docstring.
    """
    by_width: dict[int, list[tuple[Tensor, int]]] = defaultdict(list)
    for adapter in adapters:
        for factor in (adapter.A, adapter.B):
            by_width[factor.shape[1]].append((factor, adapter.rank))
    total = torch.zeros(())
    count = 0
    for group in by_width.values():
        total = total.to(group[0][0]) + _deviation(group, form)
        count += len(group)
    return total / count if form == "norm" else total


def _deviation(group: list[tuple[Tensor, int]], form: str) -> Tensor:
    """Sum over factors of one width of ||F F^T - I||, unsquared or squared."""
    most = max(rank for _, rank in group)
    first = group[0][0]
    stacked = torch.stack([factor[:most] for factor, _ in group])  # (m, most, width)
    ranks = torch.tensor([rank for _, rank in group], device=first.device)
    alive = torch.arange(most, device=first.device) < ranks[:, None]  # (m, most)
    gap = torch.bmm(stacked, stacked.transpose(1, 2)) - torch.diag_embed(alive.to(first.dtype))
    if form == "squared":
        return gap.square().sum()
    return torch.linalg.matrix_norm(gap).sum()
