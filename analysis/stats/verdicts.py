"""What a family of comparisons shows: which arm is higher in a typical run, better on average too, or equivalent.

A sign-flip test shows that one arm is higher in a typical run. It does not show a higher mean: an arm whose runs rarely
blow up can be higher in nine runs of ten and have the same mean, and ten seeds often hold no such run. So a claim about
the mean ("better") also has to survive the blow-ups that the runs do not rule out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from analysis.stats.family import corrected, equivalence
from analysis.stats.seeds import Array, holm, sign_flip, t_interval

RARE = 0.05  # a rate of blow-ups is ruled out if fewer than 5 % of such samples would show none


@dataclass(frozen=True)
class Evidence:
    """The paired runs of one arm and its baseline.

    Attributes:
        gaps: (seeds, tasks), differences in points; NaN where a run of either failed.
        worst: the same with the constant answer's score in place of a failed run; None where none failed.
        drops: (2, tasks), how far the arm and the baseline stand above the constant answer.
    """

    gaps: Array
    worst: Array | None = None
    drops: Array = field(default_factory=lambda: np.zeros((2, 1)))

    @property
    def sample(self) -> Array:
        """(seeds,), means over tasks; NaN where a seed lacks a run."""
        return self.gaps.mean(axis=1)

    @property
    def worst_sample(self) -> Array:
        """As `sample`, with failed runs at the constant answer."""
        return self.sample if self.worst is None else self.worst.mean(axis=1)


@dataclass(frozen=True)
class Verdict:
    """What the tests of one comparison show.

    Attributes:
        p, corrected: of the sign-flip test, and corrected for the family.
        direction: 1 if the arm is higher in a typical run, -1 if it is lower, 0 if neither was shown.
        better: whether the claim holds for the mean too, with what unseen blow-ups could cost.
        equivalent: whether the difference was shown to lie within the family's margin.
        p_worst: corrected p with failed runs at the constant answer; NaN where none failed.
        p_equivalent: corrected p of the equivalence; NaN without a margin.
        unseen: what blow-ups that the runs do not rule out could cost the higher arm, in points.
        rate: the largest rate of blow-ups that the higher arm's runs do not rule out.
        withheld: why a corrected p below the level is no claim.
    """

    p: float
    corrected: float
    direction: int = 0
    better: bool = False
    equivalent: bool = False
    p_worst: float = float("nan")
    p_equivalent: float = float("nan")
    unseen: float = float("nan")
    rate: float = float("nan")
    withheld: tuple[str, ...] = ()


def judge(
    family: Sequence[Evidence | None],
    rng: Generator,
    alpha: float = 0.05,
    correction: str = "holm",
    margin: float | None = None,
) -> list[Verdict]:
    """The verdicts of a family of comparisons.

    Args:
        family: one entry for each comparison; None for one that is not tested yet, which counts with p = 1.
        rng: draws sign patterns above 16 seeds.
        alpha: level of the whole family, for superiority and again for equivalence.
        correction: "holm" or "maxt".
        margin: of equivalence, in points; None tests none.
    """
    samples = [None if e is None else e.sample for e in family]
    worst = [None if e is None else e.worst_sample for e in family]
    p, q = corrected(samples, correction, rng)
    q_worst = q if all(e is None or e.worst is None for e in family) else corrected(worst, correction, rng)[1]
    q_equal = np.full(len(family), np.nan)
    if margin is not None:
        q_equal = holm([1.0 if e is None else _equivalence(e, margin, rng) for e in family])
    return [
        Verdict(float(p[i]), float(q[i]))
        if evidence is None
        else _verdict(evidence, (float(p[i]), float(q[i]), float(q_worst[i]), float(q_equal[i])), alpha, rng)
        for i, evidence in enumerate(family)
    ]


def _equivalence(evidence: Evidence, margin: float, rng: Generator) -> float:
    """p of equivalence; the larger one where failed runs have a worst case."""
    sample = evidence.sample[~np.isnan(evidence.sample)]
    return max(equivalence(sample, margin, rng), equivalence(evidence.worst_sample, margin, rng))


def _verdict(evidence: Evidence, p_values: tuple[float, float, float, float], alpha: float, rng: Generator) -> Verdict:
    p, q, q_worst, q_equal = p_values
    x = evidence.sample[~np.isnan(evidence.sample)]
    sign = int(np.sign(x.mean()))
    withheld = []
    if q < alpha:
        withheld += _skew(x, sign, alpha, rng)
        if evidence.worst is not None and (q_worst >= alpha or np.sign(evidence.worst_sample.mean()) != sign):
            withheld.append("it does not hold with failed runs at the constant answer")
    direction = sign if q < alpha and not withheld else 0
    higher = evidence.drops[0 if sign > 0 else 1]
    rate, unseen = unseen_blow_ups(len(x), higher)
    better = False
    if direction and len(x) > 2:
        low, high = t_interval(sign * x)
        better = low > unseen
    return Verdict(
        p, q, direction, better, bool(q_equal < alpha), q_worst if evidence.worst is not None else float("nan"),
        q_equal, unseen, rate, tuple(withheld),
    )  # fmt: skip


def _skew(x: Array, sign: int, alpha: float, rng: Generator) -> list[str]:
    """Why the typical run does not support what the mean says."""
    if np.sign(np.median(x)) != sign:
        return ["the median does not point the same way as the mean"]
    if signed_rank(x, rng) > alpha:
        return ["the signed-rank test does not agree: single seeds carry the difference"]
    return []


def signed_rank(differences: Array, rng: Generator) -> float:
    """Two-sided p of Wilcoxon's signed-rank test by sign flips; zeros get the lowest ranks and no sign (Pratt 1959)."""
    from scipy import stats

    x: NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    return sign_flip(np.sign(x) * stats.rankdata(np.abs(x)), rng)


def unseen_blow_ups(seeds: int, drops: Array) -> tuple[float, float]:
    """What blow-ups could cost an arm that has shown none, at the highest rate its runs do not rule out.

    A blow-up is a run that falls to the constant answer. Its rate may be the same on all tasks or lie on one task only;
    the costlier of the two counts.

    Args:
        seeds: number of runs on each task.
        drops: (tasks,), how far the arm stands above the constant answer.

    Returns:
        The rate over all runs, and the cost in points of the mean over tasks.
    """
    if not seeds:
        return 1.0, float(np.max(drops, initial=0.0))
    tasks = len(drops)
    everywhere, on_one = 1 - RARE ** (1 / (seeds * tasks)), 1 - RARE ** (1 / seeds)
    return everywhere, float(max(everywhere * drops.mean(), on_one * drops.max() / tasks))
