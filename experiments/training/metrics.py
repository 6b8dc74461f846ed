"""The scores of the tasks, in points (times 100), by scikit-learn, SciPy and rouge-score.

A model that gives every item the same answer has collapsed: its Matthews correlation, Pearson and
Spearman are 0 here, not undefined, so that the run keeps a score and enters every mean and test.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from elalora.errors import UserError
from experiments.data.words import SUFFIX, unicode_words

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# suffix of a metric's name -> what follows a sentence; ideographic full stops need no blank
SENTENCE_ENDS = {
    "": re.compile(r"(?<=[.!?])\s+"),
    SUFFIX: re.compile(r"(?<=[.!?।॥؟۔።])\s+|(?<=[。．！？｡])\s*(?=.)"),
}
COLDEST = 1e3  # mean spread of an item's logits, in temperatures, up to which the best temperature is looked for


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of items whose label is predicted."""
    return float(np.mean(labels == predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1, for two classes; 0 where nothing is predicted or labelled 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation; 0 for constant predictions."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        # One class only, in labels and predictions alike, is a case here and no accident.
        warnings.filterwarnings("ignore", message="A single label was found")
        return float(matthews_corrcoef(labels, predictions))


def _correlation(function: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """A correlation of scipy.stats; 0 where either side is constant."""
    from scipy import stats

    if collapsed(labels) or collapsed(predictions):
        return 0.0
    return float(getattr(stats, function)(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": mcc,
    "pearson": partial(_correlation, "pearsonr"),
    "spearman": partial(_correlation, "spearmanr"),
}


def collapsed(predictions: Sequence[float] | np.ndarray) -> bool:
    """Whether every item got the same answer.

    Real answers that differ only by rounding count as the same: their spread must exceed 1e-6 of
    their size.
    """
    values = np.asarray(predictions, dtype=np.float64)
    return bool(np.ptp(values) <= 1e-6 * np.max(np.abs(values)))


def compute(
    names: Sequence[str], labels: Sequence[float] | np.ndarray, predictions: Sequence[float] | np.ndarray
) -> tuple[dict[str, float], bool]:
    """The named metrics in points, and whether the predictions collapsed.

    Args:
        names: keys of METRICS.
        labels: (n,) classes, or real numbers for correlations.
        predictions: (n,) predicted classes, or real numbers for correlations.

    Raises:
        UserError: a name is unknown.
        ValueError: no items, unequal shapes, or a prediction that is not finite.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"metric {unknown[0]} is unknown; task.metrics takes {', '.join(METRICS)}")
    true, given = np.asarray(labels), np.asarray(predictions)
    if true.ndim != 1 or true.shape != given.shape or not true.size:
        raise ValueError(f"labels {true.shape} and predictions {given.shape} are not two (n,)")
    if not np.isfinite(given).all():
        raise ValueError(f"{int((~np.isfinite(given)).sum())} predictions are not finite")
    return {name: 100 * METRICS[name](true, given) for name in names}, collapsed(given)


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The cross-entropy at the temperature that makes it lowest, in nats, and that temperature.

    Temperature scaling (Guo et al. 2017, eq. 9) with one temperature for these items: what is left of the loss once a
    model is as sure as it is right. The loss is convex in 1 / temperature, so the search finds the lowest one; of no
    use at all, the logits get an infinite temperature.

    Args:
        logits: (n, classes).
        labels: (n,) class numbers.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = logits - logits.max(axis=1, keepdims=True)
    of_label = logits[np.arange(len(labels)), labels]
    spread = float(np.ptp(logits, axis=1).mean())
    if spread == 0.0:
        return float(np.log(logits.shape[1])), math.inf

    def loss(inverse: float) -> float:
        return float((logsumexp(inverse * logits, axis=1) - inverse * of_label).mean())

    highest = COLDEST / spread
    found = minimize_scalar(loss, bounds=(0.0, highest), method="bounded", options={"xatol": 1e-9 * highest})
    inverse = min((0.0, float(found.x)), key=loss)
    return loss(inverse), 1 / inverse if inverse > 0 else math.inf


def majority_baseline(kind: str, names: Sequence[str], labels: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Scores of the best constant answer: the reported split's own commonest class, or its mean.

    Of classes that are equally common the smallest id counts. The constant is taken from the labels it is scored on,
    so no constant learnt from train is more accurate.

    Args:
        kind: "classification" or "regression".
        names: keys of METRICS.
        labels: labels of the reported split, (n,).
    """
    true = np.asarray(labels)
    if kind == "classification":
        values, counts = np.unique(true, return_counts=True)
        constant = values[np.argmax(counts)]
    else:
        constant = true.mean()
    return compute(names, true, np.full(true.shape, constant))[0]


def rouge(
    references: Sequence[Sequence[str]], predictions: Sequence[str], names: Sequence[str] = ROUGES
) -> dict[str, np.ndarray]:
    """ROUGE F-measure of every item, 0..1 (Lin 2004), by Google's rouge-score.

    The plain variants take a-z and 0-9 as words, with stemming, as the papers report them; those named *_unicode take
    the words of every script, without stemming (`experiments.data.words`). With several references the best one counts,
    for each variant on its own (SciTLDR, Cachola et al. 2020). rougeLsum compares line by line; a text without line
    breaks is broken after sentences by a plain rule (., ! or ? before white space, and the full stops of other
    scripts), because the usual sentence splitter needs data of its own.

    Args:
        references: at least one for each of n items.
        predictions: n generated texts.
        names: variants, with or without _unicode.

    Returns:
        name -> (n,).
    """
    found: dict[str, np.ndarray] = {}
    for suffix, sentence_end in SENTENCE_ENDS.items():
        variants = tuple(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) == bool(suffix))
        if not variants:
            continue
        scorer = _scorer(variants, bool(suffix))
        items = [
            scorer.score_multi([_lines(r, sentence_end) for r in own], _lines(text, sentence_end))
            for own, text in zip(references, predictions, strict=True)
        ]
        found |= {f"{name}{suffix}": np.array([item[name].fmeasure for item in items]) for name in variants}
    return {name: found[name] for name in names}


@lru_cache
def _scorer(variants: tuple[str, ...], in_unicode: bool) -> Any:
    from absl import logging
    from rouge_score.rouge_scorer import RougeScorer

    # its logging library keeps the stderr of this moment and closes it when logging is set up anew (Hydra does so):
    # in a notebook or a test that is not the real one
    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return RougeScorer(variants, use_stemmer=True, tokenizer=_UnicodeWords() if in_unicode else None)


class _UnicodeWords:
    """The interface that rouge-score gives a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


def _lines(text: str, sentence_end: re.Pattern[str]) -> str:
    return text if "\n" in text else sentence_end.sub("\n", text.strip())


def guessing_loss(labels: np.ndarray) -> float:
    """Training loss of the best constant answer: the labels' entropy in nats, or their variance where they are real.

    Args:
        labels: of the training split, (n,); integers are classes.
    """
    if np.issubdtype(labels.dtype, np.integer):
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())
    return float(np.var(labels))
