"""What the methods with fixed ranks share: uniform ranks, those of another run, or a layout by a rule."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from elalora.errors import UserError
from elalora.layouts import FILE, read_file, read_rule, weights_of
from elalora.low_rank import LowRankMethod
from elalora.names import place
from elalora.shares import largest_remainder

SHOWN = 40  # characters of a rule in a label; a longer one is shown by its digest


class FixedRanks(LowRankMethod):
    """A method whose ranks never move; its config has `ranks_from`, `pattern` and `shuffle`."""

    @property
    def label(self) -> str:
        c = self.config
        rule = c.pattern if c.pattern is None or len(c.pattern) <= SHOWN else _digest(c.pattern)
        words = ["transplant"] * (c.ranks_from is not None) + [f"({rule})"] * (rule is not None)
        return " ".join([self.title, *words, *["shuffled"] * c.shuffle])

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        c = self.config
        ranks = super().initial_ranks(linears) if c.ranks_from is None else self._transplanted(linears)
        if c.pattern is not None:
            ranks = self._laid_out(linears, ranks)
        return shuffled(ranks, self.generator) if c.shuffle else ranks

    def _transplanted(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        """The ranks of the run that `ranks_from` names."""
        if self.pattern is None or set(self.pattern) != set(linears):
            raise UserError(
                f"method.ranks_from={self.config.ranks_from}: that run does not name the same matrices as this one "
                "adapts: use a run of the same model and targets"
            )
        return {name: self.pattern[name] for name in linears}

    def _laid_out(self, linears: Mapping[str, nn.Linear], start: Mapping[str, int]) -> dict[str, int]:
        """The rule's ranks, with the budget of the ranks before it; a budget in parameters is used as far as it goes.

        Raises:
            UserError: a term names no matrix, or a matrix cannot have its rank.
        """
        assert self.budget is not None
        weights = weights_of(read_rule(self.config.pattern), list(linears), start)
        costs = dict.fromkeys(linears, 1)
        if self.budget.params is not None:
            costs = {name: linear.in_features + linear.out_features + self.singular for name, linear in linears.items()}
        given = sum(start[name] * cost for name, cost in costs.items())
        total = given if self.budget.params is None or self.config.ranks_from is not None else self.budget.params
        ranks = largest_remainder(list(weights.values()), total, least=0, costs=list(costs.values()))
        for rank, (name, linear) in zip(ranks, linears.items(), strict=True):
            if rank > (limit := min(linear.in_features, linear.out_features)):
                raise UserError(
                    f"method.pattern gives '{name}' rank {rank}, above the largest it can have, {limit}: lower the "
                    "budget, or its weight"
                )
        return dict(zip(linears, ranks, strict=True))


def set_layout(config: Any) -> None:
    """Replaces a file by the rule that it stands for, and refuses a rule that cannot be read, or a shuffle of nothing.

    Raises:
        UserError: names the setting.
    """
    if isinstance(config.pattern, str):  # a number is refused with those of the other settings
        config.pattern = read_file(config.pattern) if config.pattern.endswith(FILE) else config.pattern
        read_rule(config.pattern)
    if config.shuffle and config.ranks_from is None and config.pattern is None:
        raise UserError(
            "method.shuffle=true needs ranks to shuffle: type method.ranks_from=elalora, or a rule (method.pattern=...)"
        )


def resolved_layout(config: Any) -> dict[str, Any]:
    """The rule in the spelling that all rules of the same terms share, and whether there is something to shuffle."""
    pattern = None if config.pattern is None else str(read_rule(config.pattern)) or None
    return {"pattern": pattern, "shuffle": config.shuffle and not (config.ranks_from is None and pattern is None)}


def shuffled(ranks: Mapping[str, int], generator: torch.Generator) -> dict[str, int]:
    """The same ranks, permuted among the matrices of each type (query with query, and so on)."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in ranks:
        kinds[place(name)[1]].append(name)
    out = dict(ranks)
    for names in kinds.values():
        order = torch.randperm(len(names), generator=generator).tolist()
        out.update({name: ranks[names[i]] for name, i in zip(names, order, strict=True)})
    return out


def _digest(rule: str) -> str:
    return f"pattern {hashlib.sha256(rule.encode()).hexdigest()[:8]}"
