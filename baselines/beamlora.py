"""BeamLoRA: the weak ranks of a LoRA are overwritten by the strong ones (arXiv 2502.13604).

    y   = W0 x + (alpha / r) B ((A x) w(s))     w(s) = r softmax(s / tau), s = 0 at the start: LoRA exactly
    A Kaiming-uniform, B = 0, alpha = 2r

Every `interval` steps, all w of all matrices are sorted. The smallest set whose sum exceeds p(t) of the total is kept,
the rest is pruned, at most half of a matrix. In a matrix that loses K ranks, these are paired at random with its K
strongest: row of A, column of B and their moments become those that the strong rank had half an interval ago, both get
the mean of their two s, and the moments of both s are reset.

    p(t) = 1 - (1 - p0) (1 + cos(pi t / t_end)) / 2         from p0 = 0.95 to 1: many moves early, none from t_end on

Ranks never change, only the directions that a matrix spends them on.

`variant=paper` is the above; where the paper is silent it takes the value of the authors' code. `variant=official` is
that code, which differs in six places, each with its own switch B1 to B6 (docs/methods/beamlora.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.directions import Directions
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import LowRankMethod, NamedTensors, draw_kaiming
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.resolve import RunSize, added, unread
from elalora.schedules import Schedule, length_in

SWITCHES = ("B1", "B2", "B3", "B4", "B5", "B6")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class BeamLoRAConfig:
    """Settings of BeamLoRA; None means a default that scales with the run.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / r; None is 2r.
        tau: temperature of the softmax; the authors use 0.03 for learning rates below 1e-4.
        interval: steps between rounds; None is max(2, 0.081 T), the authors' 3,000 of 37,031.
        keep: p0, the share of the importance that is kept at step 0.
        end: when p reaches 1, as a fraction of the run or in steps; None is two thirds, their 24,688 of 37,031.
        historical: copies the strong direction as it was half an interval ago; false copies its current state.
        B1: A and B keep the moments of the pruned rank, and no step counter changes.
        B2: the rank at which the sum of the sorted w crosses p is pruned too.
        B3: a matrix may lose more than half of its ranks, so that a partner may itself be pruned.
        B4: every round resets the moments of all s of all matrices.
        B5: the copy is taken one step after half an interval.
        B6: a round uses p of the step before. None takes the variant's value: false in "paper", true in "official".
    """

    variant: str = "paper"
    alpha: float | None = None
    tau: float = 0.05
    interval: int | None = None
    keep: float = 0.95
    end: float | None = None
    historical: bool = True
    B1: bool | None = added(None)
    B2: bool | None = added(None)
    B3: bool | None = added(None)
    B4: bool | None = added(None)
    B5: bool | None = added(None)
    B6: bool | None = added(None)

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"))
        check_numbers(self, "be above 0", "tau")
        check_numbers(self, "lie in (0, 1]", "keep")

    def resolved(self, size: RunSize) -> BeamLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        alpha, interval = self.alpha, self.interval
        if alpha is None and size.rank is not None:
            alpha = 2.0 * size.rank
        if interval is None and size.steps is not None:
            interval = max(2, round(size.steps * 3000 / 37031))
        end = length_in(size.steps, self.end, 2 / 3, "method.end")
        switches: dict[str, Any] = {name: self.on(name) for name in SWITCHES} | unread(self, *["B5"][self.historical :])
        return replace(self, alpha=alpha, interval=interval, end=end, **switches)

    def on(self, switch: str) -> bool:
        """B1 to B6: as set, or else the variant's value."""
        value = getattr(self, switch)
        return self.variant == "official" if value is None else value


class BeamLinear(LowRankLinear):
    """An adapted matrix whose directions are weighted by r softmax(s / tau); s is stored in E."""

    fused: ClassVar[bool] = False

    def __init__(self, base: nn.Linear, directions: Directions, scale: float, tau: float) -> None:
        super().__init__(base, directions, scale, singular=True)
        self.tau = tau

    def weights(self) -> Tensor:
        """w (r,): positive, with mean 1."""
        assert self.E is not None
        return self.rank * torch.softmax(self.E[: self.rank] / self.tau, dim=0)

    def scaled_b(self) -> Tensor:
        return self.B[: self.rank] * (self.weights()[:, None] * self.scale)

    @torch.no_grad()
    def take(self, a: Tensor, b: Tensor) -> None:
        self._take_unchanged(a, b)  # s is 0 at the start, so all weights are 1

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        return self.A[: self.rank].clone(), self.scaled_b().T.contiguous()


class BeamLoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        interval, end: in steps.
        past: A, B and their moments about half an interval before the next round, by "matrix.factor.what".
    """

    name: ClassVar[str] = "beamlora"
    title: ClassVar[str] = "BeamLoRA"
    revised: ClassVar[Mapping[str, int]] = {"official": 2}  # 1 had B1 alone
    singular: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True)
    Config: ClassVar[type] = BeamLoRAConfig
    config: BeamLoRAConfig
    adapters: dict[str, BeamLinear]  # type: ignore[assignment]

    def plan(self, total_steps: int, rank_sum: int) -> None:
        if self.mean_rank < 2:
            raise UserError("method=beamlora pairs a weak rank with a strong one: type budget=r2 or more")
        acting = self.config.resolved(RunSize(total_steps))
        assert acting.interval is not None and acting.end is not None
        self.interval, self.end = acting.interval, int(acting.end)
        if not 2 <= self.interval <= total_steps // 2 or not 1 <= self.end <= total_steps:
            raise UserError(
                f"method.interval={self.interval} must lie between 2 and half of the run's {total_steps} steps, and "
                f"method.end={self.end} between 1 and {total_steps}; or train longer (trainer.max_steps)"
            )

    def after_attach(self) -> None:
        factors = [(f"{n}.{f}", p) for n, a in self.adapters.items() for f, p in (("A", a.A), ("B", a.B))]
        shapes = {f"{key}.{what}": tuple(p.shape) for key, p in factors for what in ("value", *MOMENTS[:2])}
        self.past = NamedTensors("past", shapes | {f"{key}.step": (len(p),) for key, p in factors})
        self.trackers = [self.past]

    def scale(self, rank: int) -> float:
        return 2.0 if self.config.alpha is None else self.config.alpha / rank

    def _adapter(self, linear: nn.Linear, rank: int) -> BeamLinear:
        return BeamLinear(linear, Directions(rank, rank), self.scale(rank), self.config.tau)

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    def decays(self, parameter: nn.Parameter) -> bool:
        """As in the base class, except s: decay would pull every matrix back to plain LoRA."""
        return parameter.ndim > 1

    def due(self, done: int) -> bool:
        """Whether a round follows after `done` steps: a full interval must be left to recover."""
        return done % self.interval == 0 and 0 < done <= self.total_steps - self.interval

    def share(self, done: int) -> float:
        """p: the share of the importance that is kept, rising from p0 to 1 at `end`."""
        wave = (1 + math.cos(math.pi * min(1.0, done / self.end))) / 2
        return 1 - (1 - self.config.keep) * wave

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        on, done = self.config.on, step + 1
        if (done - self.interval // 2 - on("B5")) % self.interval == 0:
            self.past.update({key: row.clone() for key, row in self._copied(optimizer).items()})
        if not self.due(done):
            return None
        scores = {name: adapter.weights().tolist() for name, adapter in self.adapters.items()}
        pruned = weakest(scores, self.share(done - on("B6")), crossing=on("B2"), halves=not on("B3"))
        now = self._copied(optimizer)
        for name, slots in pruned.items():
            partners = self._partners(scores[name], len(slots))
            self._overwrite(name, slots, partners, now, self.past if self.config.historical else now)
            self._share_gate(self.adapters[name], slots, partners, optimizer)
        if on("B4"):
            for adapter in self.adapters.values():
                self._reset_gates(adapter, list(range(adapter.rank)), optimizer)
        replaced = [(name, slot) for name, slots in pruned.items() for slot in slots]
        self.rounds_seen.append(Round(step, self.ranks(), replaced, [name for name, _ in replaced], scores))
        return self.rounds_seen[-1]

    def _copied(self, optimizer: RowwiseAdamW) -> dict[str, Tensor]:
        """The current A, B and their moments, by "matrix.factor.what"."""
        tensors: dict[str, Tensor] = {}
        for name, adapter in self.adapters.items():
            for factor, parameter in (("A", adapter.A), ("B", adapter.B)):
                tensors[f"{name}.{factor}.value"] = parameter.detach()
                state = optimizer.state[parameter]
                tensors |= {f"{name}.{factor}.{what}": state[what] for what in MOMENTS}
        return tensors

    def _partners(self, scores: list[float], count: int) -> list[int]:
        """The strongest slots of a matrix in random order."""
        strongest = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
        return [strongest[i] for i in torch.randperm(count, generator=self.generator).tolist()]

    def _overwrite(
        self, name: str, slots: list[int], partners: list[int], now: Mapping[str, Tensor], source: Mapping[str, Tensor]
    ) -> None:
        """Replaces each weak slot of A and B by its partner in `source`."""
        for factor in "AB":
            for what in ("value",) if self.config.on("B1") else ("value", *MOMENTS):
                key = f"{name}.{factor}.{what}"
                now[key][slots] = source[key][partners].to(now[key])

    def _share_gate(self, adapter: BeamLinear, slots: list[int], partners: list[int], optimizer: RowwiseAdamW) -> None:
        """Gives both of a pair the mean of their s and resets its moments."""
        assert adapter.E is not None
        mean = (adapter.E[slots] + adapter.E[partners]) / 2
        adapter.E[slots] = mean
        adapter.E[partners] = mean
        self._reset_gates(adapter, slots + partners, optimizer)

    def _reset_gates(self, adapter: BeamLinear, slots: list[int], optimizer: RowwiseAdamW) -> None:
        """Sets the moments of these s to 0, and their step counters except with B1: there a tensor has only one."""
        assert adapter.E is not None
        for what in MOMENTS[:2] if self.config.on("B1") else MOMENTS:
            optimizer.state[adapter.E][what][slots] = 0.0

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def finish(self) -> None:
        super().finish()
        due = sum(
            self.due(done) and self.share(done - self.config.on("B6")) < 1 for done in range(1, self.total_steps + 1)
        )
        self.check_acted(
            due,
            "after_step was not called, or the importances are so even that no rank lies outside p: lower method.keep",
        )


def weakest(
    scores: Mapping[str, list[float]], share: float, crossing: bool = False, halves: bool = True
) -> dict[str, list[int]]:
    """The slots to prune, by matrix: all outside the smallest set whose sum exceeds `share` of the total.

    Args:
        scores: w by matrix; of equal ones the later counts as the weaker.
        share: none is pruned if it is 1.
        crossing: also prunes the slot with which the sum exceeds `share`.
        halves: prunes at most half of a matrix, the weakest first, so that each has a partner that stays.
    """
    if share >= 1:
        return {}
    everything = [(w, name, i) for name, row in scores.items() for i, w in enumerate(row)]
    everything.sort(key=lambda entry: -entry[0])  # stable
    limit = share * sum(w for w, _, _ in everything)
    out: dict[str, list[int]] = {name: [] for name in scores}  # in the model's order, which random draws follow
    total = 0.0
    for w, name, slot in everything:
        if total + crossing * w > limit:
            out[name].append(slot)  # strongest first
        total += w
    if halves:
        out = {name: slots[max(0, len(slots) - len(scores[name]) // 2) :] for name, slots in out.items()}
    return {name: slots for name, slots in out.items() if slots}
