"""XGBLoRA: gradient boosting with updates of rank 1 on random layers (arXiv 2410.19694).

    W_{t+1} = W_t + alpha b_t a_t         t = 0 .. T_b - 1, in all adapted matrices of L_s layers drawn from L

Booster t trains T / T_b steps while everything else is frozen, then stays, and the next is drawn: other layers, a_t
fresh, b_t = 0. The default counts boosters so that all of them together have the rank sum of the budget.

No text of the paper was at hand: this follows its abstract and the reviews of it. Their layers of a booster (11 of 32)
are kept as a share; the norm penalty of its loss, of unknown weight, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from elalora.adapters import LowRankLinear
from elalora.chain import MATCHED, ChainMethod
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import check_rank, draw_kaiming
from elalora.method import Capabilities
from elalora.names import layer_of
from elalora.resolve import RunSize, unread


@dataclass
class XGBLoRAConfig:
    """Settings of XGBLoRA.

    Attributes:
        alpha: scale of every booster.
        layers: L_s, layers of a booster; None is a third of the model's, rounded up.
        matched: what the budget bounds: "final", the ranks of all boosters together, which then fix their number, or
            "trained", those of one booster, which any budget allows.
        boosters: T_b with matched="trained".
        rewarm: a learning-rate schedule for every booster instead of one for the run.
        dropout: probability of dropping an input of the booster that trains.
    """

    alpha: float = 16.0
    layers: int | None = None
    matched: str = "final"
    boosters: int = 20
    rewarm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, matched=MATCHED)
        check_numbers(self, "be above 0", "layers", "boosters")
        check_numbers(self, "lie in [0, 1)", "dropout")

    def resolved(self, size: RunSize) -> XGBLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        return replace(self, **unread(self, *(["boosters"] if self.matched == "final" else [])))


class XGBLoRA(ChainMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "xgblora"
    title: ClassVar[str] = "XGBLoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="growing", reconstructed=True)
    Config: ClassVar[type] = XGBLoRAConfig
    config: XGBLoRAConfig

    @property
    def shorter(self) -> str:
        return "raise method.layers, lower the budget" if self.final else "lower method.boosters"

    def fewest(self) -> int:
        assert self.budget is not None
        return (self.budget.rank or 1) if self.final else self.config.boosters

    def piece_rank(self) -> int:
        return 1

    @property
    def final(self) -> bool:
        """Whether the budget bounds the sum of all boosters."""
        return self.config.matched == "final"

    def pieces(self, linears: Mapping[str, nn.Linear]) -> list[list[int]]:
        layers: dict[str, list[int]] = {}
        for number, name in enumerate(linears):
            layers.setdefault(layer_of(name), []).append(number)
        for name, linear in linears.items() if self.final else ():
            check_rank(self.mean_rank, name, linear)
        members, drawn = list(layers.values()), self.config.layers or math.ceil(len(layers) / 3)
        if drawn > len(layers):
            raise UserError(f"method.layers={drawn} is above the model's {len(layers)} adapted layers: lower it")
        left = _Left(self, list(linears.values()))
        pieces: list[list[int]] = []
        while not self.final and len(pieces) < self.config.boosters or self.final and not left.spent:
            order = torch.randperm(len(layers), generator=self.generator)[:drawn].tolist()
            matrices = [number for layer in order for number in members[layer]]
            if piece := sorted(number for number in matrices if not self.final or left.take(number)):
                pieces.append(piece)
        return pieces

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)


class _Left:
    """What the budget leaves for further boosters: no matrix gets more than a full rank, no draw more than is left."""

    def __init__(self, method: XGBLoRA, linears: list[nn.Linear]) -> None:
        assert method.budget is not None
        sizes = [(linear.in_features, linear.out_features) for linear in linears]
        self.full = [min(size) for size in sizes]
        self.price = [1 if method.budget.params is None else sum(size) for size in sizes]
        self.left = method.budget.params or method.mean_rank * len(linears)

    @property
    def spent(self) -> bool:
        """Whether no matrix can take part in a further booster."""
        return all(not full or price > self.left for full, price in zip(self.full, self.price, strict=True))

    def take(self, number: int) -> bool:
        """Whether a matrix takes part in the next booster; if it does, its direction is paid."""
        taken = self.full[number] > 0 and self.price[number] <= self.left
        self.full[number] -= taken
        self.left -= self.price[number] * taken
        return taken
