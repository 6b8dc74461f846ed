"""PRILoRA: ranks that rise with depth, and A pruned as it trains (Benedek and Wolf, arXiv 2401.11316).

    r_l rises linearly with the layer l, from 4 to 12 where the mean is 8; LoRA's start and scale alpha / r_l
    n_j  <- 0.9 n_j + 0.1 ||X_j||_2           after every step, X_j the feature j of the input over all tokens
    S_ij  = |A_ij| n_j                        every 40 steps the lowest half of each row of A becomes 0

This is a *reconstruction* from the abstract (a rank that rises linearly, pruning by magnitude and input statistics
throughout training). The authors' code was not read, and the constants marked unverified are guesses. There is no
persistent mask: a zeroed entry keeps its gradient and its moments and can grow again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from elalora.adapters import InputNorm, LowRankLinear
from elalora.errors import UserError, check_numbers
from elalora.low_rank import LowRankMethod, NamedTensors, draw_kaiming
from elalora.method import Capabilities, MethodFailure, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.processes import distributed
from elalora.resolve import RunSize
from elalora.schedules import Schedule
from elalora.shares import largest_remainder


@dataclass
class PRILoRAConfig:
    """Settings of PRILoRA, all unverified.

    Attributes:
        alpha: numerator of the scale alpha / r_l.
        start, end: ranks of the first and the last layer; only their ratio matters, because the ramp is scaled to
            the budget (4 to 12 means N / 2 to 3N / 2).
        every: steps between two prunings.
        share: share of each row of A that a pruning sets to 0, rounded down to whole entries.
        beta: decay of the input norms.
    """

    alpha: float = 16.0
    start: float = 4.0  # unverified
    end: float = 12.0  # unverified
    every: int = 40  # unverified
    share: float = 0.5  # unverified
    beta: float = 0.9  # unverified

    def __post_init__(self) -> None:
        check_numbers(self, "be above 0", "start", "end")
        check_numbers(self, "lie in [0, 1)", "share", "beta")
        check_numbers(self, "be at least 1", "every")

    def resolved(self, size: RunSize) -> PRILoRAConfig:
        """The settings as they act, see `elalora.resolve`: of start and end only the ratio matters."""
        ratio = Fraction(self.end) / Fraction(self.start)
        same = (4.0, 12.0) if ratio == 3 else (float(ratio.denominator), float(ratio.numerator))
        exact = Fraction(same[1]) / Fraction(same[0]) == ratio
        return replace(self, start=same[0], end=same[1]) if exact else self


class PRILoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        norms: n_j (d_in,) of every matrix by name, from the first step on.
        prunings: how often A was pruned.
    """

    name: ClassVar[str] = "prilora"
    title: ClassVar[str] = "PRILoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(reconstructed=True)
    Config: ClassVar[type] = PRILoRAConfig
    rank_advice: ClassVar[str] = "lower the budget, or make the ramp from method.start to method.end flatter"
    config: PRILoRAConfig
    saved: ClassVar[Sequence[str]] = ("prunings",)

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        assert self.budget is not None
        costs = {name: linear.in_features + linear.out_features for name, linear in linears.items()}
        layers = depths(list(linears))
        total, cap = self.mean_rank * len(linears), self.budget.params
        while True:
            ranks = dict(zip(linears, ramp(layers, total, self.config.start, self.config.end), strict=True))
            # wide matrices in upper layers can cost more than the budget's uniform rank: then the ramp is lowered
            if cap is None or sum(rank * costs[name] for name, rank in ranks.items()) <= cap:
                return ranks
            total -= 1

    def plan(self, total_steps: int, rank_sum: int) -> None:
        if self.config.every > total_steps:
            raise UserError(
                f"method.every={self.config.every} is longer than the run of {total_steps} steps, A would never "
                f"be pruned: type method.every={max(1, total_steps // 10)} or train longer (trainer.max_steps)"
            )

    def after_attach(self) -> None:
        widths = {name: (adapter.in_features,) for name, adapter in self.adapters.items()}
        self.norms = NamedTensors("norm", widths)
        self.trackers = [self.norms]
        self.prunings = 0

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    @contextmanager
    def watching(self, mask: Tensor | None, target_mask: Tensor | None = None) -> Iterator[None]:
        """Collects ||X_j||^2 of every adapted layer over the tokens that are not padding."""
        for name, adapter in self.adapters.items():
            _inputs(adapter).watch(target_mask if sees_target(name) else mask)
        try:
            yield
        finally:
            for adapter in self.adapters.values():
                if adapter.inputs is not None:
                    adapter.inputs.unwatch()

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        self._take_norms(step)
        if (step + 1) % self.config.every == 0:
            for name, adapter in self.adapters.items():
                if not self.norms[name].any():
                    raise MethodFailure(f"'{name}' has seen no input up to step {step}: its inputs do not fit the mask")
                prune_rows(adapter.A[: adapter.rank], self.norms[name], self.config.share)
            self.prunings += 1
        return None

    def _take_norms(self, step: int) -> None:
        if distributed():  # the batches of this process may all have been empty so far
            for adapter in self.adapters.values():
                _inputs(adapter)
        collected = {name: adapter.inputs for name, adapter in self.adapters.items() if adapter.inputs is not None}
        if len(collected) != len(self.adapters):
            raise MethodFailure(f"no input statistics at step {step}: the forward pass ran outside watching()")
        _sum_over_processes(list(collected.values()))
        for name, inputs in collected.items():
            now = inputs.take()
            before = self.norms.get(name, torch.zeros_like(now)).to(now)
            # no bias correction: a factor common to all features changes no comparison
            self.norms[name] = before.mul_(self.config.beta).add_(now, alpha=1 - self.config.beta)

    def finish(self) -> None:
        super().finish()
        if not self.prunings:
            raise NeverActed("A was never pruned: after_step was not called")


def _inputs(adapter: LowRankLinear) -> InputNorm:
    """The statistics of a layer's input; created here and not in `attach`, because now the model is on its device."""
    if adapter.inputs is None:
        adapter.inputs = InputNorm(adapter.A.shape[1], adapter.A)
    return adapter.inputs


def prune_rows(rows: Tensor, norms: Tensor, share: float) -> None:
    """Sets the entries of lowest |A_ij| n_j in each row to 0, in place; of equal entries the first features.

    Args:
        rows: A (r, d_in).
        norms: n (d_in,).
        share: share of each row, rounded down to whole entries.
    """
    score = rows.abs() * norms.to(rows)  # (r, d_in)
    lowest = score.argsort(dim=1, stable=True)[:, : int(share * rows.shape[1])]
    rows.scatter_(1, lowest, 0.0)


def _sum_over_processes(inputs: list[InputNorm]) -> None:
    """Adds the sums of squares of all processes, in one message, so that n_j is that of the global batch."""
    if not distributed():
        return
    flat = torch.cat([i.total for i in inputs])
    dist.all_reduce(flat)
    for i, total in zip(inputs, flat.split([len(i.total) for i in inputs]), strict=True):
        i.total.copy_(total)


def sees_target(name: str) -> bool:
    """Whether a layer reads the decoder's tokens; keys and values of cross-attention read the encoder's."""
    *parents, leaf = name.split(".")
    crossing = bool({"encoder_attn", "EncDecAttention"} & set(parents))
    return "decoder" in parents and not (crossing and leaf in ("k_proj", "v_proj", "k", "v"))


def depths(names: Sequence[str]) -> list[int]:
    """Layer 0..L-1 of every matrix, in order; names that agree up to their first number belong to one layer.

    In an encoder-decoder model the decoder's layers follow the encoder's.
    """
    order: dict[tuple[str, ...], int] = {}
    out = []
    for name in names:
        parts = name.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        out.append(order.setdefault(tuple(parts[: first + 1]), len(order)))
    return out


def ramp(layers: Sequence[int], total: int, start: float, end: float) -> list[int]:
    """Ranks that rise linearly with the layer and sum to `total` exactly, at least 1 each.

    Quotas start + (end - start) l / (L - 1) are scaled to the total; a matrix whose quota is below 1 gets 1 and the
    others share the rest. Then largest remainders: every matrix gets the whole part of its quota, and the remaining
    ranks go to the largest fractions, upper layers first. The arithmetic is exact, so matrices of one layer get the
    same rank if all layers have equally many matrices and no quota is below 1.

    Args:
        layers: layer of every matrix, 0..L-1.
        total: sum of the ranks, at least the number of matrices.
        start: quota of the first layer.
        end: quota of the last layer.
    """
    steps = max(1, max(layers))
    low, rise = Fraction(start), Fraction(end) - Fraction(start)
    wish = [low + rise * layer / steps for layer in layers]  # a single layer has no ramp: its quota becomes the total
    return largest_remainder(wish, total, first=lambda place: -layers[place])
