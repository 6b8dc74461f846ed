"""Effects of a two-level factorial with paired seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.stats.seeds import Array, finite, holm, sign_flip, t_interval

RANKS = ("fixed", "random", "scored")
WEIGHTS = {"moving": (-1.0, 0.5, 0.5), "scores": (0.0, -1.0, 1.0)}  # on fixed, random, scored
MEANING = {
    "moving": "moving ranks at all (random and scored together) against fixed ranks",
    "scores": "choosing by scores against choosing at random",
    "D1": "dropping the optimizer's moments at every round",
    "D2": "holding the learning rate at its peak",
}


class Effect(NamedTuple):
    """One contrast in points: mean over seeds, 95 % t interval, exact sign-flip p and Holm's p within the table."""

    name: str
    mean: float
    low: float
    high: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Factorial:
    """A complete factorial.

    Attributes:
        scores: (seeds, ranks, D1, D2), ranks in the order of `RANKS`, the switches off and on; mean over tasks.
        seeds: of the rows.
        tasks: that every cell has.
        where: model, budget, protocol and recipe, for captions.
        source: of the data.
    """

    scores: Array
    seeds: list[int]
    tasks: list[str]
    where: str
    source: str

    @cached_property
    def effects(self) -> list[Effect]:
        """The eleven effects; above 16 seeds the sign flips are sampled with a fixed seed."""
        return effects(self.scores, np.random.default_rng(0))

    @property
    def over(self) -> str:
        """The task, or "mean over" several, for captions."""
        return self.tasks[0] if len(self.tasks) == 1 else f"mean over {', '.join(self.tasks)}"


def contrasts() -> dict[str, Array]:
    """The eleven contrasts as weights (ranks, D1, D2): four main effects, five pairs, two triples."""
    means, switch, half = (1 / 3, 1 / 3, 1 / 3), (-1.0, 1.0), (0.5, 0.5)
    weights: dict[str, Array] = {}
    for ranks, d1, d2 in product(("", *WEIGHTS), ("", "D1"), ("", "D2")):
        name = " x ".join(filter(None, (ranks, d1, d2)))
        on_ranks = WEIGHTS[ranks] if ranks else means
        weights[name] = np.einsum("i,j,k->ijk", on_ranks, switch if d1 else half, switch if d2 else half)
    del weights[""]  # the mean of all is no effect
    order = list(MEANING)
    return dict(sorted(weights.items(), key=lambda w: (w[0].count(" x "), *map(order.index, w[0].split(" x ")))))


def effects(scores: ArrayLike, rng: Generator | None = None) -> list[Effect]:
    """Main effects and interactions.

    Args:
        scores: (seeds, ranks, D1, D2) in points, seeds at least 2.
        rng: for more than 16 seeds, where sign flips are sampled.

    Raises:
        ValueError: another shape, or a score that is not finite.
    """
    x = finite(scores, seeds=2, ranks=3, D1=2, D2=2)
    if x.shape[1:] != (3, 2, 2):
        raise ValueError(f"scores (seeds, 3, 2, 2) are needed, shape {x.shape} was given")
    samples = {name: np.einsum("sijk,ijk->s", x, weights) for name, weights in contrasts().items()}
    p = [sign_flip(sample, rng) for sample in samples.values()]
    return [
        Effect(name, float(sample.mean()), *t_interval(sample), p_value, float(corrected))
        for (name, sample), p_value, corrected in zip(samples.items(), p, holm(p), strict=True)
    ]
