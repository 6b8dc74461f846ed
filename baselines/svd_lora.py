"""SVD-LoRA: ElaLoRA's adapter with fixed ranks, the control for everything except the moves.

    W = W0 + (alpha / N) B diag(E) A        A, B ~ N(0, 0.02), E = 0, the same regulariser as ElaLoRA

With D1, D2 or D4 it has the side effects of the official ElaLoRA code at the steps of ElaLoRA's rounds. With
`ranks_from` it is the *transplant*: trained from scratch with the final ranks of another run. It has as many parameters
as that run, which separates the layout of the ranks from the way they developed; `shuffle` permutes the ranks within
each matrix type. `pattern` lays the budget's ranks out by a rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from elalora.errors import check_choices, check_numbers
from elalora.low_rank import SVDMethod
from elalora.method import Round
from elalora.optim import RowwiseAdamW
from elalora.regulariser import FORMS
from elalora.resolve import RunSize, added, unread
from elalora.schedules import Phases, Schedule, phase_settings, plan_phases
from elalora.side_effects import DECAY, SideEffects

from .fixed_ranks import FixedRanks, resolved_layout, set_layout


@dataclass
class SVDLoRAConfig:
    """Settings of SVD-LoRA; the phases are those of ElaLoRA and only time the side effects.

    Attributes:
        alpha: numerator of the scale alpha / N, N being the budget's rank, also with `ranks_from`.
        orth_weight, orth_form: the regulariser.
        E_rate: factor on the learning rate of E; E_start: value of E at the start (`elalora.low_rank.SVDMethod`).
        D1, D2, D4: side effects, see `elalora.side_effects`.
        b, t_initial, t_final, interval, scheduler: set the steps at which the side effects happen.
        ranks_from: the run whose final ranks are used: its folder, its id, or the name of a method, for the run of
            that method that is equal in everything else.
        shuffle: permutes these ranks within each matrix type.
        pattern: a rule, or a JSON file, that spreads the budget's ranks over the matrices, or changes those of
            `ranks_from` (`elalora.layouts`).
    """

    alpha: float = 16.0
    orth_weight: float = 0.1
    orth_form: str = "norm"
    D1: bool = False
    D2: bool = False
    D4: str = "off"
    b: int | None = None
    t_initial: float | None = None
    t_final: float | None = None
    interval: int | None = None
    scheduler: bool = True
    ranks_from: str | None = None
    shuffle: bool = False
    E_rate: float = added(1.0)
    E_start: float = added(0.0)
    pattern: str | None = added(None)

    def __post_init__(self) -> None:
        check_choices(self, orth_form=FORMS, D4=("off", *DECAY))
        check_numbers(self, "be above 0", "E_rate")
        check_numbers(self, "not be negative", "orth_weight", "E_start")
        set_layout(self)

    def resolved(self, size: RunSize) -> SVDLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        collapse = SideEffects(collapses_groups=self.D4).decay_from(size.weight_decay)
        acting = replace(self, D4=collapse, **resolved_layout(self))
        orth = unread(self, *([] if self.orth_weight else ["orth_form"]))
        if SideEffects(acting.D1, acting.D2, acting.D4) == SideEffects():
            return replace(acting, **orth, **unread(self, "b", "t_initial", "t_final", "interval", "scheduler"))
        rank_sum = None if self.ranks_from else size.rank_sum  # that run's ranks may sum to less than the budget
        start, final, interval, b = phase_settings(
            size.steps, rank_sum, self.t_initial, self.t_final, self.interval, self.b
        )
        return replace(acting, **orth, t_initial=start, t_final=final, interval=interval, b=b)


class SVDLoRA(FixedRanks, SVDMethod):
    """Fixed ranks: uniform, transplanted, or laid out by a rule."""

    name: ClassVar[str] = "svd_lora"
    title: ClassVar[str] = "SVD-LoRA"
    Config: ClassVar[type] = SVDLoRAConfig
    config: SVDLoRAConfig
    phases: Phases

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        self.effects = SideEffects(c.D1, c.D2, c.D4)
        if self.effects != SideEffects():
            fall = "cubic" if c.scheduler else "constant"
            self.phases = plan_phases(total_steps, rank_sum, c.t_initial, c.t_final, c.interval, c.b, fall)

    def scale(self, rank: int) -> float:
        return self.config.alpha / self.mean_rank

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if self.effects != SideEffects() and self.phases.due(step):
            self.effects.apply(optimizer, schedule)
        return None
