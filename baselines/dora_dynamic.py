"""Dynamic-rank DoRA: directions with small shares of the update are pruned, softly at first (arXiv 2405.17357).

Not weight-decomposed DoRA (arXiv 2402.09353), which is `method=peft` with `use_dora=true`.

    W   = W0 + (alpha / r0) B diag(c) A             r0 = ceil(1.5 N), c = 0, A and B Kaiming-uniform with a = 0
    s_i = ||B_i c_i A_i|| / (||sum_j B_j c_j A_j|| + eps)             s <- beta s + (1 - beta) s_i after each step
    L  += eta * (mean over all directions of Var(A_i) and Var(B_i))   until the last pruning

Within the window from 0.15 T to 0.5 T, of length L, a round at step t of it sets to 0 the c of the
(r0 - N) n_mat (t / L)^3 directions of smallest s. Nothing else changes, so c grows again and a direction may return at
the next round. What the round at t = L prunes is removed for good.

The paper's text was not at hand: formulas and constants are those of the authors' code, and `variant=paper` is that
code without its accidents M1, M2, M5, M6 and M7 (docs/methods/dora_dynamic.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import NamedTensors, draw_uniform
from elalora.masked import MaskedMethod
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import changes, split
from elalora.resolve import RunSize
from elalora.schedules import Schedule, ThreePhases, length_in, steps_of

from .adalora import highest

SWITCHES = ("M1", "M2", "M5", "M6", "M7")


@dataclass
class DynamicDoRAConfig:
    """Settings of dynamic-rank DoRA; None means a default that scales with budget or run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / r0.
        init_rank: r0, the rank of every matrix at the start; None is ceil(1.5 N).
        t_initial, t_final: steps before the window of pruning and after it, as a fraction of the run or in steps; None
            is 0.15 and 0.5.
        interval: steps between rounds; None is max(1, T / 80), the authors' 100 of 8,025.
        beta: decay of the score.
        reg_weight: eta, the weight of the variance.
        dropout: probability of dropping an input of the update.
        M1: every round prunes at least one direction, and there is one at the start of the window.
        M2: c is subject to weight decay.
        M5: directions equal to the threshold are pruned too.
        M6: the round at the start of the window happens twice if 0.15 T is not whole.
        M7: pruned directions stay in the optimizer, and in the clipped norm, to the end of the run. None takes the
            variant's value: false in "paper", true in "official".
    """

    variant: str = "paper"
    alpha: float = 8.0
    init_rank: int | None = None
    t_initial: float | None = None
    t_final: float | None = None
    interval: int | None = None
    beta: float = 0.9
    reg_weight: float = 0.1
    dropout: float = 0.0
    M1: bool | None = None
    M2: bool | None = None
    M5: bool | None = None
    M6: bool | None = None
    M7: bool | None = None

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"))
        check_numbers(self, "lie in [0, 1)", "beta", "dropout")
        check_numbers(self, "not be negative", "reg_weight")
        check_numbers(self, "be at least 1", "interval")

    def resolved(self, size: RunSize) -> DynamicDoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        switches: dict[str, Any] = {
            name: self.variant == "official" if getattr(self, name) is None else getattr(self, name)
            for name in SWITCHES
        }
        interval, first = self.interval, self.init_rank
        if interval is None and size.steps is not None:
            interval = max(1, round(size.steps * 100 / 8025))
        if first is None and size.rank is not None:
            first = math.ceil(1.5 * size.rank)
        steps = None if switches["M6"] else size.steps  # M6 depends on the part of a step that rounding removes
        start = length_in(steps, self.t_initial, 0.15, "method.t_initial")
        final = length_in(steps, self.t_final, 0.5, "method.t_final")
        return replace(self, init_rank=first, t_initial=start, t_final=final, interval=interval, **switches)


@dataclass(frozen=True)
class Window(ThreePhases):
    """The window of pruning and its rounds.

    Attributes:
        openings: rounds that prune before the first one in which the schedule asks for it: none, at step 0 of the
            window (M1), or also one step earlier (M6).
    """

    openings: int = 0

    @property
    def length(self) -> int:
        """L, steps of the window."""
        return self.end - self.start

    def due(self, t: int) -> bool:
        """Whether a round is due after step t, 0-based."""
        at = t + 1 - self.start
        if at <= 0:
            return at > -self.openings
        return at == self.length or (at < self.length and at % self.interval == 0)

    def pruned(self, t: int, surplus: int) -> int:
        """How much of the surplus over the budget is pruned after step t: surplus (t / L)^3, rounded down."""
        return surplus * max(0, t + 1 - self.start) ** 3 // self.length**3  # exact, where floats may miss one


def plan_window(total: int, start: float, final: float, interval: int, first_round: bool, truncates: bool) -> Window:
    """The window of a run of `total` steps.

    Args:
        total: steps of the run.
        start: steps before the window, or a fraction of the run.
        final: steps after it, or a fraction of the run.
        interval: steps between rounds.
        first_round: a round at the start of the window prunes a direction (M1).
        truncates: fractions become steps as in the authors' code, and the round at the start of the window happens
            twice if it does not fall on a whole step (M6).

    Raises:
        UserError: no step is left for the window.
    """
    first, last = steps_of(start, total, "method.t_initial"), steps_of(final, total, "method.t_final")
    twice = False
    if truncates and 0 < start < 1:
        first, twice = math.ceil(start * total), start * total % 1 > 0
    if truncates and 0 < final < 1:
        length = int(total * (1 - (start if 0 < start < 1 else start / total) - final))
        last = total - first - length
    return Window(total, first, last, interval, (1 + twice) * first_round)


class DynamicDoRA(MaskedMethod):
    """See the module's docstring.

    Attributes:
        phases: the window of pruning.
    """

    name: ClassVar[str] = "dora_dynamic"
    title: ClassVar[str] = "Dynamic-rank DoRA"
    singular: ClassVar[bool] = True
    saved: ClassVar[Sequence[str]] = ("kept", "fixed")
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="final")
    rank_advice: ClassVar[str] = "type method.init_rank={limit} or less, above the budget's rank, or a smaller budget"
    Config: ClassVar[type] = DynamicDoRAConfig
    config: DynamicDoRAConfig
    phases: Window

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        first = self.config.init_rank
        assert first is not None, "set by `resolved`"
        if first <= self.mean_rank:
            raise UserError(
                f"method.init_rank={first} must be above the final rank {self.mean_rank} of the budget: type "
                f"method.init_rank={math.ceil(1.5 * self.mean_rank)} or a smaller budget"
            )
        return dict.fromkeys(linears, first)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config.resolved(RunSize(total_steps))
        assert c.t_initial is not None and c.t_final is not None and c.interval is not None
        self.phases = plan_window(total_steps, c.t_initial, c.t_final, c.interval, bool(c.M1), bool(c.M6))

    def initialise(self, adapter: LowRankLinear) -> None:
        for factor, inputs in ((adapter.A, adapter.in_features), (adapter.B, adapter.rank)):
            draw_uniform(factor, adapter.rank, math.sqrt(6 / inputs), self.generator)

    def after_attach(self) -> None:
        self.start_pattern()
        self.scores = NamedTensors("score", {"all": (sum(map(len, self.kept.values())),)})  # s of all directions
        self.trackers = [self.scores]
        self._first, self._last = self.budget_use()

    def decays(self, parameter: nn.Parameter) -> bool:
        return super().decays(parameter) if self.config.M2 else parameter.ndim > 1

    def penalty(self) -> Tensor | None:
        if self.fixed or not self.config.reg_weight:
            return None
        return self.config.reg_weight * mean_variance(self.adapters.values())

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if self.fixed:
            self._mask()
            return None
        now = torch.cat([shares(adapter) for adapter in self.adapters.values()])
        past = self.scores.get("all", torch.zeros_like(now)).to(now)
        self.scores["all"] = self.config.beta * past + (1 - self.config.beta) * now
        if not self.phases.due(step):
            return None
        self.rounds_seen.append(self._round(step))
        return self.rounds_seen[-1]

    def _round(self, step: int) -> Round:
        flat = self.scores["all"].tolist()
        before, allowed = self.kept, self._first - self.phases.pruned(step, self._first - self._last)
        if self.config.M1:
            allowed = min(allowed, self._first - 1)
        assert self.budget is not None
        sizes = {name: adapter.rank for name, adapter in self.adapters.items()}
        costs = [1 if self.budget.params is None else self.adapters[name].cost for name in sizes for _ in before[name]]
        chosen, threshold = highest(flat, costs, allowed)
        kept = [s > threshold for s in flat] if self.config.M5 and threshold is not None else chosen
        self.kept = split(kept, sizes)
        self._mask()
        lost, back = changes(before, self.kept)
        self.fixed = step + 1 == self.phases.end
        ranks, scores = self.ranks(), split(flat, sizes) if self.fixed else {}
        if self.fixed:
            self.scores.clear()
            if not self.config.M7:
                self.remove_masked()
        return Round(step, ranks, lost, back, scores, {"budget": allowed, "tied": sum(chosen) - sum(kept)})

    def _mask(self) -> None:
        """Sets c of the pruned directions to 0; A, B and all moments stay."""
        for name, slots in self.kept.items():
            gates = self.adapters[name].E
            assert gates is not None
            gates.detach()[[slot for slot, kept in enumerate(slots) if not kept]] = 0.0


def shares(adapter: LowRankLinear, eps: float = 1e-8) -> Tensor:
    """Norm of each direction's update over that of the whole update of its matrix, (r,); 0 while c = 0."""
    assert adapter.E is not None
    r = adapter.rank
    a, b, c = adapter.A[:r], adapter.B[:r], adapter.E[:r]
    products = (a @ a.T) * (b @ b.T) * torch.outer(c, c)  # <B_i c_i A_i, B_j c_j A_j>, (r, r)
    return products.diagonal().sqrt() / (products.sum().clamp(min=0).sqrt() + eps)


def mean_variance(adapters: Any) -> Tensor:
    """Mean of the unbiased variances of A_i over d_in and of B_i over d_out, over all active directions."""
    by_width: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
    for adapter in adapters:
        for factor in (adapter.A, adapter.B):
            by_width[factor.shape[1], factor.device].append(factor[: adapter.rank])
    variances = [torch.cat(rows).var(dim=1) for rows in by_width.values()]
    total = sum((v.sum().to(variances[0]) for v in variances[1:]), variances[0].sum())
    return total / sum(map(len, variances))
