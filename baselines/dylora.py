"""DyLoRA: one adapter whose first b ranks are an adapter of rank b, for every b up to N (arXiv 2210.07558).

    W_b = W0 + (alpha / b) B[:, :b] A[:b]          A Kaiming-uniform, B = 0, b = 1 .. N

At every optimizer step one b is drawn uniformly for the whole model, the forward pass uses the first b ranks, and rank
b alone is trained (`frozen`), or all of them up to b. After training the model can be read at every b. The result of a
run is its reading at b = N, which has the budget; the others are in the same result.

The paper's text was not at hand: formulas and constants are those of the authors' code. There all ranks of a matrix are
one tensor, so that Adam's moments and weight decay move the ranks that were not drawn, too (`variant=official`).
`variant=paper` leaves them, their moments and their step counters alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.directions import Directions
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import LowRankMethod, draw_kaiming
from elalora.method import Capabilities, MethodFailure, Round
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule


@dataclass
class DyLoRAConfig:
    """Settings of DyLoRA.

    Attributes:
        variant: "paper" or "official", see the module's docstring.
        alpha: numerator of the scale alpha / b.
        frozen: trains rank b alone, as the authors' scripts do; false trains all ranks up to b.
        fixed: trains and reads this b alone; None draws one for each step.
    """

    variant: str = "paper"
    alpha: float = 16.0
    frozen: bool = True
    fixed: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"))
        check_numbers(self, "be at least 1", "fixed")


class NestedLinear(LowRankLinear):
    """An adapted matrix of which only the first ranks are used.

    Attributes:
        alpha: numerator of the scale.
        frozen: whether the ranks before the last one used keep from training.
        drawn: b of training; reading: b of everything else.
    """

    def __init__(self, base: nn.Linear, directions: Directions, alpha: float, frozen: bool) -> None:
        super().__init__(base, directions, alpha / directions.rank, singular=False)
        self.alpha, self.frozen = alpha, frozen
        self.drawn = self.reading = directions.rank

    @property
    def _rows(self) -> int:
        return self.drawn if self.training else self.reading

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.alpha / self._rows
        return super().forward(x)

    def operands(self) -> tuple[Tensor, Tensor]:
        b = self._rows
        if not self.frozen or not self.training or b == 1:
            return self.A, self.B
        a, b_rows = (torch.cat([factor[: b - 1].detach(), factor[b - 1 : b]]) for factor in (self.A, self.B))
        return a, b_rows

    @torch.no_grad()
    def take(self, a: Tensor, b: Tensor) -> None:
        self.scale = self.alpha / self.rank
        self._take_unchanged(a, b)

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        b = self.reading
        return self.A[:b].clone(), (self.B[:b] * (self.alpha / b)).T.contiguous()


class DyLoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        drawn: b of the step to come.
        draws: how often each b was trained.
    """

    name: ClassVar[str] = "dylora"
    title: ClassVar[str] = "DyLoRA"
    saved: ClassVar[Sequence[str]] = ("drawn", "draws")
    capabilities: ClassVar[Capabilities] = Capabilities()
    Config: ClassVar[type] = DyLoRAConfig
    config: DyLoRAConfig
    adapters: dict[str, NestedLinear]  # type: ignore[assignment]

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        if (self.config.fixed or 0) > self.mean_rank:
            raise UserError(f"method.fixed={self.config.fixed} must be at most the budget's rank {self.mean_rank}")
        return super().initial_ranks(linears)

    def _adapter(self, linear: nn.Linear, rank: int) -> NestedLinear:
        return NestedLinear(linear, Directions(rank, rank), self.config.alpha, self.config.frozen)

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    def after_attach(self) -> None:
        self.draws = [0] * self.mean_rank
        self._read(self._largest)
        self._use(self._draw())

    @property
    def _largest(self) -> int:
        """The b of the result."""
        return self.config.fixed or self.mean_rank

    def _draw(self) -> int:
        """The b of a step; every process draws the same."""
        if self.config.fixed is not None:
            return self.config.fixed
        return int(torch.randint(1, self.mean_rank + 1, (), generator=self.generator))

    def _use(self, b: int) -> None:
        """Trains at b from now on."""
        self.drawn = b
        for adapter in self.adapters.values():
            adapter.drawn = b
            if self.config.variant == "paper":
                adapter.directions.moving = slice(b - 1 if self.config.frozen else 0, b)

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        self.draws[self.drawn - 1] += 1
        self._use(self._draw())
        return None

    def finish(self) -> None:
        if not any(self.draws):
            raise MethodFailure("no rank was drawn: after_step was not called")
        self._use(self._largest)
        super().finish()

    @property
    def reading_ranks(self) -> tuple[int, ...]:
        return tuple(range(1, self.mean_rank + 1)) if self.config.fixed is None else ()

    @contextmanager
    def read_at(self, rank: int) -> Iterator[None]:
        try:
            self._read(rank)
            yield
        finally:
            self._read(self._largest)

    def _read(self, rank: int) -> None:
        for adapter in self.adapters.values():
            adapter.reading = rank

    def ranks(self) -> dict[str, int]:
        """The b at which the model is read now, for every matrix."""
        return {name: adapter.reading for name, adapter in self.adapters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if not 1 <= self.drawn <= self.mean_rank or len(self.draws) != self.mean_rank:
            raise ValueError("the draws do not fit the ranks")
        self._use(self.drawn)
