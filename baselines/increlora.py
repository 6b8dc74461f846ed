"""IncreLoRA: every matrix starts with one direction and the important ones grow (Zhang et al., arXiv 2308.12043).

    W   = W0 + s B diag(E) A                     A, B ~ N(0, 0.02), E = 0, regulariser as in ElaLoRA
    x   = sum |dW * dL/d(dW)| / sqrt(d_out d_in)                of a matrix, dW = s B diag(E) A its whole update
    I  <- 0.85 I + 0.15 x,   U <- 0.85 U + 0.15 |x - I|,   score = I U                            after every step

Every `interval` steps the `top_h` matrices of highest score gain `add` directions each, until the rank sum is the
budget. A direction trains before it counts: each matrix holds a *reserve* of `add` directions with A and B trainable
and E = 1e-5 frozen (advance learning), and growing releases their E and adds a new reserve. What joins late starts the
learning-rate schedule again, with its own warm-up (`RowwiseAdamW.set_rates`).

`variant=paper` ends at the budget exactly with s = alpha / N. `variant=official` has the effects of the authors' code,
each with its own switch O1 to O8 (docs/methods/increlora.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import MANY, NamedTensors, SVDMethod, draw_normal
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.regulariser import FORMS
from elalora.resolve import RunSize, unread
from elalora.schedules import Growth, Schedule, length_in
from elalora.update_gradients import UpdateGradients

SWITCHES = ("O1", "O2", "O3", "O5", "O7", "O8")
ADDED = {2: 1, 4: 2, 6: 3, 8: 4}  # directions a matrix gains, by budget, in the authors' code; else N / 2
RESERVE = 1e-5  # E of a direction that waits
FROZEN = -1  # in place of the step at which E began to train
SHARE = 0.4  # of the steps after t_initial by which growth ends by default; 0.2 to 0.6 in the authors' scripts


@dataclass
class IncreLoRAConfig:
    """Settings of IncreLoRA; None means a default that scales with the run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale.
        top_h: matrices that grow in a round; None is as many as end growth after 0.4 of the steps after t_initial.
        add: directions that each of them gains; None is 1, 2, 3, 4 for budgets of 2, 4, 6, 8, else N / 2.
        t_initial: last step without growth, as a fraction of the run or in steps; None is 0.02.
        interval: steps between rounds; None is max(1, 0.02 T). Medians of the authors' scripts, as t_initial.
        beta1, beta2: decay of I and U.
        advance: keeps a reserve that trains; else a new direction starts with E = 0.
        restart: what joins later starts the learning-rate schedule again.
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        O1: the scale is alpha / (r + 1e-5) with the current rank r.
        O2: the number of matrices that grow is bounded by the directions left, not by what they gain: may overshoot.
        O3: the last reserve stays to the end of the run with E = 0.
        O5: matrices that tie with the last chosen one grow too.
        O7: x reads the last micro-batch alone.
        O8: the regulariser sees every direction alone. None takes the variant's value, for O1 to O7 too.
        E_rate: factor on the learning rate of E; E_start: value of E at the start (`elalora.low_rank.SVDMethod`).
    """

    variant: str = "paper"
    alpha: float = 16.0
    top_h: int | None = None
    add: int | None = None
    t_initial: float | None = None
    interval: int | None = None
    beta1: float = 0.85
    beta2: float = 0.85
    advance: bool = True
    restart: bool = True
    orth_weight: float = 0.1
    orth_form: str = "norm"
    O1: bool | None = None
    O2: bool | None = None
    O3: bool | None = None
    O5: bool | None = None
    O7: bool | None = None
    O8: bool | None = None
    E_rate: float = 1.0
    E_start: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"), orth_form=FORMS)
        check_numbers(self, "lie in [0, 1)", "beta1", "beta2")
        check_numbers(self, "be above 0", "E_rate")
        check_numbers(self, "not be negative", "orth_weight", "E_start")
        check_numbers(self, "be at least 1", *(n for n in ("top_h", "add", "interval") if getattr(self, n) is not None))

    def resolved(self, size: RunSize) -> IncreLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        official = self.variant == "official"
        switches: dict[str, Any] = {
            name: official if getattr(self, name) is None else getattr(self, name) for name in SWITCHES
        }
        start = length_in(size.steps, self.t_initial, 0.02, "method.t_initial")
        interval, add, top_h = self.interval, self.add, self.top_h
        if interval is None and size.steps is not None:
            interval = max(1, round(0.02 * size.steps))
        if add is None and size.rank is not None:
            add = ADDED.get(size.rank, max(1, size.rank // 2))
        if None not in (size.steps, size.rank, size.rank_sum, interval, add) and top_h is None:
            top_h = matrices_a_round(size, int(start), int(interval or 0), int(add or 0))
        unused = [] if self.orth_weight else ["orth_form", "O8"]
        unused += ["orth_form"] if switches["O8"] else []
        unused += [] if self.advance else ["O3"]
        acting = replace(self, t_initial=start, interval=interval, add=add, top_h=top_h, **switches)
        return replace(acting, **unread(self, *unused))


def matrices_a_round(size: RunSize, start: int, interval: int, add: int) -> int:
    """The fewest matrices that must grow in a round for growth to end after `SHARE` of the steps after `start`."""
    assert size.steps is not None and size.rank is not None and size.rank_sum is not None
    least = math.ceil((size.rank - 1) / add)  # rounds in which every matrix grows
    within = [t for t in range(0, size.steps, interval) if start < t <= start + SHARE * (size.steps - start)]
    return min(size.rank_sum, math.ceil((size.rank - 1) * size.rank_sum / (add * max(1, least, len(within)))))


class IncreLoRA(SVDMethod):
    """See the module's docstring.

    Attributes:
        live: rank of every matrix, without the reserve, whose slots follow the live ones.
        clock: of every slot, the steps at which A with B, and E, began to train; FROZEN while it does not.
        complete: whether growth is over.
        averages: I and U of all matrices.
    """

    name: ClassVar[str] = "increlora"
    title: ClassVar[str] = "IncreLoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="growing")
    saved: ClassVar[Sequence[str]] = ("live", "clock", "complete")
    Config: ClassVar[type] = IncreLoRAConfig
    config: IncreLoRAConfig
    phases: Growth

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    # -- set-up ----------------------------------------------------------------------------------------

    def plan(self, total_steps: int, rank_sum: int) -> None:
        if self.mean_rank < 2:
            raise UserError("method=increlora starts with rank 1 everywhere: type budget=r2 or more")
        c = self.config.resolved(RunSize(total_steps, self.mean_rank, rank_sum))
        assert c.t_initial is not None and c.interval is not None and c.add is not None and c.top_h is not None
        grid = [t for t in range(0, total_steps - 1, c.interval) if t > c.t_initial]
        needed = math.ceil((self.mean_rank - 1) / c.add)
        if rank_sum < MANY:  # not known in `check_length`
            needed = math.ceil((self.mean_rank - 1) * rank_sum / (c.add * min(c.top_h, rank_sum)))
        if needed > len(grid):
            raise UserError(
                f"method.t_initial={c.t_initial:g} and method.interval={c.interval} leave {len(grid)} rounds in a run "
                f"of {total_steps} steps, and {needed} are needed to reach the budget: lower them, raise method.top_h "
                "or method.add, or train longer (trainer.max_steps)"
            )
        self.phases = Growth(total_steps, int(c.t_initial), total_steps - grid[needed - 1] - 1, c.interval)
        self._most = 1 + c.add * (len(grid) + 1)

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        return dict.fromkeys(linears, 1)

    def capacity(self, rank: int) -> int:
        return self._most

    def scale(self, rank: int) -> float:
        return self.config.alpha / (rank + 1e-5 if self.config.O1 else self.mean_rank)

    def after_attach(self) -> None:
        self.live = {name: adapter.rank for name, adapter in self.adapters.items()}
        self.clock: dict[str, list[list[int]]] = {name: [[0, 0]] for name in self.live}
        self.complete = False
        self.averages = NamedTensors("score", {"I": (len(self.live),), "U": (len(self.live),)})
        self.trackers = [self.averages]
        self.gradients = UpdateGradients(self.adapters)
        for name, adapter in self.adapters.items():
            assert adapter.E is not None
            adapter.E.register_hook(lambda grad, name=name: self._of_live(name, grad))

    def _of_live(self, name: str, grad: Tensor) -> Tensor:
        """The gradient of E without that of the reserve, which would count when gradients are clipped."""
        return torch.cat([grad[: self.live[name]], torch.zeros_like(grad[self.live[name] :])])

    # -- training --------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, mask: Tensor | None, target_mask: Tensor | None = None) -> Iterator[None]:
        if self.config.O7:
            self.gradients.clear()
        yield

    def penalty(self) -> Tensor | None:
        if not self.config.O8 or not self.config.orth_weight:
            return super().penalty()
        rows = [factor[: a.rank] for a in self.adapters.values() for factor in (a.A, a.B)]
        gaps = [(row.square().sum(1) - 1).abs().sum() for row in rows]
        return self.config.orth_weight * torch.stack(gaps).sum() / sum(map(len, rows))

    @torch.no_grad()
    def gradients_ready(self, step: int) -> None:
        if self.complete:
            return
        parts = []
        for name, adapter in self.adapters.items():
            moved = adapter.delta() * self.gradients.take(name)
            parts.append(moved.abs().sum() / math.sqrt(moved.numel()))
        now = torch.stack(parts)
        if not self.averages:
            self.averages.update(I=torch.zeros_like(now), U=torch.zeros_like(now))
        smooth, uncertain = self.averages["I"], self.averages["U"]
        smooth.lerp_(now, 1 - self.config.beta1)
        uncertain.lerp_((now - smooth).abs(), 1 - self.config.beta2)

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if step == 0 and self.config.advance:
            for name in self.adapters:
                self._reserve(name, 1)
        round_ = None
        if not self.complete and self.phases.on_grid(step):
            round_ = self._round(step, optimizer)
            self.rounds_seen.append(round_)
        self._set_rates(step + 1, optimizer, schedule)
        return round_

    def _round(self, step: int, optimizer: RowwiseAdamW) -> Round:
        scores = dict(zip(self.adapters, (self.averages["I"] * self.averages["U"]).tolist(), strict=True))
        gains = self._choose(scores)
        for name, gain in gains.items():
            self._grow(name, gain, step + 1, optimizer)
        self.complete = self._left() < min(self._price(name) for name in self.adapters)
        if self.complete:
            self._end()
        grown = [name for name, gain in gains.items() for _ in range(gain)]
        shown = {name: [score] for name, score in scores.items()}
        return Round(step, self.ranks(), [], grown, shown, {"reserve": sum(self.reserve().values())})

    def _choose(self, scores: Mapping[str, float]) -> dict[str, int]:
        """Directions that each matrix gains; a full matrix is left out."""
        c = self.config
        assert c.top_h is not None and c.add is not None
        order = sorted(scores, key=lambda name: -scores[name])  # stable
        count = min(c.top_h, self._left() if c.O2 else c.top_h, len(order))
        chosen = [n for n in order if scores[n] >= scores[order[count - 1]]] if c.O5 else order[:count]
        gains, left = dict[str, int](), self._left()
        for name in chosen if c.O2 else order:
            free = self.adapters[name].directions.capacity - self.live[name]
            gain = min(c.add, free) if c.O2 else min(c.add, free, left // self._price(name))
            if gain and len(gains) < len(chosen):
                gains[name] = gain
                left -= gain * self._price(name)
        return gains

    def _grow(self, name: str, gain: int, start: int, optimizer: RowwiseAdamW) -> None:
        """Releases the E of as many directions, which train from step `start` on, and fills the reserve."""
        adapter = self.adapters[name]
        self._reserve(name, start, self.live[name] + gain - adapter.rank)
        assert adapter.E is not None
        state = optimizer.state.get(adapter.E) or {}
        for slot in range(self.live[name], self.live[name] + gain):
            self.clock[name][slot][1] = start
            for what in ("exp_avg", "exp_avg_sq", "step"):
                if what in state:
                    state[what][slot] = 0.0
        self.live[name] += gain
        if self.config.O1:
            adapter.scale = self.scale(self.live[name])
        if self.config.advance:
            self._reserve(name, start)

    @torch.no_grad()
    def _reserve(self, name: str, start: int, count: int | None = None) -> None:
        """Adds directions with E frozen until the reserve has `add`, or this many."""
        adapter, slots = self.adapters[name], self.adapters[name].directions
        assert adapter.E is not None and self.config.add is not None
        missing = self.config.add - (slots.rank - self.live[name]) if count is None else count
        for _ in range(min(missing, slots.capacity - slots.rank)):
            slot = slots.be_born()
            for factor in (adapter.A, adapter.B):
                draw_normal(factor[slot : slot + 1], 1, 0.02, self.generator)
            adapter.E[slot] = RESERVE if self.config.advance else 0.0
            self.clock[name].append([start, FROZEN])

    @torch.no_grad()
    def _end(self) -> None:
        """Ends growth: the reserve goes, or stays with E = 0 (O3); after an overshoot the code leaves it as it is."""
        self.gradients.stop()
        for name, adapter in self.adapters.items():
            assert adapter.E is not None
            if not self.config.O3:
                self._drop_reserve(name)
            elif self._left() == 0:
                adapter.E[self.live[name] : adapter.rank] = 0.0

    def _drop_reserve(self, name: str) -> None:
        self.prune((name, slot) for slot in range(self.live[name], self.adapters[name].rank))
        del self.clock[name][self.live[name] :]

    def _set_rates(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> None:
        """Gives every row the factor between its own schedule at `step` and the run's; 0 while E is frozen."""
        common = schedule.factor(step)
        factors = {FROZEN: 0.0}

        def factor(start: int) -> float:
            if start not in factors:
                late = self.config.restart and start and common
                factors[start] = schedule.restarted(step, start) / common if late and start else 1.0
            return factors[start]

        rates: dict[Tensor, list[float]] = {}
        for name, adapter in self.adapters.items():
            assert adapter.E is not None
            rates[adapter.A] = rates[adapter.B] = [factor(vectors) for vectors, _ in self.clock[name]]
            rates[adapter.E] = [factor(value) for _, value in self.clock[name]]
        optimizer.set_rates(rates)

    # -- budget ----------------------------------------------------------------------------------------

    def _price(self, name: str) -> int:
        assert self.budget is not None
        return 1 if self.budget.params is None else self.adapters[name].cost

    def _left(self) -> int:
        now, allowed = self.budget_use()
        return allowed - now

    def budget_use(self) -> tuple[int, int]:
        """As in the base class, without the reserve, which is no part of the result."""
        now, allowed = super().budget_use()
        return now - sum(n * self._price(name) for name, n in self.reserve().items()), allowed

    def ranks(self) -> dict[str, int]:
        return dict(self.live)

    def reserve(self) -> dict[str, int]:
        """The directions that wait; before the second step, those that it will have."""
        if self.config.advance and not any(len(clock) > 1 for clock in self.clock.values()) and not self.complete:
            assert self.config.add is not None
            return {n: min(self.config.add, a.directions.capacity - a.rank) for n, a in self.adapters.items()}
        return {name: adapter.rank - self.live[name] for name, adapter in self.adapters.items()}

    def check_budget(self) -> None:
        """As in the base class, but allows the overshoot of O2."""
        if not self.config.O2 or self._left() >= 0:
            super().check_budget()

    def remarks(self) -> list[str]:
        """Flags a result of O2 that has overshot its budget."""
        return ["off budget"] if self.complete and self._left() < 0 else []

    def finish(self) -> None:
        for name in self.adapters:
            self._drop_reserve(name)
        self.check_acted(len(self.phases.rounds()), "after_step was not called")
        self.check_budget()

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As in the base class, without the reserve."""
        return {n: (a[: self.live[n]], b[:, : self.live[n]]) for n, (a, b) in super().lora_factors().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, adapter in self.adapters.items():
            adapter.scale = self.scale(self.live[name])
        if self.complete:
            self.gradients.stop()
