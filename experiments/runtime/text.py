"""Text for people: numbers as words, and text of unknown origin without what steers a terminal."""

from __future__ import annotations

from typing import Any

LONGEST = 1_000  # characters of a text that tables and terminals show
DEPTH = 50  # of nested values
BARE = (int, float, bool, type(None))  # types of JSON values without text


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """40 s, 12 min, 3 h or 5 d: the largest unit of which there are at least two."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clean(text: str, longest: int = LONGEST) -> str:
    """The text in one line and cut to a length, with control and format characters written as escapes.

    Format characters include those that reverse the direction of the text behind them.
    """
    text = text[:longest] + ("..." if len(text) > longest else "")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def clean_tree(value: Any, depth: int = DEPTH) -> Any:
    """A JSON value with every text in it cleaned, keys included.

    Raises:
        ValueError: the value is nested too deeply.
    """
    if isinstance(value, str):
        return clean(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if not depth:
        raise ValueError(f"it is nested deeper than {DEPTH} levels")
    if isinstance(value, dict):
        return {
            key if type(key) is str and key.isprintable() else clean_tree(key, depth - 1): (
                inner if type(inner) in BARE else clean_tree(inner, depth - 1)
            )
            for key, inner in value.items()
        }
    return type(value)(inner if type(inner) in BARE else clean_tree(inner, depth - 1) for inner in value)
