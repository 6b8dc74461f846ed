"""Effects of a two-level factorial with paired seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.stats.family import least_margin, max_t
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
    """One contrast in points.

    Attributes:
        name: of the contrast.
        mean, low, high: over seeds, with a 95 % t interval.
        p: of the exact sign-flip test.
        corrected: Holm's p within the table, which the text reads.
        max_t: step-down maxT's p within the table.
    """

    name: str
    mean: float
    low: float
    high: float
    p: float
    corrected: float
    max_t: float


class Plain(NamedTuple):
    """A difference of two arms without side effects, in points, and the margin within which it is equivalent."""

    name: str
    mean: float
    low: float
    high: float
    p: float
    margin: float


@dataclass(frozen=True)
class Factorial:
    """A complete factorial.

    Attributes:
        scores: (seeds, ranks, D1, D2), ranks in the order of `RANKS`, the switches off and on; mean over tasks.
        seeds: of the rows.
        tasks: that every cell has.
        where: model, budget, protocol and recipe, for captions.
        source: of the data.
        no_claim: why the runs support no claim, "" if they do.
        unstable: how many of the runs trained above the loss of guessing.
    """

    scores: Array
    seeds: list[int]
    tasks: list[str]
    where: str
    source: str
    no_claim: str = ""
    unstable: int = 0

    @cached_property
    def effects(self) -> list[Effect]:
        """The eleven effects; above 16 seeds the sign flips are sampled with a fixed seed."""
        return effects(self.scores, np.random.default_rng(0))

    @property
    def plain(self) -> list[Plain]:
        """Scored, random and fixed ranks against one another with both switches off."""
        return plain(self.scores, np.random.default_rng(0))

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
    joint = max_t(np.stack(list(samples.values()), axis=1), rng)
    return [
        Effect(name, float(sample.mean()), *t_interval(sample), p_value, float(corrected), float(together))
        for (name, sample), p_value, corrected, together in zip(samples.items(), p, holm(p), joint, strict=True)
    ]


def plain(scores: ArrayLike, rng: Generator | None = None) -> list[Plain]:
    """The three differences between ways to set ranks, from the arms without a side effect; arguments as `effects`."""
    x = finite(scores, seeds=2, ranks=3, D1=2, D2=2)[:, :, 0, 0]
    pairs = {"scored - fixed": (2, 0), "random - fixed": (1, 0), "scored - random": (2, 1)}
    samples = {name: x[:, first] - x[:, second] for name, (first, second) in pairs.items()}
    return [
        Plain(name, float(d.mean()), *t_interval(d), sign_flip(d, rng), least_margin(d)) for name, d in samples.items()
    ]
