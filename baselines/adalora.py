"""AdaLoRA: ranks shrink to the budget by masking singular values (Zhang et al., arXiv 2303.10512).

    W = W0 + (alpha / r_init) B diag(E) A          A, B ~ N(0, 0.02), E = 0                            (eq. 3)
    b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3        for t_i < t < T - t_f        (App. A)

Masking does not remove a direction. It sets a singular value to 0 and nothing else: the row of A and B, the moments and
the gradient stay, so the value grows again from the next step on and the direction may return at the next masking. Only
the final pattern lasts, and `finish` (or `compact`, earlier) removes the directions that it masks.

Three variants. `peft` equals stock PEFT: the scale is alpha / (r_init + 1e-5); importance reads the weight after the
step and the gradient from before it; a masking is due if t itself, not t - t_i, is a multiple of the interval; one more
is forced at T - t_f; everything *at or below* the threshold is masked, so ties leave less than the budget. `official`,
the authors' code, is the same without the forced masking: if T - t_f is not a multiple of the interval, the final
pattern comes one step later. It masks again at every later step, by an importance that no longer changes, hence always
the same directions. `paper` follows algorithm 1: |w g| is read before the step; exactly the b(t) highest are kept; the
scale is alpha / r_init. The numerator that the paper prints, t - t_i - t_f, would start above b_0; no variant uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from elalora.errors import UserError, check_choices, check_numbers
from elalora.importance import Importance
from elalora.low_rank import SVDMethod
from elalora.masked import MaskedMethod
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import changes, split
from elalora.regulariser import FORMS
from elalora.resolve import RunSize, added, unread
from elalora.schedules import Schedule, ThreePhases, length_in

VARIANTS = ("peft", "official", "paper")
PUBLISHED_START = {2: 4, 4: 6, 8: 12}  # section 4: initial rank for a mean target rank


@dataclass
class AdaLoRAConfig:
    """Settings of AdaLoRA; None means a default that scales with budget or run.

    Attributes:
        variant: "peft", "official" or "paper", see the module's docstring.
        alpha: numerator of the scale, over the initial rank for the whole run.
        init_rank: rank of every matrix at the start; None is 4, 6, 12 for a budget of 2, 4, 8, else ceil(1.5 N).
        t_initial, t_final: steps before the first masking and after the last, as a fraction of the run or
            in steps; None is 0.13 and 0.47, the medians of the eight GLUE rows of the paper's Table 8.
        interval: steps between maskings; None is max(1, T / 600), the median of the same rows.
        beta1, beta2: decay of sensitivity and uncertainty.
        orth_weight: gamma; orth_form: "norm" or "squared" (`elalora.regulariser`).
        E_rate: factor on the learning rate of E; E_start: value of E at the start (`elalora.low_rank.SVDMethod`).
        compact: removes masked directions as soon as the pattern is final instead of at the end of the run.
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
    E_rate: float = added(1.0)
    E_start: float = added(0.0)

    def __post_init__(self) -> None:
        check_choices(self, variant=VARIANTS, orth_form=FORMS)
        check_numbers(self, "lie in [0, 1)", "beta1", "beta2")
        check_numbers(self, "be above 0", "E_rate")
        check_numbers(self, "not be negative", "orth_weight", "E_start")

    def resolved(self, size: RunSize) -> AdaLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        start, final, interval = masking_settings(size.steps, self.t_initial, self.t_final, self.interval)
        first = initial_rank(size.rank) if self.init_rank is None and size.rank is not None else self.init_rank
        acting = replace(self, init_rank=first, t_initial=start, t_final=final, interval=interval)
        return acting if self.orth_weight else replace(acting, **unread(self, "orth_form"))


@dataclass(frozen=True)
class Masking(ThreePhases):
    """When singular values are masked, and how many stay; `forced` adds a masking at T - t_f."""

    forced: bool = True

    def budget(self, t: int, first: int, last: int) -> int:
        """b(t), rounded down: `first` until t_i, `last` from T - t_f on."""
        if t <= self.start:
            return first
        if t >= self.end:
            return last
        left = 1 - (t - self.start) / (self.end - self.start)
        return int((first - last) * left**3 + last)

    def due(self, t: int) -> bool:
        """Whether a new pattern is due after step t; the last one that is due stays."""
        regular = t % self.interval == 0
        if t <= self.end:
            return t > self.start and (regular or (self.forced and t == self.end))
        return t == self.end + 1 and not self.due(self.end)


def masking_settings(
    total: int | None, start: float | None, final: float | None, interval: int | None
) -> tuple[float, float, int | None]:
    """t_i, t_f and the interval with their defaults, as far as the steps of the run are known."""
    if interval is None and total is not None:
        interval = max(1, total // 600)
    t_i = length_in(total, start, 0.13, "method.t_initial")
    return t_i, length_in(total, final, 0.47, "method.t_final"), interval


def plan_masking(
    total: int, start: float | None, final: float | None, interval: int | None, forced: bool = True
) -> Masking:
    """The maskings of a run of `total` steps; None stands for a default that scales with it.

    Raises:
        UserError: no step is left for adjustment or for the final pattern, or no masking falls in between.
    """
    t_i, t_f, every = map(int, cast(Any, masking_settings(total, start, final, interval)))
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


class AdaLoRA(MaskedMethod, SVDMethod):
    """See the module's docstring.

    Attributes:
        phases: when maskings happen.
        threshold: score at or below which it masked; None before the first masking.
    """

    name: ClassVar[str] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    saved: ClassVar[Sequence[str]] = ("kept", "threshold", "fixed")
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="final")
    Config: ClassVar[type] = AdaLoRAConfig
    rank_advice: ClassVar[str] = "type method.init_rank={limit} or less, above the budget's rank, or a smaller budget"
    config: AdaLoRAConfig
    phases: Masking

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        first = self.config.init_rank
        assert first is not None, "set by `resolved`"
        if first <= self.mean_rank:
            raise UserError(
                f"method.init_rank={first} must be above the final rank {self.mean_rank} of the budget: "
                f"type method.init_rank={initial_rank(self.mean_rank)} or a smaller budget"
            )
        return dict.fromkeys(linears, first)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        self.phases = plan_masking(total_steps, c.t_initial, c.t_final, c.interval, c.variant != "official")

    def scale(self, rank: int) -> float:
        return self.config.alpha / (rank if self.config.variant == "paper" else rank + 1e-5)

    def after_attach(self) -> None:
        self.importance = Importance(self.adapters, self.config.beta1, self.config.beta2)
        self.trackers = [self.importance]
        self.start_pattern()
        self.threshold: float | None = None
        self._factors: list[Tensor] = []
        self._first, self._last = self.budget_use()  # b_0 and b_T

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
        """Sets a new pattern: the highest scores that b(t) allows stay, the other singular values become 0."""
        scores = self.importance.scores()
        before = self.kept
        allowed = self.phases.budget(step, self._first, self._last)
        tied = self._choose(scores, allowed)
        self.fixed = step >= self.phases.end
        self._factors = []
        self._mask()
        lost, back = changes(before, self.kept)
        if self.fixed and self.config.compact:
            self.remove_masked()
        notes = {"budget": allowed, "tied": tied}
        # the scores of all maskings would take megabytes per run, so only those of the final one are recorded
        return Round(step, self.ranks(), lost, back, scores if self.fixed else {}, notes)

    def _choose(self, scores: Mapping[str, list[float]], allowed: int) -> int:
        """Sets `kept` and `threshold`; returns how many directions within the budget were lost to ties."""
        assert self.budget is not None
        flat = [score for row in scores.values() for score in row]
        by_rank = self.budget.params is None
        costs = [1 if by_rank else self.adapters[name].cost for name, row in scores.items() for _ in row]
        chosen, threshold = highest(flat, costs, allowed)
        kept = chosen
        if self.config.variant != "paper" and threshold is not None:
            kept = [score > threshold for score in flat]
        self.threshold = threshold
        self.kept = split(kept, {name: len(row) for name, row in scores.items()})
        return sum(chosen) - sum(kept)

    @torch.no_grad()
    def _mask(self) -> None:
        """Sets the singular values that are not kept to 0; A, B and all moments stay."""
        values = [adapter.E.detach()[: adapter.rank] for adapter in self.adapters.values() if adapter.E is not None]
        if not self._factors:
            pairs = zip(self.kept.values(), values, strict=True)
            self._factors = [v.new_tensor(kept, dtype=v.dtype) for kept, v in pairs]
        torch._foreach_mul_(values, self._factors)

    def remove_masked(self) -> None:
        super().remove_masked()
        self._factors = []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._factors = []


def initial_rank(target: int) -> int:
    """Rank at the start for a final mean rank N: as published, else ceil(1.5 N); always above N."""
    return PUBLISHED_START.get(target, math.ceil(1.5 * target))


def highest(scores: Sequence[float], costs: Sequence[int], allowed: int) -> tuple[list[bool], float | None]:
    """Keeps the highest scores whose costs sum to at most `allowed`; of equal scores the later entry.

    With unit costs the threshold is the (n - allowed)-th smallest score, as torch.kthvalue returns it.

    Returns:
        Which entries stay, and the highest score among the others (None if all stay).
    """
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
    kept = [False] * len(scores)
    for i in order:
        allowed -= costs[i]
        if allowed < 0:
            return kept, scores[i]
        kept[i] = True
    return kept, None
