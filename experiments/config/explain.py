"""Turns an error of Hydra or OmegaConf into one line with the allowed values."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from elalora.errors import UserError, first_line
from experiments.config.compose import compose_run
from experiments.config.mistakes import MISTAKES, mistakes, study_needs_plus
from experiments.config.suggest import for_choice, for_several, for_text, for_unreadable, nearest, settings
from experiments.config.words import GROUPS, key_of
from experiments.runtime.signals import EXIT_RESUMABLE, Preempted

KINDS = {"bool": "true or false", "Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
REASONS = {"trainer.precision=fp16": " (fp16 skips steps, and an allocator must not advance on a skipped step)"}


def answer(error: Exception | KeyboardInterrupt) -> tuple[str, int]:
    """The line to print and the exit code for an error of MISTAKES, `Preempted` or Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; run the same command again to resume from the last checkpoint", 130
    return (str(error), EXIT_RESUMABLE) if isinstance(error, Preempted) else (explain(error), 2)


@contextmanager
def in_one_line(words: Sequence[str]) -> Iterator[None]:
    """Within, a mistake in these words ends the process with one line."""
    try:
        with mistakes(words):
            yield
    except MISTAKES as error:
        sys.exit(f"elalora: {explain(error)}")


def explain(error: Exception) -> str:
    """One line: what was given, what is allowed, what to type."""
    return str(UserError(_line(error)))


def _line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    reason = first_line(error)
    if override := getattr(error, "override", None):
        return f"'{override}' cannot be read as an override; {for_unreadable(override, sys.argv[1:])}"
    text, cause = str(error).strip(), str(error.__cause__ or "").strip()
    for line_for in (_unknown_choice, _unknown_key, _added_twice, _not_a_text, _wrong_shape, _wrong_type):
        if line := line_for(text, f"{text}\n{cause}"):
            return line
    if match := re.match(r"Ambiguous value for argument '(.+)'", text):
        key, _, values = match[1].partition("=")
        return f"'{match[1]}' has several values: for a sweep over them type -m{for_several(key, values)}"
    if match := re.match(r"Sweep parameters '(.+)' requires --multirun", text):
        return f"'{match[1]}' has several values: for a sweep over them type -m"
    if "interpolation '${recipe}" in text:  # a group without a name, or with a list of names
        word = next((w for w in sys.argv[1:] if "[" in w and key_of(w) in GROUPS), "")
        key, _, names = word.partition("=")
        return f"'{word}': for a sweep type -m {key}={names.strip('[]')}" if word else "a group cannot be removed"
    if isinstance(error, InterpolationResolutionError):  # OmegaConf does not name the word
        word = next((f"'{word}': " for word in sys.argv[1:] if "${" in word), "")
        return word + reason
    return reason


def _unknown_choice(text: str, both: str) -> str | None:
    match = re.search(r"[Cc]ould not find '(hydra/launcher|\w+)/([^']*)'", text)
    if not match:
        return None
    group, name = match.groups()
    if group == "budget":
        digits = match[1] if (match := re.fullmatch(r"\D*(\d+)", name)) else "N"
        one = f"budget=r{digits}" if digits != "N" and 1 <= int(digits) <= 64 else f"budget=r4 budget.rank={digits}"
        return f"budget={name} is unknown; type {one}; allowed: budget=r1 .. budget=r64, or budget=params"
    if advice := for_choice(group, name):
        return f"{group}={name} is unknown; {advice}"
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
    return unknown_setting(key)


def unknown_setting(key: str) -> str:
    """The line for a setting that does not exist: the settings that were probably meant, or all of its parent."""
    parent, _, leaf = key.rpartition(".")
    if meant := settings(key, _word_of(key).partition("=")[2]):
        meant = [f"task=own {word}" if key_of(word.strip("'")) == key else word for word in meant]
        return f"unknown setting '{key}'; type {' or '.join(meant)}"
    names = _keys(parent)
    of_parent = f" of {parent}" if parent else ""
    return f"unknown setting '{key}'; available{of_parent}: {', '.join(names)}{_near(leaf, names, parent)}"


def _word_of(key: str) -> str:
    """The last word of the command that sets this key, or a list or group around it."""
    keys = [key.partition("[")[0]]
    return next((word for word in reversed(sys.argv) if key_of(word) in keys), "")


def _added_twice(text: str, both: str) -> str | None:
    if re.match("Multiple values for study", text):
        return "a command runs one study; type +study=NAME once"
    match = re.search(r"An item is already at '([^']+)'", text) or re.match(r"Multiple values for ([\w/@]+)\.", text)
    if match is None:
        return None
    word = _word_of(match[1]) or f"+{match[1]}=..."
    return f"'{word}' adds a setting that exists; to change it type {word.lstrip('+')}"


def _not_a_text(text: str, both: str) -> str | None:
    match = re.search(r"'(.*?)' of type '(bool|float)' is not a text", both)
    key = re.search(r"full_key: (\S+)", both)
    if match is None or key is None:
        return None
    kind = {"bool": "true or false", "float": "a number"}[match[2]]
    if word := _word_of(key[1]):
        return f"'{word}' is read as {kind}; for a text type {for_text(word)}"
    return f"{key[1]}={match[1]} is read as {kind}; for a text put it in quotes in its file"


def _wrong_shape(text: str, both: str) -> str | None:
    """A value where a list or a group of settings belongs, or the other way round."""
    match = re.search(r"full_key: (\S+)", both)
    word = _word_of(match[1]) if match else ""
    if match is None or not word or "[" in match[1]:
        return None
    key, _, value = word.lstrip("+").partition("=")
    if "is not a ListConfig" in both:
        return f"{key} is a list; type {for_text(f'{key}=[{value}]')}"
    if re.search(r"Cannot convert '(list|dict|ListConfig|DictConfig)' to string", both):
        return f"{key} is one text, not a list; type {for_text(f'{key}=X').replace('X', value)}"
    if "is not a subclass of" in both or re.search(r"Cannot assign \w+ to Dict", both):
        if key == "launcher":
            return f"to choose a launcher type hydra/launcher={value}"
        return f"{key} is a group of settings; type one of {', '.join(f'{key}.{name}' for name in _keys(key))}"
    return None


def _wrong_type(text: str, both: str) -> str | None:
    match = re.search(r"full_key: (\S+)", both)
    key = match[1] if match else "a value"
    if "is not Optional" in both:
        return f"{key}=null is not allowed; give it a value, or leave it out"
    if match := re.search(r"Invalid value '(.*?)', expected one of \[(.*?)\]", both):
        return _unknown(f"{key}={match[1]}", match[1], match[2].split(", "))
    match = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", both) or re.search(
        r"Value '(.*?)' .*?is incompatible with type hint '([^']+)'", both
    )
    if match is None and (match := re.search(r"Value '(.*?)' is not a valid (bool)", both)) is None:
        return None
    several = re.fullmatch(r"\[?(\d+)(?:-|:|\.\.|, ?)(\d+)(?:, ?\d+)*\]?", match[1])
    hint = ""
    if match[1].lower() in ("none", ""):
        hint = f"; for none type {key}=null"
    elif match[2] == "Integer" and re.fullmatch(r"\d+\.0", match[1]):
        hint = f"; type {key}={match[1][:-2]}"
    elif several and match[2] == "Integer":
        values = (
            match[1].strip("[]").replace(" ", "") if "," in match[1] else f"range({several[1]},{int(several[2]) + 1})"
        )
        hint = f"; for a sweep type -m '{key}={values}'"
    return f"{key}={match[1]} is not {KINDS.get(match[2], 'a ' + match[2].lower())}{hint}"


def _unknown(word: str, value: str, names: list[str]) -> str:
    return f"{word} is unknown; allowed: {', '.join(names)}{REASONS.get(word) or _near(value, names)}"


def _near(value: str, names: list[str], parent: str = "") -> str:
    close = nearest(value, names)
    return f" (did you mean {parent + '.' if parent else ''}{close}?)" if close else ""


def _keys(parent: str) -> list[str]:
    """Settings below `parent` with the groups chosen on the command line."""
    try:
        config = compose_run([w for w in sys.argv[1:] if key_of(w) in (*GROUPS, "study") and "," not in w])
    except MISTAKES:  # the mistake may be in one of the groups
        config = compose_run([])
    node = OmegaConf.select(config, parent) if parent else config
    return sorted(str(k) for k in (node if OmegaConf.is_dict(node) else config))
