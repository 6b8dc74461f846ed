"""L1RA: gates under an L1 penalty free ranks, which matrices that lost none receive (arXiv 2509.04884).

    W = W0 + (alpha / N) B diag(c) A           A ~ N(0, 1/N^2), B = 0, c = 1, 0 <= c <= 1
    c <- max(c - eta_c lambda, 0)              after each AdamW step of c, which has its own constant rate eta_c

Every tenth of the run, directions with c < 1e-10 are pruned, and as many are given to the matrices that lost none, one
each in turn, first those whose smallest gate is largest. A new direction has A ~ N(0, 1/N^2), B = 0 and c = 1, so it
changes no output.

A gate without a gradient falls by eta_c lambda T in a run of T steps. The authors' 2e-2 and 1e-3 would need 50,000
steps, so here lambda is 1 / (eta_c T) unless it is set.

The paper's text was not at hand: formulas and constants are those of the authors' code, and `variant=paper` is that
code without its accidents R1, R4 and R5 (docs/methods/l1ra.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.directions import Directions
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import LowRankMethod, apart, draw_normal
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import split
from elalora.resolve import RunSize
from elalora.schedules import Schedule
from elalora.shares import in_turns

SWITCHES = ("R1", "R4", "R5")


@dataclass
class L1RAConfig:
    """Settings of L1RA; None means a default that scales with budget or run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / N.
        gate_lr: eta_c, the learning rate of the gates, constant over the run.
        l1: lambda, how much a gate shrinks per step over eta_c; None is 1 / (eta_c T).
        interval: steps between rounds; None is max(1, 0.1 T), rounded down.
        threshold: gates below it are pruned.
        capacity: slots of a matrix; None is max(2N, N + 8), or without a limit in "official".
        dropout: probability of dropping an input of the update.
        R1: a round that prunes drops all moments of the optimizer.
        R4: a matrix keeps its last direction even if its gate is 0.
        R5: freed directions are lost if every matrix lost one. None takes the variant's value: false in "paper", true
            in "official".
    """

    variant: str = "paper"
    alpha: float = 16.0
    gate_lr: float = 2e-2
    l1: float | None = None
    interval: int | None = None
    threshold: float = 1e-10
    capacity: int | None = None
    dropout: float = 0.0
    R1: bool | None = None
    R4: bool | None = None
    R5: bool | None = None

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"))
        check_numbers(self, "not be negative", "gate_lr", "l1", "threshold")
        check_numbers(self, "be at least 1", "interval", "capacity")
        check_numbers(self, "lie in [0, 1)", "dropout")

    def resolved(self, size: RunSize) -> L1RAConfig:
        """The settings as they act, see `elalora.resolve`."""
        official = self.variant == "official"
        l1, interval, capacity = self.l1, self.interval, self.capacity
        if size.steps is not None:
            interval = max(1, size.steps // 10) if interval is None else interval
            l1 = 1 / (self.gate_lr * size.steps) if l1 is None and self.gate_lr else l1
        if size.rank is not None and not (official and capacity is None):
            capacity = max(size.rank, capacity or max(2 * size.rank, size.rank + 8))
        switches: dict[str, Any] = {
            name: official if getattr(self, name) is None else getattr(self, name) for name in SWITCHES
        }
        return replace(self, l1=l1 if self.gate_lr else None, interval=interval, capacity=capacity, **switches)


class GatedLinear(LowRankLinear):
    """An adapted matrix whose E are gates in [0, 1]."""

    @torch.no_grad()
    def take(self, a: Tensor, b: Tensor) -> None:
        self._take_unchanged(a, b)  # all gates are 1, so that B alone has the size of the update


class L1RA(LowRankMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "l1ra"
    title: ClassVar[str] = "L1RA"
    singular: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="at_most")
    Config: ClassVar[type] = L1RAConfig
    config: L1RAConfig

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def plan(self, total_steps: int, rank_sum: int) -> None:
        interval = self.config.resolved(RunSize(total_steps)).interval
        assert interval is not None
        self.interval, self._rank_sum = interval, rank_sum
        if self.interval >= total_steps:
            raise UserError(
                f"method.interval={self.interval} must be below the run's {total_steps} steps, or no round happens: "
                f"type method.interval={max(1, total_steps // 10)} or train longer (trainer.max_steps)"
            )

    def capacity(self, rank: int) -> int:
        return self._rank_sum if self.config.capacity is None else self.config.capacity

    def _adapter(self, linear: nn.Linear, rank: int) -> GatedLinear:
        slots = Directions(min(linear.in_features, linear.out_features, self.capacity(rank)), rank)
        return GatedLinear(linear, slots, self.scale(rank), singular=True, dropout=self.config.dropout)

    def initialise(self, adapter: LowRankLinear) -> None:
        assert adapter.E is not None
        draw_normal(adapter.A, adapter.rank, 1 / self.mean_rank, self.generator)
        adapter.E.data[: adapter.rank] = 1.0

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """As in the base class, with the gates in a separate group: a constant rate, no decay."""
        gates = [adapter.E for adapter in self.adapters.values() if adapter.E is not None]
        groups = [{**group, "constant_rate": False} for group in super().groups(model, lr, weight_decay)]
        return apart(groups, gates, lr=self.config.gate_lr, weight_decay=0.0, constant_rate=True)

    def due(self, done: int) -> bool:
        """Whether a round follows after `done` steps; none does at the end of the run."""
        return done % self.interval == 0 and 0 < done < self.total_steps

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        shrink(self._gates(), self.config.gate_lr * (self.config.l1 or 0.0))
        round_ = None
        if self.due(step + 1):  # before gates above 1 are cut, as in the code: their order counts
            round_ = self._round(step)
            self.rounds_seen.append(round_)
            if round_.pruned and self.config.R1:
                optimizer.forget()
        torch._foreach_clamp_max_(self._gates(), 1.0)
        return round_

    def _gates(self) -> list[Tensor]:
        return [adapter.E.detach()[: adapter.rank] for adapter in self.adapters.values() if adapter.E is not None]

    @torch.no_grad()
    def _round(self, step: int) -> Round:
        gates = split(torch.cat(self._gates()).tolist(), self.ranks())
        pruned = [(name, slot) for name, row in gates.items() for slot in self._dead(row)]
        self.prune(pruned)
        grown = self._receivers(gates, pruned)
        for name in grown:
            adapter = self.adapters[name]
            assert adapter.E is not None
            slot = adapter.directions.be_born()
            draw_normal(adapter.A[slot : slot + 1], 1, 1 / self.mean_rank, self.generator)
            adapter.E[slot] = 1.0
        self.check_budget()
        return Round(step, self.ranks(), pruned, grown, gates, {"lost": len(pruned) - len(grown)})

    def _dead(self, gates: Sequence[float]) -> list[int]:
        """The slots of a matrix to prune."""
        slots = [slot for slot, gate in enumerate(gates) if gate < self.config.threshold]
        return slots[:-1] if self.config.R4 and len(slots) == len(gates) else slots

    def _receivers(self, gates: Mapping[str, Sequence[float]], pruned: Sequence[tuple[str, int]]) -> list[str]:
        """The matrices that gain, one entry for each direction, as far as slots and budget allow."""
        lost = {name for name, row in gates.items() if min(row, default=0.0) < self.config.threshold}
        order = sorted(gates, key=lambda name: -min(gates[name], default=0.0))  # stable
        turns = [[name for name in order if name not in lost]]
        if not self.config.R5:
            turns.append(order)  # what these cannot take, anyone gets
        free = {name: adapter.directions.capacity - adapter.rank for name, adapter in self.adapters.items()}
        costs = {name: adapter.cost for name, adapter in self.adapters.items()}
        out: list[str] = []
        for names in turns:
            left = None if self.spare is None else self.spare - sum(costs[name] for name in out)
            out += in_turns(names, len(pruned) - len(out), free, costs, left)
        return out

    def remarks(self) -> list[str]:
        return self.shortfall()

    def finish(self) -> None:
        due = sum(self.due(done) for done in range(1, self.total_steps + 1))
        self.check_acted(due, "after_step was not called, or no gate reached 0: raise method.l1 or method.gate_lr")
        self.check_budget()


def shrink(gates: list[Tensor], step: float) -> None:
    """The proximal step of the L1 penalty, in place: c <- max(c - step, 0)."""
    torch._foreach_sub_(gates, step)
    torch._foreach_clamp_min_(gates, 0.0)
