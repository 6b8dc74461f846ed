"""A stranger's method that only grows: the smallest one that the contract suite accepts."""

from __future__ import annotations

from dataclasses import dataclass

from elalora import Capabilities, LowRankMethod, Round, UserError
from elalora.low_rank import draw_normal


@dataclass
class GrowerConfig:
    """Every setting, with its default."""

    alpha: float = 16.0
    interval: int = 5


class Grower(LowRankMethod):
    """Every matrix starts with one direction; every `interval` steps the two of largest B gain one."""

    name = "grower"
    title = "Grower"
    capabilities = Capabilities(adaptive=True, budget="growing")
    Config = GrowerConfig

    def plan(self, total_steps, rank_sum):
        if self.mean_rank < 2:
            raise UserError("method=grower starts at rank 1: type budget=r2 or more")

    def initial_ranks(self, linears):
        return dict.fromkeys(linears, 1)

    def capacity(self, rank):
        return self.mean_rank + 2

    def scale(self, rank):
        return self.config.alpha / self.mean_rank

    def after_step(self, step, optimizer, schedule):
        now, allowed = self.budget_use()
        free = [n for n, a in self.adapters.items() if a.rank < a.directions.capacity]
        if (step + 1) % self.config.interval or now == allowed:
            return None
        grown = sorted(free, key=lambda n: -self.adapters[n].B.norm().item())[: min(2, allowed - now)]
        for name in grown:
            slot = self.adapters[name].directions.be_born()
            draw_normal(self.adapters[name].A[slot : slot + 1], 1, 0.02, self.generator)
        self.rounds_seen.append(Round(step, self.ranks(), grown=grown))
        return self.rounds_seen[-1]

    def finish(self):
        self.check_acted(1, "after_step was not called")
        self.check_budget()
