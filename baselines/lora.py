"""LoRA: a fixed low-rank update (Hu et al., arXiv 2106.09685).

    W = W0 + (alpha / r) B A        A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B = 0       (section 4.1)

The initialisation is that of the authors' library (Kaiming-uniform with a = sqrt 5); the paper's text says Gaussian.
`rslora` scales by alpha / sqrt(r) instead (Kalajdzievski, arXiv 2312.03732, theorem 3.2). With a layout
(`pattern`, `ranks_from`) r stays the budget's rank in all matrices, so that only the ranks differ from LoRA's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from elalora.adapters import LowRankLinear
from elalora.errors import check_numbers
from elalora.low_rank import draw_kaiming
from elalora.resolve import RunSize, added

from .fixed_ranks import FixedRanks, resolved_layout, set_layout


@dataclass
class LoRAConfig:
    """Settings of LoRA.

    Attributes:
        alpha: numerator of the scale.
        rslora: scale alpha / sqrt(r) instead of alpha / r.
        dropout: probability of dropping an input of the update.
        pattern: a rule, or a JSON file, that spreads the budget's ranks over the matrices (`elalora.layouts`).
        ranks_from: the run whose final ranks are used, before the rule: its folder, its id, or the name of a method.
        shuffle: permutes these ranks within each matrix type.
    """

    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0
    pattern: str | None = added(None)
    ranks_from: str | None = added(None)
    shuffle: bool = added(False)

    def __post_init__(self) -> None:
        check_numbers(self, "lie in [0, 1)", "dropout")
        set_layout(self)

    def resolved(self, size: RunSize) -> LoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        return replace(self, rslora=self.rslora and size.rank != 1, **resolved_layout(self))


class LoRA(FixedRanks):
    """The same rank in every matrix, or those of a layout, from the first step to the last."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    Config: ClassVar[type] = LoRAConfig
    config: LoRAConfig

    def scale(self, rank: int) -> float:
        return self.config.alpha / (math.sqrt(self.mean_rank) if self.config.rslora else self.mean_rank)

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)
