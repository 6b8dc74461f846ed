"""ElaLoRA: elastic ranks by pruning and growing (arXiv 2504.00254).

    W = W0 + (alpha / r_init) B diag(E) A          A, B ~ N(0, 0.02), E = 0

Three phases over T steps. Warm-up (t <= t_i): train and gather importance. Adjustment: every `interval` steps the b
directions of least importance die, and the matrices whose *least* important directions score highest gain b new ones.
Stabilisation (t >= T - t_f): ranks stay.

`variant=paper` is a reconstruction: the paper's text was available as an abstract and a summary, and where they are
silent the value of the authors' code is taken. `variant=official` adds the side effects of that code, each with its own
switch D1 to D15 (`elalora.side_effects`; docs/methods/elalora.md explains the numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from elalora.ablation import Ablation
from elalora.adapters import LowRankLinear
from elalora.allocation import EXPANSIONS, Decision, Scores, decide, widen_ties
from elalora.errors import UserError, check_choices, check_numbers
from elalora.importance import FORMS, Importance
from elalora.low_rank import SVDMethod
from elalora.method import Capabilities, MethodFailure, Round
from elalora.optim import RowwiseAdamW
from elalora.regulariser import FORMS as ORTHOGONALITY
from elalora.resolve import RunSize, added, unread
from elalora.schedules import Phases, Schedule, phase_settings, plan_phases
from elalora.side_effects import DECAY, SideEffects

IMPORTANCE = (*FORMS, "ablation")


@dataclass
class ElaLoRAConfig:
    """Settings of ElaLoRA; None means a default that scales with the run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / r_init.
        k: maximum number of candidates per matrix and round.
        b: moves of the first round; None is ceil(0.05 R), R being the rank sum.
        t_initial, t_final: length of warm-up and stabilisation, as a fraction of the run or in steps; None is 0.1
            and 0.25.
        interval: steps between rounds; None is max(20, 0.65 T / 8).
        scheduler: whether b falls as round(b (1 - p^3)) over the adjustment phase.
        beta1, beta2: decay of sensitivity and uncertainty.
        importance: score of a direction: "sensitivity_uncertainty", "sensitivity", "magnitude" or "random"; "gate",
            |E| under an L1 penalty; "entropy", the spectral entropy of its matrix, of which the smallest |E| goes first
            (FlexLoRA); or "ablation" (ALoRA's eq. 6).
        expansion: "pool" (as published), "mean" (highest mean score) or "random".
        new_direction: "projection" (one projection against the existing rows, as published), "qr" (exactly
            orthogonal to them) or "random" (a random unit vector).
        rank1_growth: lets a matrix of rank 1 grow, which the published pool never does (D10a).
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        capacity: slots of a matrix; None is max(2N, N + 8), or without a limit in "official"; at most
            min(d_in, d_out), also in "official", whose code has no such bound.
        E_rate: factor on the learning rate of E; E_start: value of E at the start (`elalora.low_rank.SVDMethod`).
        D1, D2, D4, D8, D12, D15: side effects of the official code (`elalora.side_effects`); None takes the
            variant's value.
        D4_form: which of the two forms of D4 "official" takes, "text" or "image".
        l1: with "gate", what every step takes off |E|, in learning rates of E. No paper has it here.
        dev_items: with "ablation", training items on which directions are switched off.
    """

    variant: str = "paper"
    alpha: float = 16.0
    k: int = 2
    b: int | None = None
    t_initial: float | None = None
    t_final: float | None = None
    interval: int | None = None
    scheduler: bool = True
    beta1: float = 0.85
    beta2: float = 0.85
    importance: str = "sensitivity_uncertainty"
    expansion: str = "pool"
    new_direction: str = "projection"
    rank1_growth: bool = False
    orth_weight: float = 0.1
    orth_form: str = "norm"
    capacity: int | None = None
    D1: bool | None = None
    D2: bool | None = None
    D4: str | None = None
    D4_form: str = "text"
    D8: bool | None = None
    D12: bool | None = None
    D15: bool | None = None
    E_rate: float = added(1.0)
    E_start: float = added(0.0)
    l1: float = added(0.1)
    dev_items: int = added(32)

    def __post_init__(self) -> None:
        check_choices(
            self,
            variant=("paper", "official"),
            importance=IMPORTANCE,
            expansion=EXPANSIONS,
            new_direction=("projection", "qr", "random"),
            orth_form=ORTHOGONALITY,
            D4=(None, "off", *DECAY),
            D4_form=tuple(DECAY),
        )
        check_numbers(self, "be at least 1", "k", "dev_items")
        check_numbers(self, "lie in [0, 1)", "beta1", "beta2")
        check_numbers(self, "be above 0", "E_rate")
        check_numbers(self, "not be negative", "orth_weight", "E_start", "l1")

    def side_effects(self) -> SideEffects:
        """The side effects that are on: as set, or else as the variant has them."""
        official = self.variant == "official"

        def on(knob: bool | None) -> bool:
            return official if knob is None else knob

        return SideEffects(
            drops_moments=on(self.D1),
            holds_peak_lr=on(self.D2),
            collapses_groups=self.D4 if self.D4 is not None else self.D4_form if official else "off",
            tiny_new_values=on(self.D8),
            prunes_ties=on(self.D12),
            weight_after_step=on(self.D15),
        )

    def resolved(self, size: RunSize) -> ElaLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        effects, tracked = self.side_effects(), self.importance in IMPORTANCE[:2]
        start, final, interval, b = phase_settings(
            size.steps, size.rank_sum, self.t_initial, self.t_final, self.interval, self.b
        )
        capacity = self.capacity
        if size.rank is not None and capacity is not None:
            capacity = max(size.rank, capacity)
        elif size.rank is not None and self.variant == "paper":
            capacity = max(2 * size.rank, size.rank + 8)
        names = ["D4_form"]
        names += [] if self.orth_weight else ["orth_form"]
        names += [] if self.expansion == "pool" else ["rank1_growth"]
        names += [] if tracked else ["beta1"]
        names += [] if self.importance == IMPORTANCE[0] else ["beta2"]
        names += [] if self.importance == "gate" else ["l1"]
        names += [] if self.importance == "ablation" else ["dev_items"]
        acting = replace(
            self,
            t_initial=start,
            t_final=final,
            interval=interval,
            b=b,
            capacity=capacity,
            D1=effects.drops_moments,
            D2=effects.holds_peak_lr,
            D4=effects.decay_from(size.weight_decay),
            D8=effects.tiny_new_values,
            D12=effects.prunes_ties,
            D15=effects.weight_after_step and tracked,
        )
        return replace(acting, **unread(self, *names))


class ElaLoRA(SVDMethod):
    """See the module's docstring; its parts are `phases`, `importance` and `effects`."""

    name: ClassVar[str] = "elalora"
    title: ClassVar[str] = "ElaLoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True)
    Config: ClassVar[type] = ElaLoRAConfig
    config: ElaLoRAConfig
    phases: Phases

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        fall = "cubic" if c.scheduler else "constant"
        self.phases = plan_phases(total_steps, rank_sum, c.t_initial, c.t_final, c.interval, c.b, fall)
        self._rounds_due = len(self.phases.rounds())
        if self._rounds_due and self.mean_rank == 1 and not c.rank1_growth:
            raise UserError(
                "method=elalora cannot move a rank at a mean rank of 1, because a matrix of rank 1 neither loses nor "
                "gains a direction: type budget=r2 or more, or method=svd_lora for fixed ranks"
            )

    def scale(self, rank: int) -> float:
        # the official code divides by its stored rank plus 1e-5
        return self.config.alpha / (rank + (1e-5 if self.config.variant == "official" else 0.0))

    def capacity(self, rank: int) -> int:
        if self.config.capacity is not None:
            return self.config.capacity
        # "official": what k directions per round could make of it; min(d_in, d_out) still bounds every matrix
        return rank + self.config.k * self._rounds_due

    def after_attach(self) -> None:
        c = self.config
        self.effects = c.side_effects()
        self.importance = Importance(self.adapters, c.beta1, c.beta2, c.importance)
        self.trackers = [self.importance]

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        self.ablation = Ablation(model, self.adapters, self.config.dev_items) if self.batches_wanted else None
        return model

    @property
    def batches_wanted(self) -> bool:
        return self.config.importance == "ablation"

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        """Keeps the first items of these training batches as the dev batch, also in a run that resumes."""
        if self.ablation is not None:
            self.ablation.keep(batches)

    def gradients_ready(self, step: int) -> None:
        if step < self.phases.end and not self.effects.weight_after_step:
            self.importance.update()

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if step < self.phases.end and self.effects.weight_after_step:
            self.importance.update()
        if self.config.importance == "gate":
            self._shrink_gates(step, optimizer, schedule)
        if not self.phases.due(step):
            return None
        round_ = self._round(step)
        self.effects.apply(optimizer, schedule)
        self.rounds_seen.append(round_)
        self.check_budget()
        return round_

    @torch.no_grad()
    def _shrink_gates(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> None:
        """The proximal step of the L1 penalty: |E| falls by l1 learning rates, and no further than to 0."""
        gates = [adapter.E for adapter in self.adapters.values() if adapter.E is not None]
        peaks = zip(schedule.peaks, optimizer.param_groups, strict=True)
        [peak] = [peak for peak, group in peaks if any(p is gates[0] for p in group["params"])]
        size = self.config.l1 * peak * schedule.factor(step)
        for gate, rank in zip(gates, self.ranks().values(), strict=True):
            gate[:rank] -= gate[:rank].clamp(-size, size)

    def _round(self, step: int) -> Round:
        """Points 7 to 10 of the algorithm: pool, choose, prune, expand."""
        scored = {"forward_passes": self.ablation.forward_passes} if self.ablation else {}
        scores = self.ablation.scores() if self.ablation else self.importance.scores(self.generator)
        within = self.importance.gates() if self.config.importance == "entropy" else None
        decision = self._decide(scores, self.phases.moves_at(step), within)
        pruned = decision.prune
        if self.effects.prunes_ties:
            pruned = widen_ties(pruned, scores, self.config.k, within)
        self.prune(pruned)
        for name in decision.grow:
            self._expand(self.adapters[name])
        if len(pruned) != len(decision.grow) and not self.effects.prunes_ties:
            raise MethodFailure(f"round {step} pruned {len(pruned)} directions and grew {len(decision.grow)}")
        notes = {
            "asked": self.phases.moves_at(step),
            "pool": decision.pool,
            "blocked": decision.blocked,
            "replaced_in_place": decision.replaced,
            "rank1": sum(rank == 1 for rank in self.ranks().values()),
            **scored,
        }
        return Round(step, self.ranks(), pruned, decision.grow, scores, notes)

    def _decide(self, scores: Scores, b: int, within: Scores | None = None) -> Decision:
        return decide(
            scores,
            b,
            self.config.k,
            {name: adapter.directions.capacity for name, adapter in self.adapters.items()},
            self.config.expansion,
            self.config.rank1_growth,
            draw=lambda n: int(torch.randint(n, (), generator=self.generator)),
            cost={name: adapter.cost for name, adapter in self.adapters.items()},
            spare=self.spare,
            within=within,
        )

    @torch.no_grad()
    def _expand(self, adapter: LowRankLinear) -> None:
        """Adds a direction: unit rows in A and B, and an E that leaves the output unchanged."""
        rank = adapter.rank
        assert adapter.E is not None
        fresh_a = self._new_row(adapter.A[:rank])
        fresh_b = self._new_row(adapter.B[:rank])
        value = torch.zeros((), dtype=adapter.E.dtype)
        if self.effects.tiny_new_values and rank:
            value = adapter.E[:rank].abs().min().clamp(max=1e-13)
        slot = adapter.directions.be_born()
        adapter.A[slot] = fresh_a
        adapter.B[slot] = fresh_b
        adapter.E[slot] = value

    def _new_row(self, rows: Tensor) -> Tensor:
        """A unit vector (d,) from a normal draw, orthogonalised against rows (r, d) by the chosen rule.

        "projection" subtracts rows^T rows z once. That is a projection only if the rows are orthonormal, which the
        regulariser ensures approximately; without it the result is not orthogonal (D7).
        """
        z = torch.randn(rows.shape[1], generator=self.generator).to(rows)
        if self.config.new_direction == "projection":
            z = z - rows.T @ (rows @ z)
        elif self.config.new_direction == "qr" and len(rows):
            basis = torch.linalg.qr(rows.T.cpu().double()).Q  # (d, r); on the CPU because some GPUs have no float64
            exact = z.cpu().double()
            for _ in range(2):  # the second pass removes rounding errors of the first
                exact = exact - basis @ (basis.T @ exact)
            z = exact.to(z)
        return z / (z.norm() + 1e-6)

    def remarks(self) -> list[str]:
        return [self.ablation.remark] if self.ablation else []

    def finish(self) -> None:
        self.check_acted(self._rounds_due, "after_step was not called, or the pool was empty at every round")
        self.check_budget()
