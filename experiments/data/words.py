"""What the ROUGE metrics take as words, and the check that they see the summaries of a task.

rouge-score's own rule keeps a-z and 0-9 only, so it finds nothing in Chinese, Hindi, Russian or Persian text and little
in mixed text. `unicode_words` is for every script; metrics named *_unicode use it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

from elalora.errors import UserError

SUFFIX = "_unicode"  # of the metrics that use `unicode_words`
PLAIN = regex.compile("[a-z0-9]")
# scripts without blanks between words: every letter with its marks is a word
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
WORD = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}]){UNSPACED}\p{{M}}*|(?!{UNSPACED})[\p{{L}}\p{{N}}](?:(?!{UNSPACED})[\p{{L}}\p{{N}}\p{{M}}])*"
)
LEAST_SEEN = 0.5  # of the letters and digits in a split's summaries


def unicode_words(text: str) -> list[str]:
    """Runs of letters, digits and their marks, in lower case and Unicode's form NFKC.

    In scripts that have no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def check_seen(label: str, metrics: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses summaries that a ROUGE metric cannot score.

    Args:
        label: how errors name the split's file.
        metrics: names of ROUGE metrics.
        references: of every item.

    Raises:
        UserError: the metric's rule finds no word in an item that has letters, nor half of the letters of all items.
    """
    plain = next((name for name in metrics if not name.endswith(SUFFIX)), None)
    if plain is None:
        return
    instead = ",".join(name if name.endswith(SUFFIX) else f"{name}{SUFFIX}" for name in metrics)
    advice = f"it knows a-z and 0-9 only; type 'task.metrics=[{instead}]'"
    seen = total = 0
    for row, texts in enumerate(references, start=1):
        text = " ".join(texts).lower()
        if text.isascii():
            seen, total = seen + len(text), total + len(text)
            continue
        found, there = len(PLAIN.findall(text)), sum(map(str.isalnum, text))
        if there and not found:
            raise UserError(f"{label}: {plain} finds no word in the summary of row {row}; {advice}")
        seen, total = seen + found, total + there
    if seen < LEAST_SEEN * total:
        raise UserError(f"{label}: {plain} sees {100 * seen / total:.0f} % of the summaries' letters; {advice}")
