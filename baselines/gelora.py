"""GeLoRA: ranks from the intrinsic dimension of hidden states, set once before training (arXiv 2412.09250).

    d_0, d_1, ..., d_L   intrinsic dimension of the hidden states before and after each block, by TwoNN
    r_l = max(ceil(d_l - d_(l-1)), 0) + 1         for every adapted matrix of block l

A block whose output needs more dimensions than its input needs at least as many ranks. TwoNN (Facco et al. 2017,
doi 10.1038/s41598-017-11873-y) looks at the ratio of the distances to a point's two nearest neighbours, whose logarithm
is exponentially distributed with rate d.

This is a *reconstruction* from the abstract and public reviews: the paper's text and code were not at hand. The
rounding, the added 1 and the vector of a sequence (mean over its tokens) are assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.errors import UserError, check_choices, check_numbers
from elalora.measured import MeasuredRanks, token_mask
from elalora.method import Capabilities
from elalora.names import layer_of

from .prilora import sees_target

ENOUGH = 1_000  # sequences from which on a difference of one rank is more than the estimator's noise
SAME = 1e-6  # two points nearer than this, relative to the mean distance, are one


@dataclass
class GeLoRAConfig:
    """Settings of GeLoRA.

    Attributes:
        ranks: "matched" (in proportion to max(d_l - d_(l-1), 0) + 1, with the budget's sum) or "own" (the formula).
        alpha: numerator of the scale alpha / N, the same in every matrix.
        samples: sequences whose hidden states are read; fewer where the first epoch has fewer.
        pooling: what stands for a sequence, the "mean" over its tokens or the "first" of them.
        estimator: "fit" (a line through the origin, without the largest tenth) or "mle".
    """

    ranks: str = "matched"
    alpha: float = 16.0
    samples: int = 2_000
    pooling: str = "mean"
    estimator: str = "fit"

    def __post_init__(self) -> None:
        check_choices(self, ranks=("matched", "own"), pooling=("mean", "first"), estimator=("fit", "mle"))
        check_numbers(self, "be at least 1", "samples")


class GeLoRA(MeasuredRanks):
    """See the module's docstring.

    Attributes:
        points: sequences that the dimensions were estimated from.
    """

    name: ClassVar[str] = "gelora"
    title: ClassVar[str] = "GeLoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(reconstructed=True)
    saved: ClassVar[Sequence[str]] = ("points",)
    Config: ClassVar[type] = GeLoRAConfig
    config: GeLoRAConfig

    @property
    def label(self) -> str:
        return self.title + " own ranks" * (not self.held)

    @property
    def held(self) -> bool:
        return self.config.ranks == "matched"

    def scale(self, rank: int) -> float:
        return self.config.alpha / self.mean_rank

    def after_attach(self) -> None:
        self.points = 0

    def measure(self, batches: Iterable[dict[str, Tensor]]) -> Mapping[str, int]:
        names = list(self.adapters)
        blocks = {name: layer_of(name) for name in names}
        states = hidden_states(self.model, list(dict.fromkeys(blocks.values())), batches, self.config)
        self.points = len(next(iter(states.values()))[0])
        growth, after, end = {}, torch.empty(0), math.nan
        for block, (before, now) in states.items():
            start = end if torch.equal(before, after) else self._dimension(before)  # blocks mostly follow each other
            after, end = now, self._dimension(now)
            growth[block] = end - start
        self.start_scores = {name: growth[blocks[name]] for name in names}
        if self.held:
            return self.allocate({name: max(self.start_scores[name], 0.0) + 1 for name in names})
        limits = {name: min(adapter.in_features, adapter.out_features) for name, adapter in self.adapters.items()}
        return {name: min(own_rank(growth[blocks[name]]), limits[name]) for name in names}

    def _dimension(self, points: Tensor) -> float:
        return two_nn(points, self.config.estimator)

    def remarks(self) -> list[str]:
        few = [f"ranks from {self.points} sequences"] if self.points < ENOUGH else []
        return super().remarks() + few


def own_rank(growth: float) -> int:
    """The rank of a block's matrices from d_l - d_(l-1)."""
    return max(math.ceil(growth), 0) + 1


def two_nn(points: Tensor, estimator: str = "fit") -> float:
    """TwoNN intrinsic dimension of a set of points.

    With mu the distance to the second nearest neighbour over that to the nearest, P(mu > x) = x^-d. "mle" is
    (n - 1) / sum(log mu); "fit" the slope through the origin of -log(1 - i / n) over the sorted log mu_i, without the
    largest tenth. Both are too low for sets of high dimension: about 8.6 for a cube of dimension 10, and 15 for one of
    dimension 20, from 2,000 points.

    Args:
        points: (n, width); of points that coincide, one counts.
        estimator: "fit" or "mle".

    Raises:
        UserError: there are fewer than 10 distinct points.
    """
    points = points.double() - points.double().mean(0)  # centred, the product form of cdist loses no digits that matter
    distances = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist")  # (n, n)
    distinct = ~(distances <= SAME * distances.mean()).tril(-1).any(1)
    if distinct.sum() < 10:
        raise UserError(
            f"the intrinsic dimension of {int(distinct.sum())} distinct points cannot be estimated, 10 is the least: "
            "raise method.samples, or train on more items"
        )
    distances = distances[distinct][:, distinct].fill_diagonal_(math.inf)
    nearest, second = distances.topk(2, largest=False).values.T
    ratios = (second / nearest).log().sort().values
    n = len(ratios)
    if estimator == "mle":
        return float((n - 1) / ratios.sum())
    kept = ratios[: int(0.9 * n)]
    survival = -torch.log1p(-torch.arange(1, len(kept) + 1, dtype=kept.dtype) / n)
    return float(kept @ survival / (kept @ kept))


@torch.no_grad()
def hidden_states(
    model: nn.Module, blocks: Sequence[str], batches: Iterable[dict[str, Tensor]], config: GeLoRAConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """A vector of every sequence before and after each block, (n, width) each.

    Args:
        model: in evaluation mode.
        blocks: names of modules that map hidden states (batch, tokens, width), or (batch, width), to such.
        batches: keyword arguments of the model.
        config: gives the number of sequences, and what stands for one.
    """
    vectors: dict[str, tuple[list[Tensor], list[Tensor]]] = {block: ([], []) for block in blocks}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(block: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        out = output if isinstance(output, Tensor) else output[0]
        seen[block] = (seen[block][0] if block in seen else given, out)  # a block may run several times

    count = 0
    with ExitStack() as hooks:
        for block in blocks:
            handle = model.get_submodule(block).register_forward_hook(partial(look, block), with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in batches:
            model(**batch)
            for block, states in seen.items():
                mask = token_mask(batch, sees_target(f"{block}."))
                for rows, hidden in zip(vectors[block], states, strict=True):
                    rows.append(_pooled(hidden, mask, config.pooling))
            seen.clear()
            count += len(next(iter(batch.values())))
            if count >= config.samples:
                break
    n = config.samples
    return {block: (torch.cat(before)[:n], torch.cat(after)[:n]) for block, (before, after) in vectors.items()}


def _pooled(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector of every sequence, (batch, width), on the CPU."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if hidden.ndim == 2:
        return hidden.cpu()
    if mask is None or mask.shape != hidden.shape[:2]:
        mask = torch.ones(hidden.shape[:2], device=hidden.device)
    weights = mask.to(hidden)[..., None]  # (batch, tokens, 1)
    if pooling == "first":  # padding may be on the left
        return hidden[torch.arange(len(hidden)), weights[..., 0].argmax(1)].cpu()
    return ((hidden * weights).sum(1) / weights.sum(1)).cpu()
