"""AdaLoRA: ranks shrink to the budget by masking singular values (Zhang et al., arXiv 2303.10512).

    W = W0 + (alpha / r_init) B diag(E) A          A, B ~ N(0, 0.02), E = 0                            (eq. 3)
    b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3        for t_i < t < T - t_f        (App. A)

What is unusual: a mask is not a death. Masking sets a singular value to 0 and nothing else; its row of A and B,
its moments and its gradient stay, so until the budget is final it grows again from the next step on and may
be back at the next masking. Only the final pattern lasts, and `finish` (or `compact`, earlier) removes what
it masks.

Three variants. `peft` equals stock PEFT, with what is peculiar to it: the scale is alpha / (r_init + 1e-5);
importance reads the weight after the step and the gradient from before it; a masking is due where t itself, not
t - t_i, is a multiple of the interval; one more is forced at T - t_f; everything *at or below* the threshold
goes, so ties leave less than the budget. `official`, the authors' code, is the same without the forced masking:
when T - t_f is no multiple of the interval, the final pattern comes one step later. It masks anew at every
step from there on, by an importance that no longer changes, hence always the same directions. `paper` follows
algorithm 1: |w g| at one point, before the step; exactly the b(t) highest are kept; the scale is alpha / r_init.
The numerator that the paper prints, t - t_i - t_f, would start above b_0; no variant has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.errors import UserError
from elalora.importance import Importance
from elalora.method import BudgetExceeded, Capabilities, LowRankMethod, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.regulariser import FORMS, orthogonality
from elalora.schedules import Schedule, steps_of

VARIANTS = ("peft", "official", "paper")
PUBLISHED_START = {2: 4, 4: 6, 8: 12}  # section 4: initial rank for a mean target rank


@dataclass
class AdaLoRAConfig:
    """Choices of AdaLoRA; None means the default that scales with budget or run.

    Attributes:
        variant: "peft", "official" or "paper", see the module's docstring.
        alpha: numerator of the scale, over the initial rank for the whole run.
        init_rank: rank of every matrix at the start; None is 4, 6, 12 for a budget of 2, 4, 8, else ceil(1.5 N).
        t_initial, t_final: steps before the first masking and after the last, as a fraction of the run or
            in steps; None is 0.13 and 0.47, the medians of the eight GLUE rows of the paper's Table 8.
        interval: steps between maskings; None is max(1, T / 600), the median of the same rows.
        beta1, beta2: decay of sensitivity and uncertainty.
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        compact: removes masked directions as soon as the pattern is final, and not at the end of the run.
    """

    variant: str = "peft"
    alpha: float = 16.0
    init_rank: int | None = None
    t_initial: float | None = None
    t_final: float | None = None
    interval: int | None = None
    beta1: float = 0.85
    beta2: float = 0.85
    orth_weight: float = 0.1
    orth_form: str = "norm"
    compact: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("variant", VARIANTS), ("orth_form", FORMS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"method.{name}={getattr(self, name)} is unknown; allowed: {', '.join(allowed)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"method.{name}={getattr(self, name)} must lie in [0, 1)")


@dataclass(frozen=True)
class Masking:
    """When singular values are masked, and how much is kept; `forced` adds the masking at T - t_f."""

    total: int
    start: int
    final: int
    interval: int
    forced: bool = True

    @property
    def end(self) -> int:
        """First step of the final phase, T - t_f."""
        return self.total - self.final

    def budget(self, t: int, first: int, last: int) -> int:
        """b(t), rounded down, between `first` (at t_i and before) and `last` (from T - t_f on)."""
        if t <= self.start:
            return first
        if t >= self.end:
            return last
        left = 1 - (t - self.start) / (self.end - self.start)
        return int((first - last) * left**3 + last)

    def due(self, t: int) -> bool:
        """Whether a new pattern is made after step t."""
        regular = t % self.interval == 0
        if t <= self.end:
            return t > self.start and (regular or (self.forced and t == self.end))
        return t == self.end + 1 and not self.due(self.end)

    def rounds(self) -> list[int]:
        """The steps after which a new pattern is made; the last one makes the final pattern."""
        return [t for t in range(self.total) if self.due(t)]

    def name(self, t: int) -> str:
        """warm-up, adjust or stabilise."""
        return "warm-up" if t <= self.start else "adjust" if t < self.end else "stabilise"


def plan_masking(
    total: int, start: float | None, final: float | None, interval: int | None, forced: bool = True
) -> Masking:
    """The schedule of a run of `total` steps, each part given or by default.

    Raises:
        UserError: no step is left for adjustment or for the final pattern, or no masking falls in between.
    """
    t_i = steps_of(0.13 if start is None else start, total, "method.t_initial")
    t_f = steps_of(0.47 if final is None else final, total, "method.t_final")
    every = max(1, total // 600) if interval is None else interval
    if every < 1:
        raise UserError(f"method.interval={every} must be at least 1")
    if t_i + t_f >= total:
        raise UserError(
            f"phases of {t_i} steps before and {t_f} steps after leave no step for masking in a run of {total}: "
            "lower method.t_initial or method.t_final, or train longer (trainer.max_steps)"
        )
    plan = Masking(total, t_i, t_f, every, forced)
    rounds = plan.rounds()
    if not rounds or rounds[-1] < plan.end:
        raise UserError(
            f"a final phase of {t_f} steps in a run of {total} ends before the final budget is set: "
            f"type method.t_final={t_f + 1} or more"
        )
    if rounds[0] >= plan.end:
        raise UserError(
            f"method.interval={every} has no multiple between steps {t_i} and {plan.end} of {total}, so nothing "
            f"would be masked before the final phase: type method.interval={max(1, (plan.end - t_i) // 3)} or train "
            "longer"
        )
    return plan


class AdaLoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        phases: when maskings happen.
        kept: whether each slot of each matrix was kept by the last masking.
        threshold: score at or below which that masking took place; None before the first.
        fixed: whether the pattern is final.
    """

    name: ClassVar[str] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    singular: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="final")
    Config: ClassVar[type] = AdaLoRAConfig
    config: AdaLoRAConfig
    phases: Masking

    # -- set-up ----------------------------------------------------------------------------------------

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        default = initial_rank(self.mean_rank)
        first = default if self.config.init_rank is None else self.config.init_rank
        if first <= self.mean_rank:
            raise UserError(
                f"method.init_rank={first} must be above the final rank {self.mean_rank} of the budget: "
                f"type method.init_rank={default} or a smaller budget"
            )
        for name, linear in linears.items():
            limit = min(linear.in_features, linear.out_features)
            if first > limit:
                raise UserError(
                    f"method.init_rank={first} is above min(d_in, d_out) = {limit} of '{name}': "
                    f"type method.init_rank={limit} or less, above the budget's {self.mean_rank}, or a smaller budget"
                )
        return dict.fromkeys(linears, first)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        self.phases = plan_masking(total_steps, c.t_initial, c.t_final, c.interval, c.variant != "official")

    def scale(self, rank: int) -> float:
        return self.config.alpha / (rank if self.config.variant == "paper" else rank + 1e-5)

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        self.importance = Importance(self.adapters, self.config.beta1, self.config.beta2)
        self.kept = {name: [True] * adapter.rank for name, adapter in self.adapters.items()}
        self.threshold: float | None = None
        self.fixed = False
        self._factors: list[Tensor] = []
        self._first, self._last = self._limits()
        return model

    def _limits(self) -> tuple[int, int]:
        """b_0 and b_T: sums of ranks, or adapter parameters where those are the budget."""
        assert self.budget is not None
        if self.budget.params is not None:
            return self.count().params, self.budget.params
        return self.count().rank_sum, self.mean_rank * len(self.adapters)

    # -- training --------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        if not self.config.orth_weight:
            return None
        return self.config.orth_weight * orthogonality(self.adapters.values(), self.config.orth_form)

    def gradients_ready(self, step: int) -> None:
        if step < self.phases.end and self.config.variant == "paper":
            self.importance.update()

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if step < self.phases.end and self.config.variant != "paper":
            self.importance.update()
        if self.phases.due(step):
            round_ = self._round(step)
            self.rounds_seen.append(round_)
            return round_
        if self.fixed:
            self._mask()
        return None

    def _round(self, step: int) -> Round:
        """A new pattern: the highest scores that b(t) pays for stay, the others' singular values become 0."""
        scores = self.importance.scores()
        before = self.kept
        allowed = self.phases.budget(step, self._first, self._last)
        tied = self._choose(scores, allowed)
        self.fixed = step >= self.phases.end
        self._factors = []
        self._mask()
        lost, back = _changes(before, self.kept)
        if self.fixed and self.config.compact:
            self._remove()
        notes = {"budget": allowed, "tied": tied}
        # scores of every masking would make a run's record some megabytes; the ones that decide are kept
        return Round(step, self.ranks(), lost, back, scores if self.fixed else {}, notes)

    def _choose(self, scores: Mapping[str, list[float]], allowed: int) -> int:
        """Sets `kept` and `threshold`; returns how many directions ties cost beyond the budget."""
        assert self.budget is not None
        flat = [score for row in scores.values() for score in row]
        by_rank = self.budget.params is None
        costs = [1 if by_rank else self.adapters[name].cost for name, row in scores.items() for _ in row]
        chosen, threshold = highest(flat, costs, allowed)
        kept = chosen
        if self.config.variant != "paper" and threshold is not None:
            kept = [score > threshold for score in flat]
        self.threshold = threshold
        rest = iter(kept)
        self.kept = {name: [next(rest) for _ in row] for name, row in scores.items()}
        return sum(chosen) - sum(kept)

    @torch.no_grad()
    def _mask(self) -> None:
        """Sets the singular values that are not kept to 0; moments, A and B stay."""
        values = [self._value(adapter) for adapter in self.adapters.values()]
        if not self._factors:
            pairs = zip(self.kept.values(), values, strict=True)
            self._factors = [v.new_tensor(kept, dtype=v.dtype) for kept, v in pairs]
        torch._foreach_mul_(values, self._factors)

    @staticmethod
    def _value(adapter: LowRankLinear) -> Tensor:
        """E of the slots in use, (rank,)."""
        assert adapter.E is not None
        return adapter.E.detach()[: adapter.rank]

    def _remove(self) -> None:
        """Masked directions die; outputs stay as they are, because their singular values are 0."""
        for name, adapter in self.adapters.items():
            # from the highest slot down, so that a row that moves into a gap is one that stays
            for slot in reversed(range(adapter.rank)):
                if not self.kept[name][slot]:
                    adapter.directions.die(slot)
            self.kept[name] = [True] * adapter.rank
        self._factors = []

    def finish(self) -> None:
        if not self.fixed:
            due = self.phases.rounds()
            raise NeverActed(
                f"{len(due)} maskings were due, the last after step {due[-1]}, and the final pattern was never set: "
                "after_step was not called at every step"
            )
        self._remove()
        self.check_budget()

    def check_budget(self) -> None:
        """As in the base class; before the final pattern masked directions come back, so no rank counts yet."""
        if not self.fixed:
            raise BudgetExceeded("the final pattern is not set: directions that are masked still come back")
        super().check_budget()

    # -- reading ---------------------------------------------------------------------------------------

    def phase(self, step: int) -> str:
        return self.phases.name(step)

    def ranks(self) -> dict[str, int]:
        """Directions that the last masking kept; between maskings the others are nonzero all the same."""
        return {name: sum(kept) for name, kept in self.kept.items()}

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As in the base class; once the pattern is final, without the directions it masks."""
        factors = super().lora_factors()
        if not self.fixed:
            return factors
        rows = {name: [i for i, kept in enumerate(self.kept[name]) if kept] for name in factors}
        return {name: (a[rows[name]], b[:, rows[name]]) for name, (a, b) in factors.items()}

    def state_dict(self) -> dict[str, Any]:
        slots = {name: adapter.rank for name, adapter in self.adapters.items()}
        own = {"ranks": slots, "kept": self.kept, "threshold": self.threshold, "fixed": self.fixed}
        tensors = {f"importance.{name}": t for name, t in self.importance.state_dict().items()}
        return super().state_dict() | own | tensors

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept = {name: list(kept) for name, kept in state["kept"].items()}
        if any(len(self.kept[name]) != rank for name, rank in state["ranks"].items()):
            raise ValueError("the pattern has other slots than the ranks say")
        self.threshold, self.fixed = state["threshold"], state["fixed"]
        self._factors = []
        prefix = "importance."
        self.importance.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})


def initial_rank(target: int) -> int:
    """Rank at the start for a final mean rank: as published, else ceil(1.5 N), always above N."""
    return PUBLISHED_START.get(target, math.ceil(1.5 * target))


def highest(scores: Sequence[float], costs: Sequence[int], allowed: int) -> tuple[list[bool], float | None]:
    """The highest scores whose costs sum to no more than `allowed`; of equal ones the later.

    With unit costs the threshold is the (n - allowed)-th smallest score, as torch.kthvalue gives it.

    Returns:
        Which entries stay, and the highest score among those that do not (None when all stay).
    """
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
    kept = [False] * len(scores)
    for i in order:
        allowed -= costs[i]
        if allowed < 0:
            return kept, scores[i]
        kept[i] = True
    return kept, None


def _changes(
    before: Mapping[str, list[bool]], after: Mapping[str, list[bool]]
) -> tuple[list[tuple[str, int]], list[str]]:
    """(matrix, slot) of each direction newly masked, and the matrix of each that came back."""
    lost, back = [], []
    for name, new in after.items():
        for slot, (was, is_) in enumerate(zip(before[name], new, strict=True)):
            if was and not is_:
                lost.append((name, slot))
            elif is_ and not was:
                back.append(name)
    return lost, back
