"""Finds the runs below a store: folders with a result, and runs that stopped or are still open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from analysis.reading.settings import form_of
from elalora.errors import UserError
from experiments.runtime.text import clean
from experiments.store.foreign import DAMAGE, read_json, read_yaml
from experiments.store.name import RunName

DEPTH = 2  # a store holds folders of tasks, which hold folders of runs
CRASH = "crash"
FAILURES = {"nan": "NaN", "budget": "over budget", "never_acted": "method failed"}  # anything else is a crash


class Unfinished(NamedTuple):
    """A run without a result.

    Attributes:
        folder: of the run.
        state: running, failed, refused (before its first step), preempted, or "unreadable status".
        error: in one line, empty where there is none.
        failure: the kind that status.json names (nan, budget, never_acted, crash, refused, preempted), empty where
            the run did not stop.
        form: where its ranks come from, such as "transplant shuffled", if its configuration says so (`form_of`).
    """

    folder: str
    state: str
    error: str
    failure: str = ""
    form: str = ""

    def __str__(self) -> str:
        return clean(f"{self.folder}: {self.state}{': ' + self.error[:200] if self.error else ''}")

    @property
    def arm(self) -> str:
        """The folder's name without seed and id, and its form; empty for a folder that is not named as a run."""
        name = RunName.parse(self.folder)
        return " ".join(filter(None, [name.arm, self.form])) if name else ""

    @property
    def short_id(self) -> str:
        """The digits of the run's id in its folder's name; empty for a folder that is not named as a run."""
        name = RunName.parse(self.folder)
        return name.id if name else ""

    @property
    def ending(self) -> str:
        """How it failed: "NaN", "over budget", "method failed" or "crash"; empty for a run that did not fail."""
        return FAILURES.get(self.failure, CRASH) if self.state == "failed" else ""


@dataclass
class StoreFolders:
    """The runs below one root."""

    finished: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)


def scan(root: Path) -> StoreFolders:
    """Looks for runs in a folder, its subfolders and theirs; skips hidden folders.

    Raises:
        UserError: the root is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder of runs; `python run.py` makes one, or name another store")
    runs = StoreFolders()
    for folder in _subfolders(root, DEPTH):
        if (folder / "result.json").exists():
            runs.finished.append(folder)
        elif (folder / "status.json").exists():
            runs.unfinished.append(folder)
    return runs


def _subfolders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        for name in names:
            yield from _subfolders(folder / name, depth - 1)


def read_status(folder: Path) -> Unfinished:
    """The state of a run that has no result."""
    try:
        status = read_json(folder / "status.json")
        failure = clean(str(status.get("failure") or ""), 100)
        state = "refused" if failure == "refused" else clean(str(status["state"]), 100)
        return Unfinished(str(folder), state, clean(str(status.get("error") or "")), failure, _form(folder))
    except DAMAGE:
        return Unfinished(str(folder), "unreadable status", "", form=_form(folder))


def _form(folder: Path) -> str:
    try:
        settings = read_yaml(folder / "config.yaml")
        return form_of(settings) if isinstance(settings, dict) else ""
    except DAMAGE:
        return ""
