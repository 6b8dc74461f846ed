"""Turns an error of Hydra or OmegaConf into one line with the allowed values."""

from __future__ import annotations

import difflib
import re
import sys

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from elalora.errors import UserError, first_line
from experiments.config.compose import compose_run
from experiments.config.mistakes import MISTAKES, study_needs_plus
from experiments.config.words import GROUPS, key_of
from experiments.runtime.signals import EXIT_RESUMABLE, Preempted

REASONS = {"trainer.precision=fp16": " (fp16 skips steps, and an allocator must not advance on a skipped step)"}


def answer(error: Exception | KeyboardInterrupt) -> tuple[str, int]:
    """The line to print and the exit code for an error of MISTAKES, `Preempted` or Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; run the same command again to resume from the last checkpoint", 130
    return (str(error), EXIT_RESUMABLE) if isinstance(error, Preempted) else (explain(error), 2)


def explain(error: Exception) -> str:
    """One line: what was given, what is allowed, what to type."""
    return str(UserError(_line(error)))


def _line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    reason = first_line(error)
    if override := getattr(error, "override", None):
        return f"'{override}' cannot be read as an override ({reason}); type NAME=VALUE, in quotes"
    text, cause = str(error).strip(), str(error.__cause__ or "").strip()
    for line_for in (_unknown_choice, _unknown_key, _wrong_type):
        if line := line_for(text, f"{text}\n{cause}"):
            return line
    if match := re.match(r"Ambiguous value for argument '(.+)'", text):
        return f"'{match[1]}' has several values: for a sweep over them type -m, for a list put them in [...]"
    if isinstance(error, InterpolationResolutionError):  # OmegaConf does not name the word
        word = next((f"'{word}': " for word in sys.argv[1:] if "${" in word), "")
        return word + reason
    return reason


def _unknown_choice(text: str, both: str) -> str | None:
    match = re.search(r"[Cc]ould not find '([\w/]+)/([^'/]+)'", text)
    if not match:
        return None
    group, name = match.groups()
    if group == "budget":
        return f"budget={name} is unknown; type budget=r1 .. budget=r64, budget=r4 budget.rank=N, or budget=params"
    return _unknown(f"{group}={name}", name, re.findall(r"^\s+(\S+)$", text, re.M))


def _unknown_key(text: str, both: str) -> str | None:
    if "Could not override 'study'" in text:
        return study_needs_plus()
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text)
    if not match or "not in" not in both:
        return None
    key = match[1]
    if key in GROUPS:
        return f"{key} is a group and takes a name: type {key}=NAME"
    parent, _, leaf = key.rpartition(".")
    names = _keys(parent)
    of_parent = f" of {parent}" if parent else ""
    return f"unknown setting '{key}'; available{of_parent}: {', '.join(names)}{_near(leaf, names, parent)}"


def _wrong_type(text: str, both: str) -> str | None:
    match = re.search(r"full_key: (\S+)", both)
    key = match[1] if match else "a value"
    if match := re.search(r"Invalid value '(.*?)', expected one of \[(.*?)\]", both):
        return _unknown(f"{key}={match[1]}", match[1], match[2].split(", "))
    match = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", both) or re.search(
        r"Value '(.*?)' .*?is incompatible with type hint '([^']+)'", both
    )
    return match and f"{key}={match[1]} is not a {match[2].lower()}"


def _unknown(word: str, value: str, names: list[str]) -> str:
    return f"{word} is unknown; allowed: {', '.join(names)}{REASONS.get(word) or _near(value, names)}"


def _near(value: str, names: list[str], parent: str = "") -> str:
    close = difflib.get_close_matches(value, names, n=1)
    return f" (did you mean {parent + '.' if parent else ''}{close[0]}?)" if close else ""


def _keys(parent: str) -> list[str]:
    """Settings below `parent` with the groups chosen on the command line."""
    try:
        config = compose_run([word for word in sys.argv[1:] if key_of(word) in GROUPS and "," not in word])
    except MISTAKES:  # the mistake may be in one of the groups
        config = compose_run([])
    node = OmegaConf.select(config, parent) if parent else config
    return sorted(str(k) for k in (node if OmegaConf.is_dict(node) else config))
