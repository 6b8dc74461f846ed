"""Turns what Hydra and OmegaConf say about a mistake into one line with the allowed values."""

from __future__ import annotations

import difflib
import re
import sys

from omegaconf.errors import InterpolationResolutionError

from elalora.errors import UserError
from experiments.config.compose import compose_run
from experiments.config.mistakes import MISTAKES, STUDY_FIRST, _first, _studies
from experiments.config.words import GROUPS, key_of
from experiments.runtime.signals import EXIT_RESUMABLE, Preempted


def answer(error: BaseException) -> tuple[str, int]:
    """The line and the exit code of a command that ends with an error of MISTAKES, `Preempted` or ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; the same command goes on from the last checkpoint", 130
    return (str(error), EXIT_RESUMABLE) if isinstance(error, Preempted) else (explain(error), 2)


def explain(error: BaseException) -> str:
    """One line for a person: what was given, what is allowed, what to type."""
    return str(UserError(_line(error)))


def _line(error: BaseException) -> str:
    text = str(error).strip()
    if override := getattr(error, "override", None):
        return f"'{override}' cannot be read as an override ({_first(error)}); type NAME=VALUE, in quotes"
    cause = str(error.__cause__ or "").strip()
    if isinstance(error, UserError):
        return text
    for maker in (_unknown_choice, _unknown_key, _wrong_type, _several):
        line = maker(text, cause)
        if line:
            return line
    if isinstance(error, InterpolationResolutionError):  # it does not say where
        place = next((f"'{word}': " for word in sys.argv[1:] if "${" in word), "")
        return place + _first(error)
    return _first(error)


def _unknown_choice(text: str, cause: str) -> str | None:
    found = re.search(r"[Cc]ould not find '([\w/]+)/([^'/]+)'", text)
    if not found:
        return None
    group, given = found.groups()
    names = [n for n in re.findall(r"^\s+(\S+)$", text, re.M)]
    if group == "budget":
        return f"budget={given} is unknown; type budget=r1 .. budget=r64, budget=r4 budget.rank=N, or budget=params"
    return f"{group}={given} is unknown; allowed: {', '.join(names)}{_near(given, names)}"


def _unknown_key(text: str, cause: str) -> str | None:
    if "Could not override 'study'" in text:
        return STUDY_FIRST.format(", ".join(_studies()))
    found = re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text)
    if not found or "not in" not in text + cause:
        return None
    given = found.group(1)
    if given in GROUPS:
        return f"{given} is a group and takes a name: type {given}=NAME"
    parent, _, leaf = given.rpartition(".")
    names = _keys(parent)
    where = f" of {parent}" if parent else ""
    return f"'{given}' is no setting; allowed{where}: {', '.join(names)}{_near(leaf, names, parent)}"


def _wrong_type(text: str, cause: str) -> str | None:
    both = f"{text}\n{cause}"
    key = re.search(r"full_key: (\S+)", both)
    if choices := re.search(r"Invalid value '(.*?)', expected one of \[(.*?)\]", both):
        given, names = choices[1], choices[2].split(", ")
        return f"{key[1] if key else 'a value'}={given} is unknown; allowed: {', '.join(names)}{_near(given, names)}"
    found = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", both)
    if not found:
        found = re.search(r"Value '(.*?)' .*?is incompatible with type hint '([^']+)'", both)
    if not found:
        return None
    name = key.group(1) if key else "a value"
    return f"{name}={found.group(1)} is not a {found.group(2).lower()}"


def _several(text: str, cause: str) -> str | None:
    found = re.match(r"Ambiguous value for argument '(.+)'", text)
    if not found:
        return None
    return f"'{found[1]}' has several values: for a sweep over them type -m, for a list put them in [...]"


def _near(given: str, names: list[str], parent: str = "") -> str:
    close = difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {parent + '.' if parent else ''}{close[0]}?)" if close else ""


def _keys(parent: str) -> list[str]:
    """Settings below `parent` with the groups chosen on the command line."""
    from omegaconf import OmegaConf

    try:
        config = compose_run([word for word in sys.argv[1:] if key_of(word) in GROUPS and "," not in word])
    except MISTAKES:  # one of them is the mistake
        config = compose_run([])
    node = OmegaConf.select(config, parent) if parent else config
    return sorted(str(k) for k in node) if OmegaConf.is_dict(node) else sorted(str(k) for k in config)
