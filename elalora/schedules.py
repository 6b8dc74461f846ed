"""Schedules: the learning rate, the three phases of a run and the number of moves per round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from elalora.errors import UserError

SHAPES = ("linear", "cosine", "constant")
# share of the first round's moves at progress p: ElaLoRA's, the steeper one of FlexLoRA's summary, and none
FALLS: dict[str, Callable[[float], float]] = {
    "cubic": lambda p: 1 - p**3,
    "cubic_tail": lambda p: (1 - p) ** 3,
    "constant": lambda p: 1.0,
}


class Schedule:
    """Learning-rate schedule: linear warm-up, then linear decay to 0, cosine decay, or a constant rate.

    The rate is a function of the step alone, so a checkpoint needs nothing but the step and `held`.

    Args:
        optimizer: the learning rates of its groups are taken as the peak rates; a group with "constant_rate" keeps
            its own.
        total: number of optimizer steps of the run (of all its stages).
        warmup: number of warm-up steps in each stage.
        shape: "linear", "cosine" or "constant".
        stages: lengths of consecutive stages, each with its own warm-up and decay; after the last one its final
            rate holds.

    Raises:
        UserError: the warm-up is negative or leaves no step, or the shape is unknown.
    """

    def __init__(
        self, optimizer: Any, total: int, warmup: int = 0, shape: str = "linear", stages: Iterable[int] = ()
    ) -> None:
        if shape not in SHAPES:
            raise UserError(f"trainer.schedule={shape} is unknown; allowed: {', '.join(SHAPES)}")
        self.stages = tuple(stages) or (total,)
        if not 0 <= warmup < min(self.stages):
            raise UserError(f"a warm-up of {warmup} steps does not fit {min(self.stages)} steps: lower trainer.warmup")
        self.optimizer, self.total, self.warmup, self.shape = optimizer, total, warmup, shape
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.held = False
        self.at(0)

    def at(self, step: int) -> None:
        """Sets the learning rates for the next step, 0-based."""
        factor = self.factor(step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak if group.get("constant_rate") else peak * factor

    def factor(self, step: int) -> float:
        """Learning rate divided by its peak at a step, 0-based."""
        if self.held:
            return 1.0
        *earlier, length = self.stages
        for stage in earlier:
            if step < stage:
                length = stage
                break
            step -= stage
        return self._shape(step, length)

    def restarted(self, step: int, start: int) -> float:
        """As `factor`, for what begins to train at `start`: the same warm-up, then a decay to the run's end."""
        return 1.0 if self.held else self._shape(step - start, self.total - start)

    def _shape(self, step: int, length: int) -> float:
        if step < self.warmup:
            return step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, length - self.warmup))
        return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[self.shape]

    def hold_peak(self) -> None:
        """Holds the rate at its peak from now on, without warm-up or decay, as the official ElaLoRA code does (D2)."""
        self.held = True
        self.at(0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the step."""
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.held = bool(state["held"])


@dataclass(frozen=True)
class ThreePhases:
    """Warm-up, adjustment and final phase of a run of `total` steps (ElaLoRA, section 3; AdaLoRA, App. A).

    Attributes:
        total: steps of the run.
        start: t_i, the last step of the warm-up.
        final: t_f, steps of the final phase, in which ranks stay.
        interval: steps between rounds.

    Raises:
        UserError: the interval is below 1, or no step is left between warm-up and final phase.
    """

    total: int
    start: int
    final: int
    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"method.interval={self.interval} must be at least 1")
        if self.start >= self.end:
            raise UserError(
                f"a warm-up of {self.start} steps and a final phase of {self.final} leave no step for rounds in a run "
                f"of {self.total}: lower method.t_initial or method.t_final, or train longer (trainer.max_steps)"
            )

    @property
    def end(self) -> int:
        """First step of the final phase, T - t_f."""
        return self.total - self.final

    def due(self, t: int) -> bool:
        """Whether a round is due after step t, 0-based."""
        raise NotImplementedError

    def rounds(self) -> list[int]:
        """The steps after which a round is due."""
        return [t for t in range(self.total) if self.due(t)]

    def name(self, t: int) -> str:
        """warm-up, adjust or stabilise."""
        return "warm-up" if t <= self.start else "adjust" if t < self.end else "stabilise"


@dataclass(frozen=True)
class Phases(ThreePhases):
    """The rounds of ElaLoRA: after step t if t_i < t < T - t_f and t - t_i is a multiple of the interval.

    Attributes:
        moves: b, moves of the first round.
        fall: how the moves fall over the adjustment phase, one of `FALLS`.
    """

    moves: int
    fall: str = "cubic"

    def due(self, t: int) -> bool:
        """Whether a round with at least one move is due after step t."""
        return self.start < t < self.end and (t - self.start) % self.interval == 0 and self.moves_at(t) > 0

    def moves_at(self, t: int) -> int:
        """Moves of a round after step t: round(b f(p)), p = clip((t - t_i) / (T - t_f - t_i), 0, 1)."""
        progress = min(1.0, max(0.0, (t - self.start) / (self.end - self.start)))
        return round(self.moves * FALLS[self.fall](progress))


@dataclass(frozen=True)
class Growth(ThreePhases):
    """The planned rounds of a method that grows to its budget: t > t_i, t a multiple of the interval, until T - t_f."""

    def on_grid(self, t: int) -> bool:
        """Whether step t is one after which ranks may grow, as long as the budget is not reached."""
        return t > self.start and t % self.interval == 0

    def due(self, t: int) -> bool:
        """Whether a round is planned after step t."""
        return self.on_grid(t) and t < self.end


def steps_of(value: float, total: int, name: str) -> int:
    """A length in steps, from a fraction of the run (0 < value < 1) or a number of steps (0, 1, 2, ...).

    Raises:
        UserError: the value is negative, or is 1 or more and not whole.
    """
    if 0 < value < 1:
        return round(value * total)
    if not 0 <= value < math.inf or value != int(value):
        raise UserError(f"{name}={value} is neither a fraction of the run (between 0 and 1) nor a number of steps")
    return int(value)


def length_in(total: int | None, value: float | None, default: float, name: str) -> float:
    """A length in steps, or as it stands while the steps of the run are not known; None takes the default."""
    value = default if value is None else value
    return value if total is None else steps_of(value, total, name)


def phase_settings(
    total: int | None,
    rank_sum: int | None,
    start: float | None,
    final: float | None,
    interval: int | None,
    moves: int | None,
) -> tuple[float, float, int | None, int | None]:
    """t_i, t_f, interval and b with their defaults, as far as steps and rank sum are known.

    Defaults: t_i = 0.1 T, t_f = 0.25 T, interval = max(20, 0.65 T / 8), b = ceil(0.05 R).
    """
    if interval is None and total is not None:
        interval = max(20, round(0.65 * total / 8))
    if moves is None and rank_sum is not None:
        moves = math.ceil(0.05 * rank_sum)
    t_i = length_in(total, start, 0.1, "method.t_initial")
    return t_i, length_in(total, final, 0.25, "method.t_final"), interval, moves


def plan_phases(
    total: int,
    rank_sum: int,
    start: float | None,
    final: float | None,
    interval: int | None,
    moves: int | None,
    fall: str,
) -> Phases:
    """The phases of a run; None stands for a default that scales with it (`phase_settings`).

    Raises:
        UserError: no step is left for the adjustment phase, or no round fits into it.
    """
    t_i, t_f, every, b = map(int, cast(Any, phase_settings(total, rank_sum, start, final, interval, moves)))
    if not 0 <= b < 2**63:
        raise UserError(f"method.b={b} must be at least 0, and below 2^63")
    phases = Phases(total, t_i, t_f, every, b, fall)
    if b and t_i + every >= phases.end:
        raise UserError(
            f"method.interval={every} is longer than the adjustment phase, steps {t_i} to {phases.end} of {total}: "
            f"no round would ever happen; type method.interval={max(1, (phases.end - t_i) // 3)} or train longer"
        )
    if b and not phases.rounds():
        raise UserError(
            f"method.b has fallen to 0 at the first round, step {t_i + every} of {total}: raise method.b, lower "
            "method.interval, or keep it constant (method.scheduler=false, in FlexLoRA method.fall=constant)"
        )
    return phases
