"""Reads run stores into one data frame, a row per finished run.

A store may come from a stranger: only JSON and parquet are read (never pickle), every value is checked for its type,
and a damaged or foreign result becomes a line in `frame.attrs["problems"]`; it never stops the others from being
read and never passes in silence. Runs that began and have no result stand in `frame.attrs["unfinished"]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.reading.arms import with_names
from analysis.reading.index import read, scan
from analysis.reading.result_row import READINGS, WRONG, digest
from analysis.reading.settings import words_of_source
from elalora.errors import UserError
from experiments.store.compact import opened

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("ranks_from", "init_from")  # settings that hold the id of another run
FILTERS = ("method", "task", "budget", "protocol")
NAME = re.compile(r"(.+)-s(\d+)-([0-9a-f]{10})")  # of a run's folder: arm, seed, start of its id
# what tables call the kinds of failure of status.json; a kind that is not here is a crash
ENDINGS = {"nan": "NaN", "budget": "over budget", "never_acted": "method failed"}


class Unfinished(NamedTuple):
    """A run without a result.

    Attributes:
        folder: of the run.
        state: running, failed, refused (before its first step), preempted, or "unreadable status".
        error: in one line, empty where there is none.
        failure: the kind that status.json names (nan, budget, never_acted, crash, refused, preempted), empty where
            the run did not stop.
    """

    folder: str
    state: str
    error: str
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.folder}: {self.state}{': ' + self.error[:200] if self.error else ''}"

    @property
    def arm(self) -> str:
        """The run's name without seed and id, empty for a folder that is named otherwise."""
        match = NAME.fullmatch(Path(self.folder).name)
        return match[1] if match else ""

    @property
    def id_start(self) -> str:
        """The first ten digits of the run's id, or empty."""
        match = NAME.fullmatch(Path(self.folder).name)
        return match[3] if match else ""

    @property
    def ending(self) -> str:
        """How it failed: "NaN", "over budget", "method failed" or "crash"; empty for a run that did not fail."""
        if self.state != "failed":
            return ""
        return ENDINGS.get(self.failure, "crash")


def load_runs(*roots: str | Path, reading: str = "last") -> pd.DataFrame:
    """Every finished run below the given stores.

    Args:
        roots: stores, folders of one task, or folders of one run.
        reading: "last" or "best", the checkpoint whose score is taken.

    Returns:
        One row per run, ordered by task, method and seed, with the columns of
        `analysis.reading.result_row`, folder and reading.
        `attrs["problems"]` is a list of lines for people, `attrs["unfinished"]` a list of `Unfinished`.

    Raises:
        UserError: a root is no folder, or `reading` is unknown.
    """
    import pandas as pd

    if reading not in READINGS:
        raise UserError(f"reading={reading} is unknown; allowed: {', '.join(READINGS)}")
    found = {root: scan(root) for root in map(opened, roots)}
    read_all = [read(root, runs, reading) for root, runs in found.items()]
    problems = [line for _, lines in read_all for line in lines]
    frame = pd.concat([rows for rows, _ in read_all], ignore_index=True)
    if len(frame):
        frame, twice = _once(frame)
        problems += twice
        frame = _with_sources(frame)
        frame = frame.sort_values(["task", "method", "variant", "budget", "seed", "id"], ignore_index=True)
        frame = with_names(frame)
    open_folders = dict.fromkeys(folder for runs in found.values() for folder in runs.unfinished)
    frame.attrs["problems"] = list(dict.fromkeys(problems))
    frame.attrs["unfinished"] = [_unfinished(folder) for folder in open_folders]
    return frame


def _once(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the first of the rows that share an id; a line for each that scored otherwise."""
    again = frame.duplicated("id")
    first = frame[~again].set_index("id")
    lines = []
    for row in frame[again].to_dict("records"):
        known = first.loc[row["id"]]
        if known["score"] != row["score"]:
            lines.append(
                f"{row['folder']}: left out, the same run in {known['folder']} scored {known['score']:.4f}, "
                f"here {row['score']:.4f}"
            )
    return frame[~again], lines


def _with_sources(frame: pd.DataFrame) -> pd.DataFrame:
    """Names the runs that others started from by their settings instead of by their ids, which differ with the seed.

    A transplant's identity holds the id of the run that gave it its ranks. Runs of several seeds are one arm when
    their sources are one arm; a source that is in none of the stores keeps its id, and such runs stay apart.
    """
    arms = dict(zip(frame["id"], zip(frame["settings"], frame["arm"], strict=True), strict=True))
    settings, digests = list(frame["settings"]), list(frame["arm"])
    for place, tree in enumerate(frame["settings"]):
        named = _named(tree, arms)
        if named is not tree:
            settings[place], digests[place] = named, digest(named)
    return frame.assign(settings=settings, arm=digests)


def _named(tree: dict[str, Any], arms: Mapping[str, tuple[dict[str, Any], str]]) -> dict[str, Any]:
    for key in SOURCES:
        method = tree.get("method") or {}
        run = method.get(key) or tree.get(key)
        if not isinstance(run, str) or run not in arms:
            continue
        source, arm = arms[run]
        words = words_of_source(source, tree)
        inside = {**method, key: words} if method.get(key) else method
        outside = {} if method.get(key) else {key: words}
        tree = {**tree, **outside, "method": {**inside, f"{key}_arm": arm}}
    return tree


def _unfinished(folder: Path) -> Unfinished:
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        failure = str(status.get("failure") or "")
        state = "refused" if failure == "refused" else str(status["state"])
        return Unfinished(str(folder), state, str(status.get("error") or ""), failure)
    except WRONG:
        return Unfinished(str(folder), "unreadable status", "")


def select(runs: pd.DataFrame, filters: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows whose method, task, budget and protocol are among the wanted ones; no entry means all.

    Raises:
        UserError: a key is no filter, or a wanted value occurs in no run.
    """
    for key, wanted in filters.items():
        if key not in FILTERS:
            raise UserError(f"filter {key} is unknown; allowed: {', '.join(FILTERS)}")
        if not wanted or not len(runs):
            continue
        stored = sorted(set(runs[key]))
        for value in wanted:
            if value not in stored:
                raise UserError(f"--{key} {value} is in no finished run; stored: {', '.join(stored)}")
    for key, wanted in filters.items():
        if wanted and len(runs):
            runs = runs[runs[key].isin(list(wanted))]
    return runs.reset_index(drop=True)
