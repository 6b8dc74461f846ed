"""How steadily a run trained, from its logged training losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

UNSTABLE = "unstable"  # a flag of results
ABOVE = 1.05  # of the loss of guessing; a mean over a few batches lies above it by chance
TOLERATED = 0.1  # share of the steps


@dataclass(frozen=True)
class Stability:
    """A reading of the training losses after warm-up.

    Attributes:
        above: share of the steps whose logged loss is more than 5 % above that of guessing; NaN where there is none.
        rise: the largest rise of the logged loss above an earlier one, in nats (squared units for regression).
    """

    above: float
    rise: float

    @property
    def unstable(self) -> bool:
        """Whether more than a tenth of the steps trained above the loss of guessing."""
        return self.above > TOLERATED


def stability(losses: Sequence[tuple[int, float]], guessing: float, warmup: int) -> Stability:
    """Reads the stability of a run.

    Args:
        losses: (step, mean loss over the steps since the last entry), steps counted from 0 and rising.
        guessing: training loss of the best constant answer; NaN if there is none.
        warmup: steps of warm-up; entries that contain one of them are left out.
    """
    above = steps = 0
    rise, least = 0.0, math.inf
    for (before, _), (step, loss) in zip([(-1, 0.0), *losses], losses, strict=False):
        if before + 1 < warmup:
            continue
        steps += step - before
        above += (step - before) * (loss > ABOVE * guessing)
        least = min(least, loss)
        rise = max(rise, loss - least)
    return Stability(above / steps if steps and not math.isnan(guessing) else math.nan, rise)
