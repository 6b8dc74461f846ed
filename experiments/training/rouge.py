"""ROUGE of generated summaries (Lin 2004), by Google's rouge-score with stemming, as the papers here report it.

With several references the best one counts, for each variant on its own (SciTLDR, Cachola et al. 2020). rougeLsum
compares line by line; a text without line breaks is broken after sentences by a plain rule (., ! or ? before white
space), because the usual sentence splitter needs data of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rouge(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measure of every item, 0..1.

    Args:
        references: at least one for each of n items.
        predictions: n generated texts.

    Returns:
        VARIANTS -> (n,).
    """
    scorer = _scorer()
    items = [
        scorer.score_multi([_lines(r) for r in own], _lines(text))
        for own, text in zip(references, predictions, strict=True)
    ]
    return {name: np.array([item[name].fmeasure for item in items]) for name in VARIANTS}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from absl import logging
    from rouge_score.rouge_scorer import RougeScorer

    # its logging library keeps the stderr of this moment and closes it when logging is set up anew (Hydra does so):
    # in a notebook or a test that is not the real one
    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return RougeScorer(VARIANTS, use_stemmer=True)


def _lines(text: str) -> str:
    return text if "\n" in text else SENTENCE_END.sub("\n", text.strip())
