"""BeamLoRA: the weak ranks of a LoRA are overwritten by the strong ones (arXiv 2502.13604).

    y   = W0 x + (alpha / r) B ((A x) w(s))     w(s) = r softmax(s / tau), s = 0 at the start: LoRA exactly
    A Kaiming-uniform, B = 0, alpha = 2r

Every `interval` steps, all w of all matrices are sorted. The smallest set whose sum exceeds p(t) of the whole is
kept (eq. of p below), the rest is pruned, at most half of a matrix. In a matrix that loses K ranks, its K strongest
are paired with them at random: row of A, column of B and their moments become those the strong one had half an
interval ago, both get the mean of their two s, and the moments of both s start again.

    p(t) = 1 - (1 - p0) (1 + cos(pi t / t_end)) / 2         from p0 = 0.95 to 1: many moves early, none from t_end on

Ranks never change; what moves is which directions a matrix spends them on. `variant=official` has the accident of
the authors' code, where the copy of the moments of A and B acts on a temporary: they stay those of the pruned one.

Marked as reconstructed: the formulas are those of the authors' code, but what "the gate value" of the pair's mean
is (here s), how the cap of one half picks (here the weakest go first) and the moments' step counters were not
checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.adapters import LowRankLinear
from elalora.directions import Directions
from elalora.errors import UserError
from elalora.method import Capabilities, LowRankMethod, NeverActed, Round, draw_kaiming
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, steps_of

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class BeamLoRAConfig:
    """Choices of BeamLoRA; None means the default that scales with the run.

    Attributes:
        variant: "paper" (moments of A and B are copied along) or "official" (they are not).
        alpha: numerator of the scale alpha / r; None is 2r.
        tau: temperature of the softmax; the authors take 0.03 for learning rates below 1e-4.
        interval: steps between rounds; None is max(2, 0.081 T), the authors' 3,000 of 37,031.
        keep: p0, the share of the importance that the first round would keep.
        end: when p reaches 1, as a fraction of the run or in steps; None is two thirds, their 24,688 of 37,031.
        historical: copy the strong direction as it was half an interval ago; false copies it as it is.
    """

    variant: str = "paper"
    alpha: float | None = None
    tau: float = 0.05
    interval: int | None = None
    keep: float = 0.95
    end: float | None = None
    historical: bool = True

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "official"):
            raise UserError(f"method.variant={self.variant} is unknown; allowed: paper, official")
        if self.tau <= 0:
            raise UserError(f"method.tau={self.tau} must be above 0")
        if not 0 < self.keep <= 1:
            raise UserError(f"method.keep={self.keep} must lie in (0, 1]")


class BeamLinear(LowRankLinear):
    """An adapted matrix whose directions are weighted by r softmax(s / tau); E holds s."""

    def __init__(self, base: nn.Linear, directions: Directions, scale: float, tau: float) -> None:
        super().__init__(base, directions, scale, singular=True)
        self.tau = tau

    def weights(self) -> Tensor:
        """w (r,): positive, their mean is 1."""
        assert self.E is not None
        return self.rank * torch.softmax(self.E[: self.rank] / self.tau, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (tokens, d_in)
        frozen = self.base(rows)  # (tokens, d_out)
        down = F.linear(rows, self.A[: self.rank].to(rows.dtype))  # (tokens, r)
        up = self.B[: self.rank] * (self.weights()[:, None] * self.scale)  # (r, d_out)
        return torch.addmm(frozen, down.to(frozen.dtype), up.to(frozen.dtype)).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def take(self, a: Tensor, b: Tensor) -> None:
        n = a.shape[0]  # s is 0 at the start, so all weights are 1
        self.A[:n], self.B[:n] = a.to(self.A), (b.T / self.scale).to(self.B)

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        up = self.B[: self.rank] * (self.weights()[:, None] * self.scale)
        return self.A[: self.rank].clone(), up.T.contiguous()


class BeamLoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        interval, end: in steps.
    """

    name: ClassVar[str] = "beamlora"
    title: ClassVar[str] = "BeamLoRA"
    singular: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, reconstructed=True)
    Config: ClassVar[type] = BeamLoRAConfig
    config: BeamLoRAConfig
    adapters: dict[str, BeamLinear]  # type: ignore[assignment]

    # -- set-up ----------------------------------------------------------------------------------------

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config
        if self.mean_rank < 2:
            raise UserError("method=beamlora pairs a weak rank with a strong one and needs two: type budget=r2 or more")
        self.interval = max(2, round(total_steps * 3000 / 37031)) if c.interval is None else c.interval
        self.end = steps_of(2 / 3 if c.end is None else c.end, total_steps, "method.end")
        if not 2 <= self.interval <= total_steps // 2 or not 1 <= self.end <= total_steps:
            raise UserError(
                f"method.interval={self.interval} must lie between 2 and half of the run's {total_steps} steps, and "
                f"method.end={self.end} between 1 and {total_steps}; or train longer (trainer.max_steps)"
            )
        self.past: dict[str, Tensor] = {}

    def scale(self, rank: int) -> float:
        return 2.0 if self.config.alpha is None else self.config.alpha / rank

    def _adapter(self, linear: nn.Linear, rank: int) -> BeamLinear:
        return BeamLinear(linear, Directions(rank, rank), self.scale(rank), self.config.tau)

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    def decays(self, parameter: nn.Parameter) -> bool:
        """Not s: decay on it would pull every matrix back to plain LoRA."""
        return parameter.ndim > 1

    # -- training --------------------------------------------------------------------------------------

    def due(self, done: int) -> bool:
        """Whether a round follows when `done` steps are done: a full interval must be left to recover."""
        return done % self.interval == 0 and 0 < done <= self.total_steps - self.interval

    def share(self, done: int) -> float:
        """p: the share of the importance that is kept, rising from p0 to 1 at `end`."""
        wave = (1 + math.cos(math.pi * min(1.0, done / self.end))) / 2
        return 1 - (1 - self.config.keep) * wave

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        done = step + 1
        if done % self.interval == self.interval // 2:
            self.past = {key: row.clone() for key, row in self._copied(optimizer).items()}
        if not self.due(done):
            return None
        scores = {name: adapter.weights().tolist() for name, adapter in self.adapters.items()}
        pruned = weakest(scores, self.share(done))
        now = self._copied(optimizer)
        for name, slots in pruned.items():
            partners = self._partners(scores[name], len(slots))
            self._overwrite(name, slots, partners, now, self.past if self.config.historical else now)
            self._share_gate(self.adapters[name], slots, partners, optimizer)
        self.rounds_seen.append(
            Round(
                step,
                self.ranks(),
                [(name, slot) for name, slots in pruned.items() for slot in slots],
                [name for name, slots in pruned.items() for _ in slots],
                scores,
            )
        )
        return self.rounds_seen[-1]

    def _copied(self, optimizer: RowwiseAdamW) -> dict[str, Tensor]:
        """A, B and their moments as they are, by "matrix.factor.what"."""
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
        """Each weak slot of A and B becomes what its partner was in `source`."""
        for factor in "AB":
            for what in ("value", *MOMENTS) if self.config.variant == "paper" else ("value",):
                key = f"{name}.{factor}.{what}"
                now[key][slots] = source[key][partners].to(now[key])

    def _share_gate(self, adapter: BeamLinear, slots: list[int], partners: list[int], optimizer: RowwiseAdamW) -> None:
        """Both of a pair get the mean of their s, and their moments start again.

        In "official" the step counter goes on: there it belongs to the whole tensor.
        """
        assert adapter.E is not None
        mean = (adapter.E[slots] + adapter.E[partners]) / 2
        adapter.E[slots] = mean
        adapter.E[partners] = mean
        state = optimizer.state[adapter.E]
        for what in MOMENTS if self.config.variant == "paper" else MOMENTS[:2]:
            state[what][slots + partners] = 0.0

    def finish(self) -> None:
        super().finish()
        due = sum(self.due(done) and self.share(done) < 1 for done in range(1, self.total_steps + 1))
        if due and not any(r.grown for r in self.rounds_seen):
            raise NeverActed(
                f"{due} rounds were due and no rank moved ({len(self.rounds_seen)} rounds ran): after_step was not "
                "called, or the importances are so even that nothing lies outside p: lower method.keep"
            )

    # -- reading ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {f"past.{key}": tensor for key, tensor in self.past.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.past = {key.removeprefix("past."): t.clone() for key, t in state.items() if key.startswith("past.")}
        if self.past and {key: t.shape for key, t in self.past.items()} != self._copied_shapes():
            raise ValueError("the rows kept for copies are those of other matrices")

    def _copied_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `_copied` gives."""
        factors = [(f"{n}.{f}", p) for n, a in self.adapters.items() for f, p in (("A", a.A), ("B", a.B))]
        whole = {f"{key}.{what}": tuple(p.shape) for key, p in factors for what in ("value", *MOMENTS[:2])}
        return whole | {f"{key}.step": (len(p),) for key, p in factors}


def weakest(scores: Mapping[str, list[float]], share: float) -> dict[str, list[int]]:
    """The slots to prune by matrix: all outside the smallest set whose sum exceeds `share` of the whole.

    At most half of a matrix goes, the weakest first, because each needs a partner that stays.
    """
    everything = [(w, name, i) for name, row in scores.items() for i, w in enumerate(row)]
    everything.sort(key=lambda entry: -entry[0])  # stable: among equals the later slot is the weaker
    limit = share * sum(w for w, _, _ in everything)
    out: dict[str, list[int]] = {name: [] for name in scores}  # in the model's order, which the draws follow
    total = 0.0
    for w, name, slot in everything:
        if total > limit:
            out[name].append(slot)  # strongest first
        total += w
    halves = {name: slots[max(0, len(slots) - len(scores[name]) // 2) :] for name, slots in out.items()}
    return {name: slots for name, slots in halves.items() if slots}
