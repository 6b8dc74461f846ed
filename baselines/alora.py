"""ALoRA: directions that the loss can spare move to matrices that need theirs (Liu et al., arXiv 2403.16187).

    W     = W0 + (alpha / r_init) B G A           G = diag of gates: 1 for a direction that lives, 0 for one that died
    IS(k) = S(M) - S(M without k) + S(M with only k)      S: minus the cross-entropy on one small dev batch    (eq. 6)

In each of a few rounds all directions are scored by ablation, the `b` of lowest IS die, and the matrices that lost
none gain as many, as evenly as possible, the odd ones by the highest mean score (algorithm 1). If every matrix lost
one, none gains, so that the run ends below its budget.

There is no code of the authors. Assumed here: "with only k" switches off all other directions of the *model*
(`score_scope`), the dev batch comes from the training split, a new direction has A drawn as at the start and B = 0,
which leaves the output unchanged, and its moments start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor, nn

from elalora.ablation import Ablation
from elalora.adapters import LowRankLinear
from elalora.errors import UserError, check_choices, check_numbers
from elalora.low_rank import LowRankMethod, draw_kaiming
from elalora.method import Capabilities, Round
from elalora.optim import RowwiseAdamW
from elalora.resolve import RunSize
from elalora.schedules import Schedule, ThreePhases, length_in
from elalora.shares import in_turns

Slot = tuple[str, int]  # matrix and slot of a direction


@dataclass
class ALoRAConfig:
    """Settings of ALoRA; None means a default that scales with the run.

    Attributes:
        alpha: numerator of the scale, over the rank at the start for the whole run.
        rounds: N_A.
        t_initial: K1, steps before the first round, as a fraction of the run or in steps; None is 0.1, one of the
            paper's at most ten epochs.
        interval: K2, steps between rounds; None is max(1, 0.025 T), a quarter of an epoch.
        b: n_A, directions that die in a round; None is one for each matrix.
        score_scope: what "with only k" switches off: all other directions of the "model", or of the "module".
        dev_items: items of the dev batch.
        capacity: slots of a matrix; None is max(4N, N + 16).
        dropout: probability of dropping an input of the update.
    """

    alpha: float = 16.0
    rounds: int = 8
    t_initial: float | None = None
    interval: int | None = None
    b: int | None = None
    score_scope: str = "model"
    dev_items: int = 32
    capacity: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, score_scope=("model", "module"))
        numbers = ("rounds", "dev_items", "interval", "b")
        check_numbers(self, "be at least 1", *(name for name in numbers if getattr(self, name) is not None))
        check_numbers(self, "lie in [0, 1)", "dropout")

    def resolved(self, size: RunSize) -> ALoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        interval, b, capacity = self.interval, self.b, self.capacity
        if interval is None and size.steps is not None:
            interval = max(1, round(0.025 * size.steps))
        if b is None and size.rank and size.rank_sum is not None:
            b = size.rank_sum // size.rank
        if size.rank is not None:
            capacity = max(4 * size.rank, size.rank + 16) if capacity is None else max(size.rank, capacity)
        start = length_in(size.steps, self.t_initial, 0.1, "method.t_initial")
        return replace(self, t_initial=start, interval=interval, b=b, capacity=capacity)


@dataclass(frozen=True)
class Rounds(ThreePhases):
    """A round after `start` steps and then every interval, before `end` steps are done."""

    def due(self, t: int) -> bool:
        """Whether a round is due after step t."""
        return self.start <= t + 1 < self.end and (t + 1 - self.start) % self.interval == 0


class ALoRA(LowRankMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "alora"
    title: ClassVar[str] = "ALoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(adaptive=True, budget="at_most", reconstructed=True)
    Config: ClassVar[type] = ALoRAConfig
    config: ALoRAConfig
    phases: Rounds

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        self.ablation = Ablation(model, self.adapters, self.config.dev_items, self.config.score_scope)
        return model

    def plan(self, total_steps: int, rank_sum: int) -> None:
        c = self.config.resolved(RunSize(total_steps))
        assert c.t_initial is not None and c.interval is not None
        end = int(c.t_initial) + (c.rounds - 1) * c.interval + 1
        if not c.t_initial or end > total_steps:
            raise UserError(
                f"method.rounds={c.rounds} rounds from step method.t_initial={c.t_initial:g} on, method.interval="
                f"{c.interval} apart, do not fit between the first and the last of {total_steps} steps: change one of "
                "them, or train longer (trainer.max_steps)"
            )
        self.phases = Rounds(total_steps, int(c.t_initial), total_steps - end, c.interval)

    def capacity(self, rank: int) -> int:
        assert self.config.capacity is not None
        return self.config.capacity

    def initialise(self, adapter: LowRankLinear) -> None:
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    @property
    def batches_wanted(self) -> bool:
        return True

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        """Keeps the first items of these training batches as the dev batch, also in a run that resumes."""
        self.ablation.keep(batches)

    def scores(self) -> dict[str, list[float]]:
        """IS of every direction, by matrix (`elalora.ablation.Ablation.scores`)."""
        return self.ablation.scores()

    # -- rounds ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if not self.phases.due(step):
            return None
        forwards, scores = self.ablation.forward_passes, self.scores()
        assert self.config.b is not None
        room = {name: adapter.directions.capacity - adapter.rank for name, adapter in self.adapters.items()}
        costs = {name: adapter.cost for name, adapter in self.adapters.items()}
        pruned, grown = allocate(scores, self.config.b, room, costs, self.spare)
        self.prune(pruned)
        for name in grown:
            adapter = self.adapters[name]
            slot = adapter.directions.be_born()
            draw_kaiming(adapter.A[slot : slot + 1], 1, self.generator)
        notes = {"lost": len(pruned) - len(grown), "forward_passes": forwards}
        self.rounds_seen.append(Round(step, self.ranks(), pruned, grown, scores, notes))
        self.check_budget()
        return self.rounds_seen[-1]

    def remarks(self) -> list[str]:
        return [self.ablation.remark, *self.shortfall()]

    def finish(self) -> None:
        self.check_acted(len(self.phases.rounds()), "after_step was not called")
        self.check_budget()


def allocate(
    scores: Mapping[str, Sequence[float]],
    b: int,
    room: Mapping[str, int],
    costs: Mapping[str, int],
    spare: int | None = None,
) -> tuple[list[Slot], list[str]]:
    """The directions that die, and the matrices that gain, one entry for each direction.

    Args:
        scores: of all directions, by matrix; of equal ones the earlier dies.
        b: number that die.
        room: free slots of each matrix.
        costs: parameters of a direction of each matrix.
        spare: parameters that the budget still allows; None without a parameter budget.
    """
    everything = [(score, name, slot) for name, row in scores.items() for slot, score in enumerate(row)]
    pruned = [(name, slot) for _, name, slot in sorted(everything, key=lambda entry: entry[0])[:b]]  # stable
    lost = {name for name, _ in pruned}
    order = sorted(scores, key=lambda name: -fmean(scores[name]) if scores[name] else math.inf)
    able = [name for name in order if name not in lost]
    left = None if spare is None else spare + sum(costs[name] for name, _ in pruned)
    return pruned, in_turns(able, len(pruned), dict(room), costs, left)
