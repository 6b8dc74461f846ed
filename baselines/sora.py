"""SoRA: sparse gates on the directions of a LoRA (Ding et al., arXiv 2311.11696).

    W = W0 + (alpha / r_max) B diag(g) A      A Kaiming-uniform, B = 0, g ~ N(0, 1)
    g <- T_xi(AdamW step on g)                T_xi(g) = sign(g) max(|g| - xi, 0), after every step
    loss + lambda1 * sum|g| / (number of gates)

A direction counts while its gate is not 0; at the end the others are removed, which leaves the outputs unchanged. A
gate at exactly 0 keeps its moments and its gradient, so it can return: the next AdamW step moves it, and it stays
nonzero if that step is longer than the shrinkage. Slots are therefore never freed before `finish`.

The default xi follows from the length T of the run. A gate without a gradient loses xi per step, so after T steps
the gates with |g| < T xi at the start are 0. To keep N of r_max, P(|g| < c) = 1 - N / r_max for g ~ N(0, 1), that
is c = Phi^-1(1 - N / (2 r_max)); for r_max = 2N it is Phi^-1(3/4) = 0.674, and xi = c / T.

The paper's text was not available: formulas and constants are those of the authors' code, and `variant=paper` is that
code without its accidents S1 (dead zone), S2 (L1 twice) and S3 (learning rate 0 in later stages).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import OFF_BUDGET, LowRankMethod, apart, draw_kaiming, draw_normal
from elalora.method import Capabilities, MethodFailure, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import changes, dropped, select, split
from elalora.resolve import RunSize, unread
from elalora.schedules import Schedule

VARIANTS = ("paper", "official")
SPACINGS = ("linear", "log_linear", "exp_linear")


@dataclass
class SoRAConfig:
    """Settings of SoRA; None means a default that scales with the run, or the variant's value.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / r_max.
        r_max: gates per matrix; None is 2N, at most min(d_in, d_out).
        xi: shrinkage of every gate per step; None is c / T, see the module's docstring.
        multiply_lr: multiplies xi by the learning rate over its peak (the paper's eta_t * lambda); the default xi is
            then c divided by the sum of these factors.
        lambda1: weight of the L1 term in the loss; None is 0 in "paper", because the proximal step *is* the
            L1 term (S2), and 10 in "official".
        gate_lr: learning rate of the gates; None is the learning rate of the rest.
        lambda_num: stages of the sparsifying schedule, each with its own xi; 1 means no schedule.
        max_lambda: xi of the last stage.
        lambda_schedule: spacing of xi between the stages: "linear", "log_linear" or "exp_linear".
        stage_share: length of each later stage divided by the first; the authors' script has 15 epochs after 50.
        S1: sets every gate below 2 xi to 0; S3: the learning rate stays 0 after the first stage. None takes the
            variant's value.
        train_layernorms: trains the LayerNorms too, as the authors do; false for matched comparisons.
        report_every: steps between two entries of the rank record; None is max(1, T // 20).
    """

    variant: str = "paper"
    alpha: float = 16.0
    r_max: int | None = None
    xi: float | None = None
    multiply_lr: bool = False
    lambda1: float | None = None
    gate_lr: float | None = None
    lambda_num: int = 1
    max_lambda: float | None = None
    lambda_schedule: str = "linear"
    stage_share: float = 0.3
    S1: bool | None = None
    S3: bool | None = None
    train_layernorms: bool = True
    report_every: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, variant=VARIANTS, lambda_schedule=SPACINGS)
        check_numbers(self, "not be negative", "xi", "lambda1", "gate_lr", "max_lambda", "stage_share")
        check_numbers(self, "be at least 1", "lambda_num", "report_every")
        if self.lambda_num > 1 and self.max_lambda is None:
            raise UserError(f"method.lambda_num={self.lambda_num} stages need a last xi: type method.max_lambda=7e-4")
        if self.lambda_num > 1 and self.lambda_schedule == "exp_linear" and 0 in (self.xi, self.max_lambda):
            raise UserError("method.lambda_schedule=exp_linear needs method.xi and max_lambda above 0")

    def resolved(self, size: RunSize) -> SoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        stages = ("max_lambda", "lambda_schedule", "stage_share") if self.lambda_num == 1 else ()
        every = self.report_every
        if every is None and size.steps is not None:
            every = max(1, size.steps // 20)
        return replace(
            self,
            r_max=None if size.rank is not None and self.r_max == 2 * size.rank else self.r_max,
            lambda1=float(self.effective("lambda1")),
            gate_lr=None if self.gate_lr == size.lr else self.gate_lr,
            S1=bool(self.effective("S1")),
            S3=bool(self.effective("S3")) and self.lambda_num > 1,
            report_every=every,
            **unread(self, *stages),
        )

    def effective(self, name: str) -> Any:
        """S1, S3 or lambda1: as set, or else the variant's value."""
        official = {"S1": True, "S3": True, "lambda1": 10.0}
        default = official[name] if self.variant == "official" else 0
        return default if getattr(self, name) is None else getattr(self, name)


class SoRA(LowRankMethod):
    """See the module's docstring.

    Attributes:
        lengths: steps of each stage.
        alive: whether the gate of each slot was nonzero at the last report.
        last_step: the last step after which the gates were shrunk; -1 before the first.
    """

    name: ClassVar[str] = "sora"
    title: ClassVar[str] = "SoRA"
    singular: ClassVar[bool] = True
    saved: ClassVar[Sequence[str]] = ("alive", "last_step")
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="soft")
    Config: ClassVar[type] = SoRAConfig
    config: SoRAConfig

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        limits = {name: min(linear.in_features, linear.out_features) for name, linear in linears.items()}
        r_max, n = self.config.r_max, self.mean_rank
        if r_max is None:
            return {name: max(n, min(2 * n, limit)) for name, limit in limits.items()}
        smallest = min(limits.values())
        if not n <= r_max <= smallest:
            raise UserError(
                f"method.r_max={r_max} must lie between the budget's rank {n} and {smallest}, the largest rank of the "
                "smallest matrix"
            )
        return dict.fromkeys(linears, r_max)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        self.gates = rank_sum
        self.lengths = stage_lengths(total_steps, self.config.lambda_num, self.config.stage_share)
        self.every = self.config.report_every or max(1, total_steps // 20)
        self.last_step = -1
        self._values: list[float] = []

    def extra_parameters(self, model: nn.Module, keep: Sequence[str]) -> Iterable[nn.Parameter]:
        self._layernorms = layernorms(model, keep) if self.config.train_layernorms else []
        return [p for name in self._layernorms for p in model.get_submodule(name).parameters()]

    def after_attach(self) -> None:
        self.alive = self._pattern()

    def trained_modules(self) -> list[str]:
        return list(self._layernorms)

    def initialise(self, adapter: LowRankLinear) -> None:
        assert adapter.E is not None
        draw_kaiming(adapter.A, adapter.rank, self.generator)
        draw_normal(adapter.E, adapter.rank, 1.0, self.generator)

    def stages(self) -> tuple[int, ...]:
        """With S3 only the first stage has a schedule; the learning rate stays where it ended."""
        return self.lengths[:1] if self.config.effective("S3") else self.lengths

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """As in the base class, with the gates in a separate group: no decay, eps 1e-6."""
        gates = [adapter.E for adapter in self.adapters.values() if adapter.E is not None]
        rate = lr if self.config.gate_lr is None else self.config.gate_lr
        return apart(super().groups(model, lr, weight_decay), gates, lr=rate, weight_decay=0.0, eps=1e-6)

    def penalty(self) -> Tensor | None:
        weight = self.config.effective("lambda1")
        return weight * torch.cat(list(self._gates(detached=False))).abs().mean() if weight else None

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        gates = list(self._gates())
        shrunk = shrink(torch.cat(gates), self.threshold(step, schedule), self.config.effective("S1"))
        torch._foreach_copy_(gates, list(shrunk.split([len(gate) for gate in gates])))
        self.last_step = step
        if (step + 1) % self.every and step + 1 != self.total_steps:
            return None
        return self._report(step)

    def threshold(self, step: int, schedule: Schedule) -> float:
        """xi of a step: the value of its stage, times the learning-rate factor if multiply_lr is set."""
        if not self._values:
            self._values = self._stage_values(schedule)
        xi = self._values[self._stage(step)]
        return xi * schedule.factor(step) if self.config.multiply_lr else xi

    def _stage_values(self, schedule: Schedule) -> list[float]:
        c, steps = self.config, range(self.total_steps)
        xi = c.xi
        if xi is None:
            travel = sum(schedule.factor(t) for t in steps) if c.multiply_lr else float(len(steps))
            xi = quantile(self.mean_rank * len(self.adapters) / self.gates) / travel
        return spaced(xi, xi if c.max_lambda is None else c.max_lambda, c.lambda_num, c.lambda_schedule)

    def _stage(self, step: int) -> int:
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)

    def _report(self, step: int) -> Round:
        """Records which directions went to 0 and which returned since the last report."""
        before, self.alive = self.alive, self._pattern()
        lost, back = changes(before, self.alive)
        sizes = {name: a.E.detach()[: a.rank].abs().tolist() for name, a in self.adapters.items() if a.E is not None}
        self.rounds_seen.append(Round(step, self.ranks(), lost, back, sizes))
        return self.rounds_seen[-1]

    def finish(self) -> None:
        """Removes every direction whose gate is 0; a soft budget never fails."""
        if self.last_step < 0:
            raise MethodFailure("the gates were never shrunk: after_step was not called")
        self.prune(dropped(self._pattern()))

    def phase(self, step: int) -> str:
        return f"stage {self._stage(step) + 1} of {len(self.lengths)}" if len(self.lengths) > 1 else "train"

    def _gates(self, detached: bool = True) -> Iterator[Tensor]:
        for adapter in self.adapters.values():
            assert adapter.E is not None
            yield (adapter.E.detach() if detached else adapter.E)[: adapter.rank]

    def _pattern(self) -> dict[str, list[bool]]:
        """Whether the gate of each active slot is nonzero, by matrix (one transfer)."""
        nonzero = (torch.cat(list(self._gates())) != 0).tolist()
        return split(nonzero, {name: adapter.rank for name, adapter in self.adapters.items()})

    def ranks(self) -> dict[str, int]:
        """Nonzero gates of each matrix."""
        return {name: sum(alive) for name, alive in self._pattern().items()}

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper" or self.config.lambda_num > 1  # no authors' code was run for either

    def remarks(self) -> list[str]:
        """Flags a result that is more than 10 % from the budget."""
        return ["off budget"] if abs(self.budget_distance) > OFF_BUDGET else []

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return select(super().lora_factors(), self._pattern())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if any(len(self.alive[name]) != rank for name, rank in state["ranks"].items()):
            raise ValueError("the pattern does not fit the ranks")


def shrink(gates: Tensor, xi: float, dead_zone: bool = False) -> Tensor:
    """The proximal step of xi * |g|_1, elementwise.

    Args:
        gates: any shape.
        xi: threshold, not negative.
        dead_zone: the authors' three in-place lines (S1): |g| > xi loses xi, and then every |g| < xi becomes 0. The
            result is 0 below 2 xi and g -/+ xi from there on; |g| = xi is unchanged.
    """
    if not dead_zone:
        return gates - gates.clamp(-xi, xi)
    moved = torch.where(gates.abs() > xi, gates - xi * gates.sign(), gates)
    return torch.where(moved.abs() < xi, torch.zeros_like(moved), moved)


def quantile(share: float) -> float:
    """c with P(|g| > c) = `share` for a standard normal g; 0.674 for one half."""
    return NormalDist().inv_cdf(1 - min(1.0, share) / 2)


def spaced(first: float, last: float, count: int, spacing: str) -> list[float]:
    """`count` values of xi from `first` to `last` (Algorithm 1 as the authors coded it).

    Args:
        first: xi of the first stage.
        last: xi of the last stage.
        count: number of stages.
        spacing: "linear"; "log_linear", the log of evenly spaced exponentials; or "exp_linear", the exponential
            of evenly spaced logs.
    """
    if count == 1:
        return [first]
    maps: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
        "linear": (float, float),
        "log_linear": (math.exp, math.log),
        "exp_linear": (math.log, math.exp),
    }
    forward, inverse = maps[spacing]
    low, high = forward(first), forward(last)
    return [inverse(low + (high - low) * i / (count - 1)) for i in range(count)]


def stage_lengths(total: int, count: int, share: float) -> tuple[int, ...]:
    """Steps of the first stage and of `count` - 1 later stages of `share` times its length; they sum to `total`.

    Raises:
        UserError: a stage would have no step.
    """
    later = round(share * total / (1 + share * (count - 1)))
    first = total - later * (count - 1)
    if first < 1 or (count > 1 and later < 1):
        raise UserError(
            f"method.lambda_num={count} stages do not fit {total} steps: lower it, or train longer (trainer.max_steps)"
        )
    return (first,) + (later,) * (count - 1)


def layernorms(model: nn.Module, keep: Sequence[str] = ()) -> list[str]:
    """Names of all LayerNorms outside the modules in `keep`, by the name of their class."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("LayerNorm")
        and list(module.parameters())
        and not any(name == k or name.startswith(k + ".") for k in keep)
    ]
