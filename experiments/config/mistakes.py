"""Errors in the words of a command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from elalora.errors import UserError
from experiments.config.words import GROUPS
from experiments.runtime.places import CONF

MISTAKES = (UserError, HydraException, OmegaConfBaseException)  # in what was asked for


STUDY_FIRST = "a study is added to the command: type +study=NAME; there is {}"


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def mistakes(words: Sequence[str]) -> Iterator[None]:
    """Composing: what Hydra raises for odd words beside its own exceptions is a mistake in these words as well.

    Raises:
        UserError: in place of any other exception than Hydra's and OmegaConf's own.
    """
    try:
        yield
    except MISTAKES:
        raise
    except Exception as error:  # ValueError for budget=4, AssertionError for study.name=x, and more
        raise UserError(_odd(error, words)) from error


def _odd(error: Exception, words: Sequence[str]) -> str:
    """One line about words of which Hydra does not say what is wrong."""
    for word in words:
        key, _, value = word.partition("=")
        if re.match(r"\+*study\.", word) and not any(re.match(r"\+*study=", other) for other in words):
            return STUDY_FIRST.format(", ".join(_studies()))
        if (not key or key in GROUPS) and not re.search(r"[a-z]", value):
            hint = f"; type budget=r{value}" if key == "budget" and value.isdigit() else ""
            return f"'{word}' is no choice: a group takes a name{hint or ', NAME=VALUE'}"
    return f"the words {' '.join(words)} cannot be composed ({type(error).__name__}: {_first(error)})"


def _studies() -> list[str]:
    return sorted(path.stem for path in (CONF / "study").glob("*.yaml"))
