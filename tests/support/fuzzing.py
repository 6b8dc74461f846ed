"""Tests of a property over generated input: a few dozen examples in `make test`, four times as many in test-slow.

Both take the same examples on every machine. `make test-full` draws new ones, FUZZ_TIMES (default 25) times as many as
the slow test has: `FUZZ_TIMES=200 python -m pytest -m full tests/experiments/data/test_fuzz_data.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elalora.errors import UserError

QUICK = 0.25
TIMES = int(os.environ.get("FUZZ_TIMES", "25"))
NASTY = (
    "", " ", "\0", "\ud800", "\x85", "\u2028", "\x1b[2J", "é", "٣", "²", "-0", "--1", "1e999", "nan", "inf", "true",
    "null", "~", "~no_such_user/x", "/", "..", "../../x", "a" * 300, "9" * 20, "9" * 5000, "${x}", "${oc.env:HOME}",
    "???",
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 5), st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400]),
    st.floats(), st.sampled_from([1e300, 1e308, 1e15, 3.5e38]),
)  # fmt: skip
WORDS = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=8))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
DEEP = "[" * 100_000


def trees(*keys: str) -> st.SearchStrategy[Any]:
    """JSON values whose objects use these keys among others."""
    names = st.one_of(st.sampled_from(keys), WORDS) if keys else WORDS
    return st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=5
    )


def as_json(value: Any) -> str:
    """The text of a JSON value, also of numbers too long for Python to read back."""
    return json.dumps(value).replace('"@long"', "9" * 5000)


def spoiled(whole: Any, *keys: str) -> st.SearchStrategy[Any]:
    """A JSON value with one to three places, at any depth, removed or holding something else."""
    places = list(_places(whole))

    @st.composite
    def spoil(draw: Any) -> Any:
        value = json.loads(json.dumps(whole))
        for place in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
            value = _put(value, place, draw(st.just(REMOVED) | trees(*keys)))
        return value

    return spoil()


REMOVED = object()


def _places(value: Any, here: tuple[Any, ...] = ()) -> Any:
    yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _places(part, (*here, key))


def _put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return {} if new is REMOVED else new
    holder = value
    try:
        for key in place[:-1]:
            holder = holder[key]
        if new is REMOVED:
            del holder[place[-1]]
        else:
            holder[place[-1]] = new
    except (LookupError, TypeError):  # an earlier change took the place away
        pass
    return value


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A file cut short, with bytes changed, or something else in place of it."""

    @st.composite
    def damage(draw: Any) -> bytes:
        raw = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(raw) - 1))
            raw[at] = draw(st.integers(0, 255))
        return bytes(raw[: draw(st.integers(0, len(raw)))]) if draw(st.booleans()) else bytes(raw)

    return damage() | st.binary(max_size=60) | st.just(DEEP.encode())


def fuzzed(
    examples: int, quick: bool = True, **drawn: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a check of drawn values into a quick test of a few examples, a slow one of `examples`, and a long one.

    Args:
        examples: of the slow test.
        quick: False for a check whose few examples take seconds, so that it has no quick test.
        drawn: a strategy for each argument of the check.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        longer = [pytest.param(1, marks=pytest.mark.slow), pytest.param(TIMES, marks=pytest.mark.full)]

        @pytest.mark.parametrize("times", [QUICK, *longer] if quick else longer)
        def test(times: float) -> None:
            chosen = settings(
                max_examples=max(2, round(examples * times)),
                deadline=None,
                database=None,
                derandomize=times <= 1,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            )
            chosen(given(**drawn)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or None where it refuses in one line; any other exception is the test's failure."""
    try:
        return call()
    except UserError as error:
        line = str(error)
        assert line.strip() and len(line.splitlines()) == 1, line
        return None
