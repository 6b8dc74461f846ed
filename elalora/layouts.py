"""Layouts: how fixed ranks are spread over the matrices, written as a rule.

A rule is a list of terms separated by blanks. Every matrix starts with weight 1, and each term multiplies the weights
of the matrices that it names:

    query:2, output.dense:0.5   matrices with this name (patterns of `elalora.names`)
    attention:W, ffn:W          linear layers of the attention, and all others
    layer3:W, layer0-2:W        layers by number
    top:W, bottom:W             a ramp over depth, from 1 to W at the last layer, or at the first
    rest:W                      matrices that no name, attention, ffn or layer term names
    inverted                    at the end: w becomes max + min - w, so that the ranks go where they were not

Weights are scaled to the budget by largest remainders (`elalora.shares.largest_remainder`), in exact arithmetic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from elalora.errors import UserError
from elalora.names import matches, place
from elalora.targets import ARCHITECTURES

FORM = "type terms such as 'ffn:3', 'query:2 top:4', 'value:1 rest:0', 'layer0-2:3' or 'inverted'"
RAMPS = ("top", "bottom")
INVERTED, REST = "inverted", "rest"
FILE = ".json"
ATTENTION = tuple(dict.fromkeys(name for kind in ARCHITECTURES.values() for name in kind.attention))


@dataclass(frozen=True)
class Term:
    """A factor on the weights of the matrices that `name` stands for."""

    name: str
    weight: Fraction

    def __str__(self) -> str:
        return f"{self.name}:{_decimal(self.weight)}"


@dataclass(frozen=True)
class Rule:
    """A parsed rule.

    Attributes:
        terms: all but `rest`; rest: weight of matrices that no term names, None without that term.
        inverted: whether the weights are inverted at the end.
    """

    terms: tuple[Term, ...]
    rest: Fraction | None = None
    inverted: bool = False

    def __str__(self) -> str:
        """The rule in the one spelling that all rules with the same weights of terms share."""
        idle = self.rest is None  # a weight of 1 changes nothing, but names a matrix that is then not the rest
        words = sorted(str(term) for term in self.terms if not (idle or term.name in RAMPS) or term.weight != 1)
        words += [] if self.rest is None else [str(Term(REST, self.rest))]
        return " ".join([*words, *[INVERTED] * self.inverted])


def read_rule(text: str, setting: str = "method.pattern") -> Rule:
    """Parses a rule; `setting` names it in errors.

    Raises:
        UserError: a term cannot be read, is there twice, or has a weight below 0.
    """
    words = text.split()
    inverted = INVERTED in words
    terms = [_term(word, f"{setting}={text}") for word in words if word != INVERTED]
    names = [term.name for term in terms] + [INVERTED] * words.count(INVERTED)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{setting}={text}: '{twice[0]}' is there twice; give it once")
    if not words:
        raise UserError(f"{setting} is empty: {FORM}, or null")
    rest = next((term.weight for term in terms if term.name == REST), None)
    return Rule(tuple(term for term in terms if term.name != REST), rest, inverted)


def read_file(path: str) -> str:
    """The rule that a JSON file stands for: an object with a weight for each name, where a name is that of a term.

    Matrices that no name stands for get 0.

    Raises:
        UserError: the file cannot be read, or is not such an object.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"method.pattern={path} cannot be read as a JSON file: {error}") from error
    numbers = isinstance(content, dict) and all(type(v) in (int, float) for v in content.values())
    if not numbers or not content:
        raise UserError(f'method.pattern={path} must hold one weight for each name, such as {{"query": 2, "value": 1}}')
    words = [f"{name}:{weight}" for name, weight in content.items()]
    return " ".join(words if REST in content else [*words, f"{REST}:0"])


def weights_of(rule: Rule, names: Sequence[str], start: Mapping[str, int] | None = None) -> dict[str, Fraction]:
    """The weight of every matrix.

    Args:
        rule: see the module's docstring.
        names: of the adapted matrices.
        start: weights before the rule, such as another run's ranks; 1 everywhere by default.

    Raises:
        UserError: a term names no matrix, or all weights are 0.
    """
    weights = {name: Fraction(1 if start is None else start[name]) for name in names}
    unnamed = set(names)
    for term in rule.terms:
        factors = dict(_factors(term, names))
        if not factors:
            raise UserError(
                f"method.pattern: '{term}' names none of the {len(names)} adapted matrices, such as {names[0]}: {FORM}"
            )
        for name, factor in factors.items():
            weights[name] *= factor
        unnamed -= set() if term.name in RAMPS else set(factors)
    if rule.rest is not None:
        weights.update({name: weights[name] * rule.rest for name in unnamed})
    if rule.inverted:
        ends = max(weights.values()) + min(weights.values())
        weights = {name: ends - weight for name, weight in weights.items()}
    if not any(weights.values()):
        raise UserError(f"method.pattern={rule} gives every matrix the weight 0: give one of them more")
    return weights


def _term(word: str, given: str) -> Term:
    name, colon, weight = word.rpartition(":")
    try:
        if not colon or not name:
            raise ValueError
        term = Term(name, Fraction(weight))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{given}: '{word}' cannot be read; {FORM}") from None
    if term.weight < 0:
        raise UserError(f"{given}: the weight of '{name}' must not be negative")
    return term


def _factors(term: Term, names: Sequence[str]) -> Iterator[tuple[str, Fraction]]:
    """The matrices that a term names, with its factor on the weight of each."""
    layers = {name: place(name)[0] for name in names}
    first, last = min(layers.values()), max(layers.values())
    some = re.fullmatch(r"layer(\d+)(?:-(\d+))?", term.name)
    for name, layer in layers.items():
        if term.name in RAMPS:
            depth = Fraction(layer - first, max(1, last - first))
            yield name, 1 + (term.weight - 1) * (depth if term.name == "top" else 1 - depth)
        elif some:
            if int(some[1]) <= layer <= int(some[2] or some[1]):
                yield name, term.weight
        elif _named(name, term.name):
            yield name, term.weight


def _named(name: str, wanted: str) -> bool:
    if wanted in ("attention", "ffn"):
        return any(matches(name, pattern) for pattern in ATTENTION) == (wanted == "attention")
    return matches(name, wanted)


def _decimal(value: Fraction) -> str:
    """A weight as it is typed, shortest."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))
