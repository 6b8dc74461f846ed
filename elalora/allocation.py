"""The decision of one ElaLoRA round, on plain numbers: which matrices lose a rank and which gain one.

Pure functions of scores on the host, so a decision can be checked by hand and is the same in every process of a
distributed run. docs/methods/elalora.md explains the special cases D9, D10 and D12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

EXPANSIONS = ("pool", "mean", "random")
Scores = Mapping[str, Sequence[float]]
Draw = Callable[[int], int]


@dataclass(frozen=True)
class Decision:
    """The moves of one round.

    Attributes:
        prune: (matrix, slot) of every direction to remove.
        grow: matrices that gain a direction; a matrix appears once per direction.
        pool: number of candidates.
        blocked: number of expansions that a full matrix or the parameter budget prevented.
    """

    prune: list[tuple[str, int]] = field(default_factory=list)
    grow: list[str] = field(default_factory=list)
    pool: int = 0
    blocked: int = 0

    @property
    def replaced(self) -> int:
        """Number of moves within one matrix, which loses a direction and gains a new one (D9)."""
        dead, born = Counter(m for m, _ in self.prune), Counter(self.grow)
        return sum(min(dead[m], born[m]) for m in dead)


def candidates(scores: Scores, k: int, within: Scores | None = None) -> list[tuple[float, str, int]]:
    """The pool: the min(k, r - 1) lowest directions of each matrix, as (score, matrix, slot).

    A matrix of rank 1 has no candidate, so it can neither shrink nor grow (D10a). Sorted by ascending score; ties keep
    the order of matrices, and in a matrix the order of `within`, and then of slots.
    """
    pool = []
    for name, values in scores.items():
        lowest = lowest_first(name, scores, within)[: max(0, min(k, len(values) - 1))]
        pool += [(values[i], name, i) for i in lowest]
    return sorted(pool, key=lambda entry: entry[0])


def lowest_first(name: str, scores: Scores, within: Scores | None = None) -> list[int]:
    """The slots of a matrix by ascending score, of equal ones by ascending value in `within`."""
    values = scores[name]
    ties = values if within is None else within[name]
    return sorted(range(len(values)), key=lambda i: (values[i], ties[i], i))


def growth_order(
    scores: Scores, pool: list[tuple[float, str, int]], rule: str, rank1_growth: bool, draw: Draw
) -> list[str]:
    """Matrices in the order in which they are offered a new direction, one entry per possible gain.

    Args:
        scores: of all directions, by matrix.
        pool: from `candidates`.
        rule: "pool" (the highest of the pool, as published), "mean" (the matrices of the highest mean score, one
            gain each, then again from the top), or "random".
        rank1_growth: whether the single direction of a rank-1 matrix counts as a candidate for growth ("pool" only).
        draw: draw(n) returns a random integer in 0..n-1 ("random" only).
    """
    if rule == "mean":
        means = {m: sum(v) / len(v) for m, v in scores.items() if v}
        order = sorted(means, key=lambda m: -means[m])
        return order * (1 + len(pool) // max(1, len(order)))
    if rule == "random":
        names = [m for m, v in scores.items() if v]
        return [names[draw(len(names))] for _ in range(4 * len(pool))]
    offers = list(pool)
    if rank1_growth:
        offers += [(v[0], m, 0) for m, v in scores.items() if len(v) == 1]
    return [m for _, m, _ in sorted(offers, key=lambda entry: -entry[0])]


def decide(
    scores: Scores,
    b: int,
    k: int,
    capacity: Mapping[str, int],
    rule: str = "pool",
    rank1_growth: bool = False,
    draw: Draw = lambda n: 0,
    cost: Mapping[str, int] | None = None,
    spare: int | None = None,
    within: Scores | None = None,
) -> Decision:
    """Decides one round: the b lowest of the pool are pruned, the matrices of the b highest grow (points 7 to 10).

    The rank sum is kept exactly: if the pool is smaller than b, or too few matrices have a free slot, fewer than b
    directions move. Under a parameter budget, moves that would exceed it are left out.

    Args:
        scores: of all active directions by matrix, in slot order.
        b: number of moves.
        k: maximum number of candidates per matrix.
        capacity: slots of each matrix; a full matrix cannot grow.
        rule: which matrices grow, see `growth_order`.
        rank1_growth: whether a matrix of rank 1 may grow.
        draw: a random number below n, for rule="random".
        cost: parameters per direction of each matrix; needed with `spare`.
        spare: parameters that the budget still allows, None without a parameter budget.
        within: which of equally scored directions of a matrix goes first: that of the lowest value here, or else of
            the lowest slot.
    """
    pool = candidates(scores, k, within)
    offers = growth_order(scores, pool, rule, rank1_growth, draw)
    for n in range(min(b, len(pool)), 0, -1):
        prune = [(m, i) for _, m, i in pool[:n]]
        grow, blocked = grow_within(prune, offers, {m: len(v) for m, v in scores.items()}, capacity, cost, spare)
        if len(grow) == n:
            return Decision(prune, grow, len(pool), blocked + min(b, len(pool)) - n)
    return Decision(pool=len(pool), blocked=min(b, len(pool)))


def grow_within(
    prune: Sequence[tuple[str, int]],
    offers: Sequence[str],
    ranks: Mapping[str, int],
    capacity: Mapping[str, int],
    cost: Mapping[str, int] | None,
    spare: int | None,
) -> tuple[list[str], int]:
    """As many gains as directions are pruned, in the order of the offers, as far as slots and budget allow.

    Args:
        prune: directions that are removed first.
        offers: matrices that may gain a direction, one entry per gain.
        ranks: of every matrix before the round.
        capacity, cost, spare: see `decide`.

    Returns:
        The matrices that gain a direction, and the number of offers that a full matrix or the budget prevented.
    """
    ranks = dict(ranks)
    for name, _ in prune:
        ranks[name] -= 1
    left = None
    if spare is not None and cost is not None:
        left = spare + sum(cost[name] for name, _ in prune)
        cheapest = min(cost.values())
    grow: list[str] = []
    blocked = 0
    for name in offers:
        if len(grow) == len(prune):
            break
        # a wide matrix must leave enough parameters for the remaining gains
        rest = (len(prune) - len(grow) - 1) * cheapest if left is not None else 0
        if ranks[name] >= capacity[name] or (left is not None and cost and cost[name] + rest > left):
            blocked += 1
            continue
        ranks[name] += 1
        grow.append(name)
        if left is not None and cost:
            left -= cost[name]
    return grow, blocked


def widen_ties(
    prune: Sequence[tuple[str, int]], scores: Scores, k: int, within: Scores | None = None
) -> list[tuple[str, int]]:
    """The official prune set (D12): all directions at or below the threshold, in every matrix that loses one.

    The threshold is the largest score in the prune set; a matrix loses at most k, lowest first. With ties, more
    directions are pruned than the round planned.
    """
    if not prune:
        return []
    threshold = max(scores[m][i] for m, i in prune)
    wide = []
    for name in dict.fromkeys(m for m, _ in prune):
        values = scores[name]
        low = [i for i in lowest_first(name, scores, within) if values[i] <= threshold]
        wide += [(name, i) for i in low[: min(k, len(values) - 1)]]
    return wide
