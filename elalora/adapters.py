"""A frozen linear layer with a low-rank update whose rank may change while it trains.

    y = W0 x + b0 + scale * B diag(E) A x        (E is absent where a method has no singular values or gates)

What is unusual: A and B are both stored with one *row* per direction, A (capacity, d_in) and B transposed
(capacity, d_out), so that a direction is row i of every tensor. Only the first `rank` rows enter the
products, so cost follows the rank and not the capacity; rows beyond it are 0 and get no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.directions import Directions


class LowRankLinear(nn.Module):
    """One adapted matrix.

    Args:
        base: the frozen layer, weight (d_out, d_in).
        directions: capacity and rank of the update.
        scale: factor on the update, for instance alpha / r.
        singular: whether directions carry a value E of their own (SVD form, SoRA's gate).
        dropout: probability of dropping an input of the update (not of the frozen layer).
    """

    E: nn.Parameter | None

    def __init__(
        self, base: nn.Linear, directions: Directions, scale: float, singular: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.directions = directions
        self.scale = scale
        self.dropout = dropout
        zeros, capacity = base.weight.new_zeros, directions.capacity
        self.A = nn.Parameter(zeros(capacity, base.in_features))
        self.B = nn.Parameter(zeros(capacity, base.out_features))
        self.E = nn.Parameter(zeros(capacity)) if singular else None
        directions.follow(self._parameter_rows)
        self.inputs: InputNorm | None = None

    def _parameter_rows(self) -> Iterator[Tensor]:
        for parameter in self.factors():
            yield parameter.detach()

    def factors(self) -> Iterator[nn.Parameter]:
        """A, B and, where there is one, E: every tensor with one row per direction."""
        yield self.A
        yield self.B
        if self.E is not None:
            yield self.E

    @property
    def rank(self) -> int:
        """Number of active directions."""
        return self.directions.rank

    @property
    def cost(self) -> int:
        """Numbers that one direction stores: d_in + d_out, and one more with singular values."""
        return self.A.shape[1] + self.B.shape[1] + (self.E is not None)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it (T5 reads its dtype)."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """d_in of the frozen layer."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """d_out of the frozen layer."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., d_in) to (..., d_out)."""
        if self.inputs is not None:
            self.inputs.see(x)
        rows = x.reshape(-1, x.shape[-1])  # (tokens, d_in)
        frozen = self.base(rows)  # (tokens, d_out)
        if self.dropout and self.training:
            rows = F.dropout(rows, self.dropout)
        r = self.rank
        down = F.linear(rows, self.A[:r])  # (tokens, r)
        up = self.B[:r] * self.scale if self.E is None else self.B[:r] * (self.E[:r, None] * self.scale)
        return torch.addmm(frozen, down, up).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The update as LoRA factors A (r, d_in) and B (d_out, r) with W = W0 + B A: scale and E lie in B."""
        r = self.rank
        up = self.B[:r] * self.scale
        if self.E is not None:
            up = up * self.E[:r, None]
        return self.A[:r].clone(), up.T.contiguous()

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update of the weight, (d_out, d_in)."""
        a, b = self.lora_factors()
        return b @ a

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A new linear layer that computes the same; the frozen layer is left as it was."""
        layer = nn.Linear(
            self.base.in_features,
            self.base.out_features,
            bias=self.base.bias is not None,
            device=self.base.weight.device,
            dtype=self.base.weight.dtype,
        )
        layer.weight.copy_(self.base.weight + self.delta())
        if self.base.bias is not None:
            layer.bias.copy_(self.base.bias)
        return layer


class InputNorm:
    """Sum of squares of a layer's input per feature, over the tokens of one optimizer step.

    It looks only between `watch` and `unwatch`, which the method's `watching` context calls around the
    forward pass: a recomputation under gradient checkpointing happens later and is not counted twice.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self.total = torch.zeros(width, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        self._mask: Tensor | None = None
        self._watching = False

    def watch(self, mask: Tensor | None) -> None:
        """Starts to look; `mask` (batch, tokens) is 0 at padding, None where there is none."""
        self._mask, self._watching = mask, True

    def unwatch(self) -> None:
        """Stops to look."""
        self._mask, self._watching = None, False

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Adds the squares of x (..., d_in); masked where x has the mask's leading shape."""
        # DeBERTa also sends its relative positions through query and key: they are no tokens of the batch
        if not self._watching or (self._mask is not None and x.shape[0] != self._mask.shape[0]):
            return
        x = x.detach().to(self.total.dtype)
        if self._mask is not None and x.shape[:-1] == self._mask.shape:
            x = x * self._mask.to(x.dtype)[..., None]
        self.total += x.reshape(-1, x.shape[-1]).square().sum(0)

    def take(self) -> Tensor:
        """The feature norms ||X_j||_2 since the last call, (d_in,); starts again from 0."""
        norms = self.total.sqrt()
        self.total = torch.zeros_like(self.total)
        return norms
