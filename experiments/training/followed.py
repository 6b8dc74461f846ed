"""Reads generated answers by the rules of their prompts (IFEval, arXiv 2311.07911)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean

from experiments.data.ifeval import followed
from experiments.training.causal_readout import Generated
from experiments.training.rows import Row


class Followed(Generated):
    """A greedy continuation, which is right if it follows all rules of its prompt, strictly.

    Columns of a row are those of `Generated`; the accepted answer is the prompt with its rules.
    """

    def _right(self, answer: str | None, accepted: Sequence[str]) -> bool:
        return all(followed(accepted[0], answer or "")["strict"])

    def _more(self, rows: Sequence[Row]) -> dict[str, float]:
        """In points: prompts of which all rules are followed loosely, and rules followed strictly and loosely."""
        found = [followed(row[1][0], row[5] or "") for row in rows]
        return {
            "prompt_loose": 100 * fmean(all(one["loose"]) for one in found),
            "instruction_strict": 100 * fmean(chain.from_iterable(one["strict"] for one in found)),
            "instruction_loose": 100 * fmean(chain.from_iterable(one["loose"] for one in found)),
        }

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """None: no text follows the rules of all prompts."""
        return {}
