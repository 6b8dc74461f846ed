"""FlexLoRA: ranks move by the spectral entropy of whole matrices (arXiv 2601.22905, ICLR 2026).

    W = W0 + (alpha / N) B diag(E) A               A, B ~ N(0, 0.02), E = 0, regulariser as in ElaLoRA
    p_i = E_i^2 / sum_j E_j^2                      I = - sum_i p_i ln(p_i + 1e-8) / ln r

I is 1 where all directions of a matrix weigh alike and 0 where one has all the weight. At every round the b matrices
of lowest I with more than one direction lose their smallest, and the b of highest I gain one with E = 0. The rank sum
stays. Growing lowers I by itself (ln r / ln (r + 1)), so a matrix that grew is soon among those that shrink.

The paper's text was not at hand: formulas are those of its summary and of the authors' code, and neither publishes the
number of moves, the phases or the start. `variant=official` has the effects of that code, each with its own switch
(docs/methods/flexlora.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from elalora.allocation import Decision, grow_within
from elalora.errors import check_choices, check_numbers
from elalora.importance import spectral_score
from elalora.low_rank import SVDMethod, draw_normal
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import split
from elalora.regulariser import FORMS
from elalora.resolve import RunSize, unread
from elalora.schedules import FALLS, Phases, Schedule, phase_settings, plan_phases
from elalora.side_effects import DECAY, SideEffects

SWITCHES = ("F5", "F6", "F8", "D1", "D2")
SCORES = ("entropy", "frobenius", "nuclear", "random")
OFFICIAL_MOVES = 4  # for any model: the code passes no other value


@dataclass
class FlexLoRAConfig:
    """Settings of FlexLoRA; None means a default that scales with the run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / N.
        b: moves of the first round; None is ceil(0.05 R) as in ElaLoRA, R being the rank sum, and 4 in "official".
        t_initial, t_final: length of warm-up and stabilisation, as a fraction of the run or in steps; None is 0.1
            and 0.25.
        interval: steps between rounds; None is max(20, 0.65 T / 8).
        fall: how the moves fall over the adjustment phase, "cubic_tail", "cubic" or "constant"; None is "cubic_tail",
            and "constant" in "official".
        score: of a matrix: "entropy", "frobenius" (norm of E), "nuclear" (sum of |E|) or "random".
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        capacity: slots of a matrix; None is max(2N, N + 8), or without a limit in "official".
        F5: the signed minimum of E is pruned, not the smallest |E|.
        F6: a matrix of rank 1 has no score and grows first.
        F8: new directions are drawn from N(0, 1), not N(0, 0.02).
        D1, D2, D4: side effects of the rebuilt optimizer (`elalora.side_effects`). None takes the variant's value, for
            F5 to F8 too.
        E_rate: factor on the learning rate of E; E_start: value of E at the start (`elalora.low_rank.SVDMethod`).
    """

    variant: str = "paper"
    alpha: float = 16.0
    b: int | None = None
    t_initial: float | None = None
    t_final: float | None = None
    interval: int | None = None
    fall: str | None = None
    score: str = "entropy"
    orth_weight: float = 0.1
    orth_form: str = "norm"
    capacity: int | None = None
    F5: bool | None = None
    F6: bool | None = None
    F8: bool | None = None
    D1: bool | None = None
    D2: bool | None = None
    D4: str | None = None
    E_rate: float = 1.0
    E_start: float = 0.0

    def __post_init__(self) -> None:
        check_choices(
            self,
            variant=("paper", "official"),
            fall=(None, *FALLS),
            score=SCORES,
            orth_form=FORMS,
            D4=(None, "off", *DECAY),
        )
        check_numbers(self, "be above 0", "E_rate")
        check_numbers(self, "not be negative", "orth_weight", "E_start")

    def resolved(self, size: RunSize) -> FlexLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        official = self.variant == "official"
        moves = OFFICIAL_MOVES if official and self.b is None else self.b
        start, final, interval, b = phase_settings(
            size.steps, size.rank_sum, self.t_initial, self.t_final, self.interval, moves
        )
        capacity = self.capacity
        if size.rank is not None and capacity is not None:
            capacity = max(size.rank, capacity)
        elif size.rank is not None and not official:
            capacity = max(2 * size.rank, size.rank + 8)
        switches: dict[str, Any] = {
            name: official if getattr(self, name) is None else getattr(self, name) for name in SWITCHES
        }
        decay = SideEffects(collapses_groups=self.D4 or ("text" if official else "off")).decay_from(size.weight_decay)
        return replace(
            self,
            b=b,
            t_initial=start,
            t_final=final,
            interval=interval,
            fall=self.fall or ("constant" if official else "cubic_tail"),
            capacity=capacity,
            D4=decay,
            **switches,
            **unread(self, *([] if self.orth_weight else ["orth_form"])),
        )


class FlexLoRA(SVDMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "flexlora"
    title: ClassVar[str] = "FlexLoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True)
    saved: ClassVar[Sequence[str]] = ("grown_before",)
    Config: ClassVar[type] = FlexLoRAConfig
    config: FlexLoRAConfig
    phases: Phases

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config.resolved(RunSize(total_steps, self.mean_rank, rank_sum))
        assert c.fall is not None
        self.phases = plan_phases(total_steps, rank_sum, c.t_initial, c.t_final, c.interval, c.b, c.fall)
        self._rounds_due = len(self.phases.rounds())

    def scale(self, rank: int) -> float:
        return self.config.alpha / (rank + 1e-5)  # the code adds 1e-5, and never updates the rank

    def capacity(self, rank: int) -> int:
        # "official": one direction a round could be added; min(d_in, d_out) still bounds every matrix
        return rank + self._rounds_due if self.config.capacity is None else self.config.capacity

    def after_attach(self) -> None:
        c = self.config
        assert c.D4 is not None
        self.effects = SideEffects(drops_moments=bool(c.D1), holds_peak_lr=bool(c.D2), collapses_groups=c.D4)
        self.grown_before: list[str] = []

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if not self.phases.due(step):
            return None
        round_ = self._round(step)
        self.effects.apply(optimizer, schedule)
        self.rounds_seen.append(round_)
        self.check_budget()
        return round_

    def _round(self, step: int) -> Round:
        values = self._values()
        scores = self._scores(values)
        decision = self._decide(scores, values, self.phases.moves_at(step))
        self.prune(decision.prune)
        for name in decision.grow:
            self._expand(name)
        lost = {name for name, _ in decision.prune}
        notes = {
            "asked": self.phases.moves_at(step),
            "blocked": decision.blocked,
            "swapped": decision.replaced,
            "grown_then_pruned": len(lost & set(self.grown_before)),
        }
        self.grown_before = list(decision.grow)
        shown = {name: [score] for name, score in scores.items()}
        return Round(step, self.ranks(), decision.prune, decision.grow, shown, notes)

    def _scores(self, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Score of every matrix from E of its directions."""
        if self.config.score == "random":
            draws = torch.rand(len(self.adapters), generator=self.generator).tolist()
            return dict(zip(self.adapters, draws, strict=True))
        return {name: spectral_score(of_matrix, self.config.score) for name, of_matrix in values.items()}

    def _values(self) -> dict[str, list[float]]:
        """E of all active directions by matrix, on the host (one transfer)."""
        parts = [adapter.E.detach()[: adapter.rank] for adapter in self.adapters.values() if adapter.E is not None]
        return split(torch.cat(parts).tolist(), self.ranks())

    def _decide(self, scores: Mapping[str, float], values: Mapping[str, Sequence[float]], b: int) -> Decision:
        """Which directions go and which matrices grow; fewer than b where slots, ranks or the budget allow no more."""
        ranks = self.ranks()
        rising = sorted((name for name in scores if ranks[name] > 1), key=scores.__getitem__)
        falling = sorted(scores, key=lambda name: -scores[name])
        if self.config.F6:
            falling.sort(key=lambda name: ranks[name] != 1)  # stable: ranks of 1 first
        capacity = {name: adapter.directions.capacity for name, adapter in self.adapters.items()}
        cost = {name: adapter.cost for name, adapter in self.adapters.items()}
        most = min(b, len(rising))
        for n in range(most, 0, -1):
            prune = [(name, self._smallest(values[name])) for name in rising[:n]]
            grow, blocked = grow_within(prune, falling, ranks, capacity, cost, self.spare)
            if len(grow) == n:
                return Decision(prune, grow, len(rising), blocked + most - n)
        return Decision(pool=len(rising), blocked=most)

    def _smallest(self, values: Sequence[float]) -> int:
        keys = list(values) if self.config.F5 else [abs(value) for value in values]
        return keys.index(min(keys))

    @torch.no_grad()
    def _expand(self, name: str) -> None:
        """Adds a direction with Gaussian rows and E = 0, which leaves the output unchanged."""
        adapter = self.adapters[name]
        slot = adapter.directions.be_born()
        for factor in (adapter.A, adapter.B):
            draw_normal(factor[slot : slot + 1], 1, 1.0 if self.config.F8 else 0.02, self.generator)

    def remarks(self) -> list[str]:
        return ["constants not published"]

    def finish(self) -> None:
        self.check_acted(self._rounds_due, "after_step was not called, or no matrix had more than one direction")
        self.check_budget()
