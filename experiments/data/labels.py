"""Class labels of the user's own files: ids, or names that become ids; they must mean the same in all files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from elalora.errors import UserError
from experiments.config.task import OPTIONS, TaskConfig
from experiments.data.image_files import WHOLE, class_ids
from experiments.data.tables import Columns


def number_classes(task: TaskConfig, raw: Mapping[str, Columns], named: Mapping[str, str]) -> None:
    """Turns class names into ids in place: their index in task.labels, or among the sorted names of train.

    Args:
        task: names the classes, or says how many there are.
        raw: columns by split; named: how errors name the files of each.

    Raises:
        UserError: names stand beside numbers, two names differ in case or blanks only, or a name is unknown.
    """
    for columns in raw.values():
        columns["label"] = [_class(task.labels, value) for value in columns["label"]]
    if any(type(value) is int for columns in raw.values() for value in columns["label"]):
        for columns in raw.values():  # beside 0 and 1, 1.0 is a number and no name
            columns["label"] = [_class(task.labels, whole(value, real=True)) for value in columns["label"]]
    _refuse_mixed(raw, named)
    names = [v for v in raw["train"]["label"] if isinstance(v, str)]
    if task.labels is not None:
        ids = {name: number for number, name in enumerate(task.labels)}
    else:
        ids = class_ids(names, None, task.num_labels, named["train"]) if names else {}
    for name, columns in raw.items():
        for row, value in enumerate(columns["label"], start=1):
            if isinstance(value, str) and value not in ids:
                allowed = ", ".join(map(repr, ids)) or f"0 to {task.num_labels - 1}"
                near = next((f" (did you mean {n!r}?)" for n in ids if _folded(n) == _folded(value)), "")
                raise UserError(f"{named[name]}: row {row} has label {value!r}; allowed: {allowed}{near}")
        columns["label"] = [ids[v] if isinstance(v, str) else v for v in columns["label"]]


def number_options(columns: Columns) -> None:
    """Turns labels that are the text of one of their row's options into its number, in place."""
    for row, options in enumerate(columns[OPTIONS]):
        value = columns["label"][row]
        known = isinstance(options, list) and type(value) in (str, int) and str(value) in options
        columns["label"][row] = options.index(str(value)) if known else whole(value, real=True)


def refuse_untrained(task: TaskConfig, columns: Mapping[str, Columns], named: Mapping[str, str]) -> None:
    """Refuses a class that another split has and train lacks, which nothing could learn; arguments as above."""
    trained = set(columns["train"]["label"])
    for name, split in columns.items():
        if more := set(split["label"]) - trained:
            spelt = [{task.labels[i] if task.labels else i for i in ids} for ids in (more, trained)]
            raise UserError(
                f"{named[name]} has label {_shown(spelt[0])}, which no row of {named['train']} has (it has "
                f"{_shown(spelt[1])}); add such rows to {named['train']}, or remove them"
            )


def whole(value: Any, real: bool = False) -> Any:
    """The whole number that a text spells, with `real` also as 1.0; other values unchanged."""
    if real and isinstance(value, float) and value.is_integer():
        return int(value)
    return _whole(value, real) if isinstance(value, str) else value


@lru_cache(maxsize=4096)  # a column has few labels and many rows
def _whole(text: str, real: bool) -> int | str:
    spelt = re.sub(r"\.0*$", "", text.strip()) if real else text.strip()
    return int(spelt) if WHOLE.fullmatch(spelt.removeprefix("-")) else text


def _class(labels: Sequence[str] | None, value: Any) -> Any:
    """The name of a class, or its id where task.labels does not name it."""
    if isinstance(value, bool):
        value = str(value).lower()  # as JSON spells it
    value = value if isinstance(value, str) else whole(value, real=True)
    if labels is not None and type(value) in (str, int) and str(value) in labels:
        return str(value)
    return whole(value)


def _folded(name: str) -> str:
    return name.strip().casefold()


def _refuse_mixed(raw: Mapping[str, Columns], named: Mapping[str, str]) -> None:
    """Refuses names beside numbers, and names that differ in case or outer blanks only: one class under two labels."""
    found = {name: {v for v in columns["label"] if type(v) in (str, int)} for name, columns in raw.items()}
    labels = set().union(*found.values())
    if len({type(label) for label in labels}) > 1:
        shown = ", ".join(f"{named[name]} has {_shown(values)}" for name, values in found.items() if values)
        raise UserError(f"labels are names in one place and numbers in another: {shown}; write them alike in all files")
    seen: dict[str, str] = {}
    for label in sorted(label for label in labels if isinstance(label, str)):
        if (other := seen.setdefault(_folded(label), label)) != label:
            files = ", ".join(named[name] for name, values in found.items() if {other, label} & values)
            raise UserError(
                f"labels {other!r} and {label!r} differ in case or blanks only ({files}); write them alike in all files"
            )


def _shown(labels: Collection[Any], most: int = 6) -> str:
    """The labels in order, numbers first; some of them if there are many."""
    listed = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return ", ".join(map(repr, listed[:most])) + (", ..." if len(listed) > most else "")
