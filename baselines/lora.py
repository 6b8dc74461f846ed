"""LoRA: a fixed low-rank update (Hu et al., arXiv 2106.09685).

    W = W0 + (alpha / r) B A        A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B = 0       (section 4.1)

The initialisation is that of the authors' library (Kaiming-uniform with a = sqrt 5); the paper's text says Gaussian.
`rslora` scales by alpha / sqrt(r) instead (Kalajdzievski, arXiv 2312.03732, theorem 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from elalora.adapters import LowRankLinear
from elalora.errors import check_numbers
from elalora.low_rank import LowRankMethod, draw_kaiming
from elalora.resolve import RunSize


@dataclass
class LoRAConfig:
    """Settings of LoRA.

    Attributes:
        alpha: numerator of the scale.
        rslora: scale alpha / sqrt(r) instead of alpha / r.
        dropout: probability of dropping an input of the update.
    """

    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "lie in [0, 1)", "dropout")

    def resolved(self, size: RunSize) -> LoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        return replace(self, rslora=self.rslora and size.rank != 1)


class LoRA(LowRankMethod):
    """The same rank in every matrix, from the first step to the last."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    Config: ClassVar[type] = LoRAConfig
    config: LoRAConfig

    def scale(self, rank: int) -> float:
        return self.config.alpha / (math.sqrt(rank) if self.config.rslora else rank)

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)
