"""How steadily a run trained, from its logged training losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNSTABLE = "unstable"  # a flag of results
ABOVE = 1.05  # of the loss of guessing; a mean over a few batches lies above it by chance
FAR = 1.25  # times a loss; means of squared errors over a few batches vary by a tenth and more
TOLERATED = 0.1  # share of the steps


@dataclass(frozen=True)
class Stability:
    """A reading of the training losses after warm-up.

    Attributes:
        above: share of the steps whose logged loss is more than 5 % above that of guessing; NaN where there is none.
            A regression's new head answers about zero, so its loss starts far above: if it starts more than a quarter
            above and gets to that level, the descent does not count; until then a step counts only if its loss is
            more than a quarter above the lowest so far.
        rise: the largest rise of the logged loss above an earlier one, in nats (squared units for regression).
    """

    above: float
    rise: float

    @property
    def unstable(self) -> bool:
        """Whether more than a tenth of the steps trained above the loss of guessing."""
        return self.above > TOLERATED


def stability(
    losses: Sequence[tuple[int, float]], guessing: float, warmup: int, *, regression: bool = False
) -> Stability:
    """Reads the stability of a run.

    Args:
        losses: (step, mean loss over the steps since the last entry), steps counted from 0 and rising.
        guessing: training loss of the best constant answer; NaN if there is none.
        warmup: steps of warm-up; entries that contain one of them are left out.
        regression: whether the task is one; a classifier's new head starts at the loss of guessing, and a loss far
            above it has blown up.
    """
    level = ABOVE * guessing
    far = bool(losses) and losses[0][1] > FAR * guessing
    descends = regression and far and min(loss for _, loss in losses) <= level
    above = steps = 0
    rise, least, lowest = 0.0, math.inf, math.inf
    for (before, _), (step, loss) in zip([(-1, 0.0), *losses], losses, strict=False):
        lowest = min(lowest, loss)
        if before + 1 < warmup:
            continue
        steps += step - before
        descends = descends and lowest > level
        above += (step - before) * (loss > level and not (descends and loss <= FAR * lowest))
        least = min(least, loss)
        rise = max(rise, loss - least)
    return Stability(above / steps if steps and not math.isnan(guessing) else math.nan, rise)


def logged_losses(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Step and training loss of a run's lines of metrics.jsonl."""
    return [(line["step"], line["value"]) for line in lines if (line["split"], line["metric"]) == ("train", "loss")]
