"""A frozen linear layer with a low-rank update whose rank may change while it trains.

    y = W0 x + b0 + scale * B diag(E) A x        (E is absent where a method has no singular values or gates)

A and B are both stored with one *row* per direction, A as (capacity, d_in) and B transposed as (capacity, d_out), so
that direction i is row i of every tensor. Only the first `rank` rows enter the products, so the cost follows the rank
and not the capacity; the other rows are 0 and get no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.directions import Directions


class LowRankLinear(nn.Module):
    """One adapted matrix.

    Args:
        base: the frozen layer, weight (d_out, d_in).
        directions: capacity and rank of the update.
        scale: factor on the update, for example alpha / r.
        singular: whether every direction has a value E (singular value or gate).
        dropout: probability of dropping an input of the update (not of the frozen layer).

    Attributes:
        fused: whether training uses `LowRankProduct`, which knows the update of this class only; False in
            subclasses with another `scaled_b`.
        inputs: collects input statistics, for methods that need them.
    """

    E: nn.Parameter | None
    fused: ClassVar[bool] = True

    def __init__(
        self, base: nn.Linear, directions: Directions, scale: float, singular: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.directions = directions
        self.scale = scale
        self.dropout = dropout
        # factors are at least float32: bfloat16 would round most of AdamW's updates away
        kind = torch.promote_types(base.weight.dtype, torch.float32)
        zeros, capacity = partial(base.weight.new_zeros, dtype=kind), directions.capacity
        self.A = nn.Parameter(zeros((capacity, base.in_features)))
        self.B = nn.Parameter(zeros((capacity, base.out_features)))
        self.E = nn.Parameter(zeros((capacity,))) if singular else None
        directions.follow(self._parameter_rows)
        self.inputs: InputNorm | None = None

    def _parameter_rows(self) -> Iterator[Tensor]:
        for parameter in self.factors():
            yield parameter.detach()

    def factors(self) -> Iterator[nn.Parameter]:
        """A, B and, if it exists, E: the tensors with one row per direction."""
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
        """Number of parameters per direction: d_in + d_out, and one more with E."""
        return self.A.shape[1] + self.B.shape[1] + (self.E is not None)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that read it (T5 reads its dtype)."""
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
        dropping = self.dropout and self.training
        if self.fused and is_plain(self.base) and not dropping:
            a, b = self.operands()
            weight, bias = self.base.weight, self.base.bias
            out = LowRankProduct.apply(rows, weight, bias, a, b, self.E, self._rows, self.scale)
        else:
            out = self.updated(self.base(rows), rows)
        return out.view(*x.shape[:-1], -1)

    def updated(self, frozen: Tensor, rows: Tensor) -> Tensor:
        """The frozen layer's output (tokens, d_out) for rows (tokens, d_in) with the update added."""
        if self.dropout and self.training:
            rows = F.dropout(rows, self.dropout)
        a, up = self.operands()[0], self.scaled_b()  # up: (r, d_out)
        # of a half-precision layer the update is computed in the factors' float32, except under autocast
        down = F.linear(rows.to(a.dtype), a[: len(up)])  # (tokens, r)
        up = up.to(down.dtype)
        same = down.dtype == frozen.dtype
        return torch.addmm(frozen, down, up) if same else frozen + (down @ up).to(frozen.dtype)

    @property
    def _rows(self) -> int:
        """Rows that enter the products: the rank, but under torch.compile all slots, or each round would recompile."""
        return self.directions.capacity if torch.compiler.is_compiling() else self.rank

    def scaled_b(self) -> Tensor:
        """scale diag(E) B of the rows that enter the product, (r, d_out)."""
        return self.operands()[1][: self._rows] * _factor(self.E, self._rows, self.scale)

    def operands(self) -> tuple[Tensor, Tensor]:
        """A and B as they enter the product; subclasses may keep one of them from training."""
        return self.A, self.B

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The update as LoRA factors A (r, d_in) and B (d_out, r) with W = W0 + B A; B includes scale and E."""
        r = self.rank
        up = self.B[:r] * self.scale
        if self.E is not None:
            up = up * self.E[:r, None]
        return self.A[:r].clone(), up.T.contiguous()

    @torch.no_grad()
    def take(self, a: Tensor, b: Tensor) -> None:
        """Sets the update to b a; only before training, while it is 0.

        With E, the first n directions become the singular vectors of b a, and E their singular values over the scale.
        Without it, A becomes a and B becomes b / scale. The directions beyond n are unchanged and still add nothing.

        Args:
            a: (n, d_in), n at most the rank.
            b: (d_out, n).
        """
        if self.E is None:
            self._take_unchanged(a, b)
            return
        n = a.shape[0]
        rows, upper_a = torch.linalg.qr(a.cpu().double().T)  # (d_in, n), (n, n); on the CPU for its float64
        columns, upper_b = torch.linalg.qr(b.cpu().double())  # (d_out, n), (n, n)
        left, values, right = torch.linalg.svd(upper_b @ upper_a.T)  # b a = columns left S right rows^T
        self.A[:n] = (right @ rows.T).to(self.A)
        self.B[:n] = (columns @ left).T.to(self.B)
        self.E[:n] = (values / self.scale).to(self.E)

    def _take_unchanged(self, a: Tensor, b: Tensor) -> None:
        n = a.shape[0]
        self.A[:n], self.B[:n] = a.to(self.A), (b.T / self.scale).to(self.B)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update of the weight, (d_out, d_in)."""
        a, b = self.lora_factors()
        return b @ a


def is_plain(base: nn.Module) -> bool:
    """Whether the frozen layer computes x W^T + b and nothing else: no subclass, no trained parameter, no hook."""
    hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
    return type(base) is nn.Linear and not any(p.requires_grad for p in base.parameters()) and not any(hooks)


class LowRankProduct(torch.autograd.Function):
    """x W0^T + b0 + (x A^T) (scale diag(E) B), with a backward pass written out.

    Autograd would add the input gradients of update and frozen layer in a separate pass, copy the factors' gradients
    into their slots, and keep a cast copy of every frozen weight under autocast. Here the matrix product accumulates
    the update's part, factor gradients are written in place, and the frozen weight is cast again when it is needed.
    Beside a frozen weight in bfloat16 the update and its gradients are computed in the factors' float32, as in PEFT,
    unless autocast asks for less. Second derivatives are not supported.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
        a: Tensor, b: Tensor, e: Tensor | None, r: int, scale: float,
    ) -> Tensor:  # fmt: skip
        """Maps x (tokens, d_in) to (tokens, d_out).

        Weight (d_out, d_in) and bias (d_out,) are frozen; of a (capacity, d_in), b (capacity, d_out) and e (capacity,)
        the first r rows are used.
        """
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if autocast else x.dtype  # of the frozen layer
        low = kind if autocast else torch.promote_types(kind, a.dtype)  # of the update
        x = x.to(kind)
        down = F.linear(x.to(low), a[:r].to(low))  # (tokens, r)
        up = b[:r] * _factor(e, r, scale)  # (r, d_out)
        out = F.linear(x, weight.to(kind), None if bias is None else bias.to(kind))
        out = _add_product(out, down, up.to(low))
        ctx.save_for_backward(x, weight, a, b, e, down)
        ctx.r, ctx.scale = r, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A, B and E, from the gradient of the output (tokens, d_out)."""
        x, weight, a, b, e, down = ctx.saved_tensors
        r, kind, low, factor = ctx.r, x.dtype, down.dtype, _factor(e, ctx.r, ctx.scale)
        wide = grad.to(low)
        back = wide @ (b[:r] * factor).to(low).T  # (tokens, r)
        grad_x = grad_a = grad_b = grad_e = None
        if ctx.needs_input_grad[0]:
            grad_x = _add_product(grad @ weight.to(kind), back, a[:r].to(low))
        if ctx.needs_input_grad[3]:
            grad_a = _in_slots(back.T, x.to(low), a)
        if ctx.needs_input_grad[4]:
            grad_b = _in_slots(down.T, wide, b)
            up = grad_b[:r]  # (r, d_out), of scale diag(E) B
            if e is not None:
                grad_e = torch.zeros_like(e)
                grad_e[:r] = (up * b[:r]).sum(1) * ctx.scale
            up.mul_(factor)
        return grad_x, None, None, grad_a, grad_b, grad_e, None, None


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """out + left @ right in place, which are rounded once if they are more precise."""
    return out.addmm_(left, right) if out.dtype == left.dtype else out.add_((left @ right).to(out.dtype))


def _factor(e: Tensor | None, r: int, scale: float) -> Tensor | float:
    """Factor on row i of B: scale, or scale * E_i (r, 1)."""
    return scale if e is None else e[:r, None] * scale


def _in_slots(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """left @ right, written in place into the first slots of a tensor that is 0 in all other slots."""
    r = len(left)
    if r == len(like):
        return (left @ right).to(like.dtype)
    out = torch.empty_like(like)
    out[r:].zero_()
    if left.dtype == like.dtype:
        torch.mm(left, right, out=out[:r])
    else:
        out[:r] = left @ right
    return out


class InputNorm:
    """Sum of squares of a layer's input per feature, over the tokens of one optimizer step.

    It collects only between `watch` and `unwatch`, which the method's `watching` context calls around the forward
    pass: gradient checkpointing recomputes later, so nothing is counted twice.

    Args:
        width: number of features, d_in.
        like: a tensor of the layer, for device and type.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self.total = torch.zeros(width, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        self._mask: Tensor | None = None
        self._watching = False

    def watch(self, mask: Tensor | None) -> None:
        """Starts collecting; `mask` (batch, tokens) is 0 at padding, or None without padding."""
        self._mask, self._watching = mask, True

    def unwatch(self) -> None:
        """Stops collecting."""
        self._mask, self._watching = None, False

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Adds the squares of x (..., d_in), masked if x has one row per token (also in one flat dimension)."""
        if not self._watching:
            return
        mask, rows = self._mask, x.detach().to(self.total.dtype)
        if mask is not None and x.shape[:-1] in (mask.shape, (mask.numel(),)):
            rows = rows * mask.reshape(x.shape[:-1]).to(rows.dtype)[..., None]
        elif mask is not None and (x.ndim > 2 and len(x) == 1 or len(x) != len(mask)):
            return  # DeBERTa also passes its relative positions (1, 2k, d) through query and key; they are not tokens
        self.total += rows.reshape(-1, rows.shape[-1]).square().sum(0)

    def take(self) -> Tensor:
        """The feature norms ||X_j||_2 since the last call, (d_in,); resets them to 0."""
        norms = self.total.sqrt()
        self.total = torch.zeros_like(self.total)
        return norms
