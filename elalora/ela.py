"""ElaLoRA: elastic ranks by pruning and growing (arXiv 2504.00254).

    W = W0 + (alpha / r_init) B diag(E) A          A, B ~ N(0, 0.02), E = 0

Three phases over T steps. Warm-up (t <= t_i): train, gather importance. Adjustment: every `interval` steps b
directions of least importance die, and the matrices whose *least* directions score highest gain b new ones.
Stabilisation (t >= T - t_f): ranks stay.

`variant=paper` is a reconstruction: the paper's text is known through its abstract and a digest, and where
they are silent the value of the authors' code is taken. `variant=official` adds that code's side effects,
each a switch of its own: D1, D2, D4 (what its optimizer rebuild does), D8 (new E), D12 (ties), D15 (the weight
in |w g| is read after the step). The numbers are those of docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.allocation import Decision, decide, widen_ties
from elalora.errors import UserError
from elalora.importance import FORMS as IMPORTANCE
from elalora.importance import Importance
from elalora.method import Capabilities, LowRankMethod, MethodFailure, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.regulariser import FORMS as ORTHOGONALITY
from elalora.regulariser import orthogonality
from elalora.schedules import Phases, Schedule, plan_phases
from elalora.side_effects import SideEffects

CHOICES = {
    "variant": ("paper", "official"),
    "importance": IMPORTANCE,
    "expansion": ("pool", "mean", "random"),
    "new_direction": ("projection", "qr", "random"),
    "orth_form": ORTHOGONALITY,
    "D4": (None, "off", "text", "image"),
}


@dataclass
class ElaLoRAConfig:
    """Every choice of ElaLoRA; None means the default that scales with the run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / r_init.
        k: most candidates of one matrix per round.
        b: moves of the first round; None is ceil(0.05 R) of the rank sum R.
        t_initial, t_final: length of warm-up and stabilisation, as a fraction of the run or in steps.
        interval: steps between rounds; None is max(20, 0.65 T / 8).
        scheduler: whether b falls as round(b (1 - p^3)) over the adjustment phase.
        beta1, beta2: decay of sensitivity and uncertainty.
        importance: "sensitivity_uncertainty", "sensitivity", "magnitude" or "random".
        expansion: "pool" (as published), "mean" (highest mean score) or "random".
        new_direction: "projection" (one pass against the rows that are there, as published), "qr" (exactly
            orthogonal to them) or "random" (a random unit vector).
        rank1_growth: lets a matrix of rank 1 grow, which the published pool never does (D10a).
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        capacity: slots of a matrix; None is max(2N, N + 8), and never binding in "official".
        D1, D2, D4, D8, D12, D15: side effects of the official code; None takes the variant's value.
        D4_form: which fork's collapse "official" takes, "text" or "image".
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

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(a) for a in allowed if a is not None)
                raise UserError(f"method.{name}={getattr(self, name)} is unknown; allowed: {shown}")
        if self.k < 1:
            raise UserError(f"method.k={self.k} must be at least 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"method.{name}={getattr(self, name)} must lie in [0, 1)")

    def effect(self, name: str) -> bool:
        """Whether a side effect is on: as given, else by the variant."""
        given = getattr(self, name)
        return self.variant == "official" if given is None else bool(given)

    def collapse(self) -> str:
        """Form of D4: as given, else by the variant."""
        if self.D4 is not None:
            return self.D4
        return self.D4_form if self.variant == "official" else "off"


class ElaLoRA(LowRankMethod):
    """See the module's docstring; `phases`, `importance` and `effects` are its working parts."""

    name: ClassVar[str] = "elalora"
    title: ClassVar[str] = "ElaLoRA"
    singular: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True)
    Config: ClassVar[type] = ElaLoRAConfig
    config: ElaLoRAConfig
    phases: Phases

    # -- set-up ----------------------------------------------------------------------------------------

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        self.phases = plan_phases(total_steps, rank_sum, c.t_initial, c.t_final, c.interval, c.b, c.scheduler)

    def scale(self, rank: int) -> float:
        # the official code divides by its stored rank plus 1e-5
        return self.config.alpha / (rank + (1e-5 if self.config.variant == "official" else 0.0))

    def capacity(self, rank: int) -> int:
        if self.config.capacity is not None:
            return max(rank, self.config.capacity)
        if self.config.variant == "official":  # out of reach: no matrix gains more than k directions a round
            return rank + self.config.k * len(self.phases.rounds())
        return max(2 * rank, rank + 8)

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        c = self.config
        self.effects = SideEffects(c.effect("D1"), c.effect("D2"), c.collapse())
        self.importance = Importance(self.adapters, c.beta1, c.beta2, c.importance)
        return model

    # -- training --------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        if not self.config.orth_weight:
            return None
        return self.config.orth_weight * orthogonality(self.adapters.values(), self.config.orth_form)

    def gradients_ready(self, step: int) -> None:
        if step < self.phases.end and not self.config.effect("D15"):
            self.importance.update()

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if step < self.phases.end and self.config.effect("D15"):
            self.importance.update()
        if not self.phases.due(step):
            return None
        round_ = self._round(step)
        self.effects.happen(optimizer, schedule)
        self.rounds_seen.append(round_)
        self.check_budget()
        return round_

    def _round(self, step: int) -> Round:
        """Points 7 to 10 of the algorithm: pool, choose, prune, expand."""
        scores = self.importance.scores(self.generator)
        decision = self._decide(scores, self.phases.budget(step))
        pruned = decision.prune
        if self.config.effect("D12"):
            pruned = widen_ties(pruned, scores, self.config.k)
        # from the highest slot down, so that a row that moves into a gap was not itself to be removed
        for name, slot in sorted(pruned, key=lambda entry: -entry[1]):
            self.adapters[name].directions.die(slot)
        for name in decision.grow:
            self._expand(self.adapters[name])
        if len(pruned) != len(decision.grow) and not self.config.effect("D12"):
            raise MethodFailure(f"round {step} pruned {len(pruned)} directions and grew {len(decision.grow)}")
        notes = {
            "asked": self.phases.budget(step),
            "pool": decision.pool,
            "blocked": decision.blocked,
            "replaced_in_place": decision.replaced,
            "rank1": sum(rank == 1 for rank in self.ranks().values()),
        }
        return Round(step, self.ranks(), pruned, decision.grow, scores, notes)

    def _decide(self, scores: Mapping[str, list[float]], b: int) -> Decision:
        assert self.budget is not None
        spare = None if self.budget.params is None else self.budget.params - self.count().params
        return decide(
            scores,
            b,
            self.config.k,
            {name: adapter.directions.capacity for name, adapter in self.adapters.items()},
            self.config.expansion,
            self.config.rank1_growth,
            draw=lambda n: int(torch.randint(n, (), generator=self.generator)),
            cost={name: adapter.cost for name, adapter in self.adapters.items()},
            spare=spare,
        )

    @torch.no_grad()
    def _expand(self, adapter: LowRankLinear) -> None:
        """A newborn direction: unit rows in A and B, and an E that leaves the output as it was."""
        rank = adapter.rank
        assert adapter.E is not None
        fresh_a = self._new_row(adapter.A[:rank])
        fresh_b = self._new_row(adapter.B[:rank])
        value = torch.zeros((), dtype=adapter.E.dtype)
        if self.config.effect("D8") and rank:
            value = adapter.E[:rank].abs().min().clamp(max=1e-13)
        slot = adapter.directions.be_born()
        adapter.A[slot] = fresh_a
        adapter.B[slot] = fresh_b
        adapter.E[slot] = value

    def _new_row(self, rows: Tensor) -> Tensor:
        """A unit vector (d,) from a normal draw, made orthogonal to rows (r, d) by the chosen rule.

        "projection" subtracts rows^T rows z once, which is a projection only while the rows are orthonormal;
        the regulariser keeps them near it, and without it the result is not orthogonal (D7).
        """
        z = torch.randn(rows.shape[1], generator=self.generator).to(rows)
        if self.config.new_direction == "projection":
            z = z - rows.T @ (rows @ z)
        elif self.config.new_direction == "qr" and len(rows):
            basis = torch.linalg.qr(rows.T.cpu().double()).Q  # (d, r); on the CPU, some GPUs have no float64
            exact = z.cpu().double()
            for _ in range(2):  # the second pass removes what rounding left of the first
                exact = exact - basis @ (basis.T @ exact)
            z = exact.to(z)
        return z / (z.norm() + 1e-6)

    def finish(self) -> None:
        due = len(self.phases.rounds())
        if due and not any(r.grown for r in self.rounds_seen):
            raise NeverActed(
                f"{due} rounds were due and no rank moved ({len(self.rounds_seen)} rounds ran): "
                "after_step was not called, or the pool was empty at every round"
            )
        self.check_budget()

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def phase(self, step: int) -> str:
        return self.phases.name(step)

    def state_dict(self) -> dict[str, Any]:
        tensors = {f"importance.{name}": t for name, t in self.importance.state_dict().items()}
        return super().state_dict() | tensors

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        prefix = "importance."
        self.importance.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
