"""Finds the runs of a store, and keeps their rows in `.index.parquet` so that ten thousand are read in a moment.

The run folders stay the truth. The index is only a copy of what was read from them: an entry counts while the times
and sizes of its result.json and manifest.json are those of the folder, and it passes the same checks as the file. It
is brought up to date on every reading, made anew when it is damaged or of another version, done without where the
store cannot be written, and may be deleted at any time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.reading.result_row import NESTED, READINGS, WRONG, digest, reason, rows_of
from elalora.errors import UserError
from experiments.store.folder import SCHEMA

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

INDEX = ".index.parquet"
VERSION = 2  # of the index: raise it when a column changes its meaning
LEAST_RUNS = 100  # below that the folders themselves are read in less than a second
TEXT = (
    "folder", "stamp", "reading", "id", "method", "variant", "label", "task", "model", "budget", "protocol", "recipe",
    "metric", "split", "fingerprint", "citation", "source", "arm", *NESTED,
)  # fmt: skip
TRUTH = ("reconstructed", "verified")
WHOLE = (
    "seed", "steps", "head_params", "other_params", "rounds", "blocked", "train_items", "report_items",
    *(f"{count}_{when}" for count in ("rank_sum", "params") for when in ("initial", "peak", "final")),
)  # fmt: skip
NUMBERS = (
    "score", "majority", "gross_share", "net_share",
    "step_seconds", "train_seconds", "peak_memory_mib", "adapter_bytes",
)  # fmt: skip
FINITE = ("score", "gross_share", "net_share")


@dataclass
class Found:
    """What lies below one root.

    Attributes:
        stamps: times and sizes of the files of every finished run, by its folder.
        unfinished: folders of runs that began and have no result.
    """

    stamps: dict[Path, str] = field(default_factory=dict)
    unfinished: list[Path] = field(default_factory=list)


def scan(root: Path) -> Found:
    """Looks for runs in a folder, in its subfolders and in theirs; hidden folders are passed over.

    Raises:
        UserError: it is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder of runs; `python run.py` makes one, or name another store")
    found = Found()
    for folder in _folders(root, depth=2):
        stamp = _stamp(folder)
        if stamp:
            found.stamps[folder] = stamp
        elif (folder / "status.json").is_file():
            found.unfinished.append(folder)
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        for name in names:
            yield from _folders(folder / name, depth - 1)


def _stamp(folder: Path) -> str:
    """Changes whenever result.json or manifest.json does; empty where there is no result."""
    parts = []
    for name in ("result.json", "manifest.json"):
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:
            if name == "result.json":
                return ""
            continue
        parts.append(f"{status.st_mtime_ns}:{status.st_size}")
    return " ".join(parts)


def read(root: Path, found: Found, reading: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows of all finished runs below a root.

    Args:
        root: where the index lies.
        found: from `scan`.
        reading: "last" or "best".

    Returns:
        A row per run, and a line for every result that was left out.
    """
    import pandas as pd

    known = _load(root / INDEX) if len(found.stamps) >= LEAST_RUNS else None
    current = {os.path.relpath(folder, root): stamp for folder, stamp in found.stamps.items()}
    if known is not None:
        known = known[known["folder"].map(current) == known["stamp"]]
    kept = set() if known is None else set(known["folder"])
    rows: list[dict[str, Any]] = []
    problems = []
    for name in [name for name in current if name not in kept]:
        try:
            both = rows_of(root / name)
        except WRONG as error:
            problems.append(f"{root / name}: left out, {reason(error)}")
            continue
        rows += [{"folder": name, "stamp": current[name], "reading": r, **row} for r, row in both.items()]
    frame = pd.DataFrame(rows, columns=[*TEXT, *TRUTH, *WHOLE, *NUMBERS])
    if known is not None:
        frame = pd.concat([known, frame], ignore_index=True) if rows else known
    if rows and len(found.stamps) >= LEAST_RUNS:
        _save(frame, root / INDEX)
    without = set(frame["folder"]) - set(frame["folder"][frame["reading"] == reading])
    problems += [f"{root / name}: left out, it has no reading '{reading}'" for name in sorted(without)]
    frame = frame[frame["reading"] == reading]
    frame = frame.assign(folder=[str(root / name) for name in frame["folder"]])
    return frame.drop(columns="stamp").reset_index(drop=True), problems


def _schema() -> pyarrow.Schema:
    import pyarrow

    fields = [(name, pyarrow.string()) for name in TEXT]
    fields += [(name, pyarrow.bool_()) for name in TRUTH]
    fields += [(name, pyarrow.int64()) for name in WHOLE]
    fields += [(name, pyarrow.float64()) for name in NUMBERS]
    return pyarrow.schema(fields, metadata={"elalora_index": f"{VERSION}.{SCHEMA}.{digest([list(READINGS)])}"})


def _load(path: Path) -> pd.DataFrame | None:
    """The index, or None when there is none, it is of another version or damaged in any way."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        if not table.schema.remove_metadata().equals(_schema().remove_metadata()):
            return None
        if (table.schema.metadata or {}).get(b"elalora_index") != _schema().metadata[b"elalora_index"]:
            return None
        frame = table.to_pandas()
        needed = frame[[*TEXT, *TRUTH, *WHOLE, *FINITE]].replace([math.inf, -math.inf], math.nan)
        if needed.isna().any(axis=None) or frame.duplicated(["folder", "reading"]).any():
            return None
        for name, check in NESTED.items():
            distinct = {text: check(json.loads(text)) for text in frame[name].unique()}
            frame[name] = frame[name].map(distinct)
    except (*WRONG, pyarrow.ArrowException):
        return None
    return frame


def _save(frame: pd.DataFrame, path: Path) -> None:
    """Writes the index whole; a store that cannot be written stays without."""
    import pyarrow
    from pyarrow import parquet

    texts = {name: [json.dumps(value) for value in frame[name]] for name in NESTED}
    table = pyarrow.Table.from_pandas(frame.assign(**texts), schema=_schema(), preserve_index=False)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        parquet.write_table(table.replace_schema_metadata(_schema().metadata), part, compression="zstd")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
