"""How an answer is read from generated text and compared with a reference: named and versioned.

A parser is part of a run's identity by its name. Once runs are stored, a change of a rule is a new name with the next
version. tests/experiments/training/test_parsers.py has the worked examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from experiments.data.math_answers import boxed, normal

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|$)", re.DOTALL)
# what ends a function (Chen et al., arXiv 2107.03374), and a solution (code_process.py of Learning Rate Matters)
AFTER_FUNCTION = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
AFTER_SOLUTION = ("\nif __name__", "\n# Example usage", "\nassert")
ANSWER_PHRASES = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


@dataclass(frozen=True)
class Parser:
    """Reads an answer, None where there is none, and compares it with a reference."""

    parse: Callable[[str, Sequence[str]], str | None]
    equal: Callable[[str, str], bool]


def _same(answer: str, reference: str) -> bool:
    return answer.strip() == reference.strip()


def _exact(text: str, options: Sequence[str]) -> str | None:
    """The whole text without white space around it."""
    return text.strip() or None


def _first_option(text: str, options: Sequence[str]) -> str | None:
    """The option that begins first, of several the one listed first; also inside a word, and case matters.

    The rule of LLM-Adapters (commonsense_evaluate.py): "answer12" is answer1.
    """
    found = re.search("|".join(map(re.escape, options)), text) if options else None
    return found and found[0]


def _first_word_option(text: str, options: Sequence[str]) -> str | None:
    """The option that stands first as a word of its own; case does not matter."""
    words = {option.casefold(): option for option in options}
    found = re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", text.casefold()) if options else None
    return found and words[found[0]]


def _last_number(text: str, options: Sequence[str]) -> str | None:
    """The last number, without thousands commas."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def _hash(text: str, options: Sequence[str]) -> str | None:
    """The first number behind ####, without thousands commas."""
    found = re.search(rf"####\s*\$?({NUMBER.pattern})", text)
    return found and found[1].replace(",", "")


def _gsm8k(text: str, options: Sequence[str]) -> str | None:
    """The first number behind the last "The answer is: ", or behind the last "####"; commas are removed.

    Learning Rate Matters (arXiv 2602.04998, test_acc.py) reads the first form; references of GSM8K have the second.
    """
    for phrase in ("The answer is: ", "####"):
        if phrase in text:
            found = re.search(rf"{NUMBER.pattern}(?:/\d+)?", text.rpartition(phrase)[2].replace(",", ""))
            return found and found[0]
    return None


def _metamath(text: str, options: Sequence[str]) -> str | None:
    """The rest of the line behind the last occurrence of the first answer phrase that the text has.

    PEFT's method comparison (MetaMathQA/utils.py, parse_answer): thousands commas stay.
    """
    text = text.strip().rstrip(".!?")
    phrase = next((phrase for phrase in ANSWER_PHRASES if phrase in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[2].partition("\n")[0].strip(" .!?$%")


def _math(text: str, options: Sequence[str]) -> str | None:
    """What follows the last "The answer is: " up to the end of its sentence or line, else the last boxed answer."""
    phrase = "The answer is: "
    if phrase not in text:
        return boxed(text)
    answer = text.rpartition(phrase)[2].split("\n")[0].strip().removesuffix(".")
    return boxed(answer) or answer.strip("$ ") or None


def _cut(text: str, ends: Sequence[str]) -> str | None:
    """The text before the first of some ends, None if it is blank."""
    cut = text[: min((place for end in ends if (place := text.find(end)) >= 0), default=len(text))].rstrip()
    return cut if cut.strip() else None


def _code_block(text: str, options: Sequence[str]) -> str | None:
    """The first fenced block of Python, else the whole text, up to its own tests, example or main part."""
    found = FENCE.search(text)
    return _cut("\n" + (found[1] if found else text), AFTER_SOLUTION)


def _code_completion(text: str, options: Sequence[str]) -> str | None:
    """The rest of a function: the text up to the next statement at the left margin that Codex' authors stop at."""
    return _cut(text, AFTER_FUNCTION)


def _same_mathematics(answer: str, reference: str) -> bool:
    return normal(answer) == normal(reference)


def _fraction(text: str) -> Decimal | None:
    """A decimal number, or a fraction with one slash."""
    try:
        parts = [Decimal(part) for part in text.split("/")]
        if len(parts) == 1:
            return parts[0]
        return parts[0] / parts[1] if len(parts) == 2 and parts[1] else None
    except InvalidOperation:
        return None


def _as_numbers(answer: str, reference: str) -> bool:
    """Equal as numbers where both are some, else as texts; thousands commas of the reference do not count."""
    left, right = _fraction(answer), _fraction(reference.strip().replace(",", ""))
    return left == right if left is not None and right is not None else _same(answer, reference)


def _as_integers(answer: str, reference: str) -> bool:
    """Equal after the answer is rounded to an integer, as GSM8K's answers are integers."""
    left, right = _fraction(answer), _fraction(reference.strip().replace(",", ""))
    return left is not None and right is not None and left.is_finite() and round(left) == right


def _as_metamath(answer: str, reference: str) -> bool:
    """As numbers in double precision where both are some, else as texts, commas and all."""
    left, right = _fraction(answer), _fraction(reference.strip())
    return float(left) == float(right) if left is not None and right is not None else _same(answer, reference)


PARSERS = {
    "exact_v1": Parser(_exact, _same),
    "first_option_v1": Parser(_first_option, _same),
    "first_word_option_v1": Parser(_first_word_option, _same),
    "last_number_v1": Parser(_last_number, _as_numbers),
    "gsm8k_v1": Parser(_gsm8k, _as_integers),
    "metamath_v1": Parser(_metamath, _as_metamath),
    "hash_v1": Parser(_hash, _as_numbers),
    "math_v1": Parser(_math, _same_mathematics),
    "code_block_v1": Parser(_code_block, _same),
    "code_completion_v1": Parser(_code_completion, _same),
    "ifeval_v1": Parser(_exact, _same),  # its rules compare, not a reference
}
