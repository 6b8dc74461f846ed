"""Reads run stores into one data frame, a row per finished run.

A store may come from other people: only JSON and parquet are read (never pickle), every value is checked for its type,
and a damaged or foreign result becomes a line in `frame.attrs["problems"]`, so it neither hides the other runs nor
passes in silence. Runs that started and have no result are in `frame.attrs["unfinished"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.reading.arms import with_names
from analysis.reading.folders import read_status, scan
from analysis.reading.result_row import READINGS, digest, reason, row_of
from analysis.reading.settings import words_of_source
from elalora.errors import UserError
from experiments.runtime.text import clean
from experiments.store.compact import opened
from experiments.store.foreign import DAMAGE

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("ranks_from", "init_from")  # settings that hold the id of another run
FILTERS = ("method", "task", "budget", "protocol")


@contextmanager
def quick_texts() -> Iterator[None]:
    """Frames made inside keep texts as Python objects: pandas' Arrow texts cost a third of a report's time."""
    import pandas as pd

    with pd.option_context("mode.string_storage", "python"):
        yield


@quick_texts()
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
    stores = [scan(root) for root in dict.fromkeys(map(opened, roots))]
    rows, problems = _read([folder for store in stores for folder in store.finished], reading)
    frame = pd.DataFrame(rows)
    if len(frame):
        frame, repeated = _without_repeats(frame)
        problems += repeated
        frame, copies = _without_copies(_with_sources(frame))
        problems += copies
        frame = frame.sort_values(["task", "method", "variant", "budget", "seed", "id"], ignore_index=True)
        frame = in_one_block(with_names(frame))
    frame.attrs["problems"] = list(dict.fromkeys(problems))
    frame.attrs["unfinished"] = [*map(read_status, dict.fromkeys(f for store in stores for f in store.unfinished))]
    return frame


def in_one_block(runs: pd.DataFrame) -> pd.DataFrame:
    """The frame with its texts as plain objects, stored together: sections cut it into arms in half of the time."""
    import pandas as pd

    texts = [column for column, kind in runs.dtypes.items() if isinstance(kind, pd.StringDtype)]
    return runs.astype(dict.fromkeys(texts, object)).copy()


def rows_of(runs: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """The runs as dicts of some columns, as `runs[columns].to_dict("records")` in a tenth of its time."""
    values = zip(*(runs[column].tolist() for column in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _read(folders: Sequence[Path], reading: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every result that can be read, and a line for every other."""
    rows, problems = [], []
    for folder in folders:
        try:
            rows.append({"folder": str(folder), "reading": reading, **row_of(folder, reading)})
        except DAMAGE as error:
            problems.append(clean(f"{folder}: left out, {reason(error)}"))
    return rows, problems


def _without_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the first of the rows that share an id; a line for each whose score differs from it."""
    again = frame.duplicated("id")
    first = frame[~again].set_index("id")
    lines = []
    for row in frame[again].to_dict("records"):
        known = first.loc[row["id"]]
        if known["score"] != row["score"]:
            lines.append(
                clean(
                    f"{row['folder']}: left out, the same run in {known['folder']} scored {known['score']:.4f}, "
                    f"here {row['score']:.4f}"
                )
            )
    return frame[~again], lines


def _without_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the first of the runs of one arm with the same training losses to the last digit: one run, copied."""
    copied = frame["lines"].notna() & frame.duplicated(["arm", "fingerprint", "lines"])
    first = frame[~copied].drop_duplicates(["arm", "lines"]).set_index(["arm", "lines"])["folder"]
    lines = [
        clean(f"{row['folder']}: left out, its metrics.jsonl is that of {first[row['arm'], row['lines']]}")
        for row in frame[copied].to_dict("records")
    ]
    return frame[~copied], lines


def _with_sources(frame: pd.DataFrame) -> pd.DataFrame:
    """Replaces ids of source runs by the sources' settings, because ids differ with the seed.

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


def select(runs: pd.DataFrame, filters: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows whose method, task, budget and protocol are among the wanted values; a missing entry means all.

    Raises:
        UserError: an unknown filter, or a value that no run has.
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
