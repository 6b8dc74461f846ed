"""One LoRA for every increment of a sequence: all of them kept apart until they are merged, or kept orthogonal.

    task_lora   W0 + s B_t A_t while increment t trains; read as W0 + (s / t) sum_i B_i A_i, or their sum
    o_lora      W0 + s sum_{i < t} B_i A_i + s B_t A_t, with lambda sum_{i < t} |A_i A_t^T|^2 added to the loss

The first is task arithmetic over the increments. The second follows the idea of O-LoRA (arXiv 2310.14152), whose text
and code were not at hand: an increment learns in directions of the input that the earlier ones did not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.chain import ChainLinear, ChainMethod
from elalora.directions import Directions
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import draw_kaiming
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW


@dataclass
class PiecesConfig:
    """Settings that both methods share.

    Attributes:
        alpha: numerator of the scale alpha / r.
        dropout: probability of dropping an input of the piece that trains.
    """

    alpha: float = 16.0
    dropout: float = 0.0
    rewarm: ClassVar[bool] = False
    matched: ClassVar[str] = "trained"

    def __post_init__(self) -> None:
        check_numbers(self, "lie in [0, 1)", "dropout")


@dataclass
class TaskLoRAConfig(PiecesConfig):
    """Settings of one LoRA for each increment; the others are those of `PiecesConfig`.

    Attributes:
        merge: how the pieces add up when the model is read: "mean" or "sum".
    """

    merge: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, merge=("mean", "sum"))


@dataclass
class OLoRAConfig(PiecesConfig):
    """Settings of O-LoRA; the others are those of `PiecesConfig`.

    Attributes:
        orth_weight: lambda, of the penalty on the overlap with earlier pieces.
    """

    orth_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "not be negative", "orth_weight")


class IncrementPieces(ChainMethod):
    """A chain whose pieces are the increments of a sequence; in an ordinary run there is one."""

    capabilities: ClassVar[Capabilities] = Capabilities(budget="trained")

    def fewest(self) -> int:
        return self.increments

    def pieces(self, linears: Mapping[str, nn.Linear]) -> list[list[int]]:
        return [list(range(len(linears)))] * self.increments

    def plan(self, total_steps: int, rank_sum: int) -> None:
        super().plan(total_steps, rank_sum)
        self.due = frozenset()  # the sequence says when a piece ends

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    def begin_increment(
        self, number: int, step: int, optimizer: RowwiseAdamW, batches: Iterable[dict[str, Tensor]]
    ) -> Round | None:
        optimizer.forget()
        return self.advance(step)


class TaskLinear(ChainLinear):
    """A layer whose pieces train alone and are read together.

    Attributes:
        merged_weight: factor on every piece when the layer is read.
        together: whether all pieces are read in training mode too, once training is over.
    """

    def __init__(self, base: nn.Linear, directions: Directions, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, directions, scale, dropout)
        self.merged_weight, self.together = 1.0, False

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., d_in) to (..., d_out)."""
        if self.training and not self.together:
            return LowRankLinear.forward(self, x)
        if self.merged_weight == 1.0:
            return super().forward(x)
        alone = self.base(x)
        piece = self.updated(alone.view(-1, alone.shape[-1]), x.reshape(-1, x.shape[-1])).view_as(alone)
        return alone + self.merged_weight * (self.with_pieces(piece, x) - alone)

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        a, b = super().lora_factors()
        return a, self.merged_weight * b


class TaskLoRA(IncrementPieces):
    """One LoRA for each increment, trained from the frozen weights and merged when the model is read."""

    name: ClassVar[str] = "task_lora"
    title: ClassVar[str] = "LoRA per task, merged"
    Config: ClassVar[type] = TaskLoRAConfig
    config: TaskLoRAConfig
    layer: ClassVar[type[ChainLinear]] = TaskLinear

    def _fix(self) -> None:
        super()._fix()
        for adapter in self.adapters.values():
            assert isinstance(adapter, TaskLinear)
            adapter.merged_weight = 1 / (self.piece + 1) if self.config.merge == "mean" else 1.0

    def finish(self) -> None:
        super().finish()
        for adapter in self.adapters.values():
            assert isinstance(adapter, TaskLinear)
            adapter.together = True


class OLoRA(IncrementPieces):
    """One LoRA for each increment, in directions that the earlier ones leave free."""

    name: ClassVar[str] = "o_lora"
    title: ClassVar[str] = "O-LoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(budget="trained", reconstructed=True)
    Config: ClassVar[type] = OLoRAConfig
    config: OLoRAConfig

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        for name, linear in linears.items():
            width, rank = min(linear.in_features, linear.out_features), self.mean_rank
            if rank * self.increments > width and self.increments > 1:
                raise UserError(
                    f"method={self.name}: {self.increments} increments of rank {rank} do not fit the {width} "
                    f"directions of '{name}': type budget=r{max(1, width // self.increments)} or less"
                )
        return super().initial_ranks(linears)

    def penalty(self) -> Tensor | None:
        if not self.config.orth_weight or not self.piece:
            return None
        overlaps = [(a.frozen_A[: a.merged] @ a.A[: a.rank].T).square().sum() for a in self.adapters.values()]
        return self.config.orth_weight * torch.stack(overlaps).sum()
