"""RAC-LoRA (arXiv 2410.08305) and Chain of LoRA (arXiv 2401.04151): blocks of LoRA, each added to the weights.

    W_{t+1} = W_t + (alpha / r) B_t A_t         for t = 0 .. T_b - 1, A_t drawn, B_t = 0

Chain of LoRA trains both factors of a block. RAC-LoRA trains one: with side=right A_t is a random sketch that stays and
B_t trains from 0; with side=left B_t is the sketch and A_t trains. One block of RAC-LoRA is Asymmetric LoRA. For an
exact solver a block moves W by the gradient times H = A_t^T (A_t A_t^T)^+ A_t, whose mean over draws is (r / d_in) I.
That is why RAC-LoRA converges where LoRA and Chain of LoRA need not: no direction stays out of reach.

Both papers' texts were not at hand: blocks, sides and the frozen sketch are those of RAC-LoRA's abstract and reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.chain import MATCHED, ChainMethod
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import draw_kaiming
from elalora.method import Capabilities
from elalora.resolve import RunSize, unread

FIXED = {"right": "A", "left": "B"}  # the factor that is the sketch


@dataclass
class ChainOfLoRAConfig:
    """Settings of Chain of LoRA.

    Attributes:
        alpha: numerator of the scale alpha / r, r being the rank of a block.
        blocks: T_b, trained one after another for T / T_b steps each.
        rewarm: a learning-rate schedule for every block instead of one for the run.
        matched: what the budget bounds: "trained", the ranks of a block, or "final", those of all blocks together.
        dropout: probability of dropping an input of the block that trains.
    """

    alpha: float = 16.0
    blocks: int = 10
    rewarm: bool = False
    matched: str = "trained"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, matched=MATCHED)
        check_numbers(self, "be above 0", "blocks")
        check_numbers(self, "lie in [0, 1)", "dropout")

    def resolved(self, size: RunSize) -> ChainOfLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        return replace(self, **unread(self, *(["rewarm", "matched"] if self.blocks == 1 else [])))


@dataclass
class RACLoRAConfig(ChainOfLoRAConfig):
    """Settings of RAC-LoRA; the others are those of `ChainOfLoRAConfig`.

    Attributes:
        side: "right" (A is the sketch, B trains), "left" (B is the sketch), or "bernoulli", drawn for every block.
        p: probability of "right" in a bernoulli block.
        orthonormal: the sketch's rows are orthonormal, as in the theory; otherwise they are Gaussian with mean square
            norm 1.
    """

    side: str = "right"
    p: float = 0.5
    orthonormal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, side=(*FIXED, "bernoulli"))
        check_numbers(self, "lie in [0, 1]", "p")

    def resolved(self, size: RunSize) -> RACLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        certain = {0.0: "left", 1.0: "right"}.get(self.p, "bernoulli") if self.side == "bernoulli" else self.side
        read = super().resolved(size)
        assert isinstance(read, RACLoRAConfig)
        return replace(read, side=certain, **unread(self, *([] if certain == "bernoulli" else ["p"])))


class ChainOfLoRA(ChainMethod):
    """Blocks of LoRA, both factors of which train."""

    name: ClassVar[str] = "chain_lora"
    title: ClassVar[str] = "Chain of LoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="trained", reconstructed=True)
    Config: ClassVar[type] = ChainOfLoRAConfig
    config: ChainOfLoRAConfig

    def check_length(self, total_steps: int) -> None:
        super().check_length(total_steps)
        if self.budget is not None and self.budget.rank is not None:
            self.piece_rank()

    def fewest(self) -> int:
        return self.config.blocks

    def piece_rank(self) -> int:
        c = self.config
        if c.matched == "trained":
            return self.mean_rank
        if self.mean_rank % c.blocks:
            fitting = [n for n in range(1, self.mean_rank + 1) if self.mean_rank % n == 0]
            raise UserError(
                f"method.matched=final needs a rank that method.blocks={c.blocks} divides, and the budget is "
                f"{self.mean_rank}: type method.blocks={fitting[-1]}, or another divisor"
            )
        return self.mean_rank // c.blocks

    def pieces(self, linears: Mapping[str, nn.Linear]) -> list[list[int]]:
        return [list(range(len(linears)))] * self.config.blocks

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)


class RACLoRA(ChainOfLoRA):
    """Blocks of LoRA with one random factor, which stays."""

    name: ClassVar[str] = "rac_lora"
    title: ClassVar[str] = "RAC-LoRA"
    Config: ClassVar[type] = RACLoRAConfig
    config: RACLoRAConfig
    saved = (*ChainMethod.saved, "sides")

    @property
    def label(self) -> str:
        return self.title if self.config.blocks > 1 else "Asymmetric LoRA"

    def pieces(self, linears: Mapping[str, nn.Linear]) -> list[list[int]]:
        c = self.config
        coins = torch.rand(c.blocks, generator=self.generator).tolist()
        self.sides = [("right" if coin < c.p else "left") if c.side == "bernoulli" else c.side for coin in coins]
        return super().pieces(linears)

    def fixed(self) -> str:
        return FIXED[self.sides[self.piece]]

    def initialise(self, adapter: LowRankLinear) -> None:
        sketch = adapter.A if self.fixed() == "A" else adapter.B
        draw_sketch(sketch, adapter.rank, self.config.orthonormal, self.generator)


@torch.no_grad()
def draw_sketch(tensor: Tensor, rows: int, orthonormal: bool, generator: torch.Generator) -> None:
    """Fills the first rows with a random sketch, drawn on the CPU.

    Args:
        tensor: (capacity, d).
        rows: at most d.
        orthonormal: rows that span a uniformly drawn subspace; otherwise rows of N(0, 1/d).
        generator: of the draws.
    """
    drawn = torch.randn(rows, tensor.shape[1], generator=generator)
    if orthonormal:
        drawn = torch.linalg.qr(drawn.double().T).Q.T
    else:
        drawn = drawn * tensor.shape[1] ** -0.5
    tensor[:rows].copy_(drawn)
