"""Reads compact stores: one parquet file per task with a row per run, small enough to commit or send.

A row holds everything that tables are made of, for failed runs too. Adapters, checkpoints and the folders of the
machine stay behind. A compact store is unpacked once into the cache, under the checksum of its files, and then read
like any other store.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line
from experiments.runtime.cache import cache_dir
from experiments.runtime.files import new_folder
from experiments.store.folder import SCHEMA, older_schema, other_schema
from experiments.store.foreign import DAMAGE, allowed, read_bytes, read_table
from experiments.store.name import RunName

SUFFIX = ".runs.parquet"
TEXTS = (
    "result.json", "status.json", "manifest.json", "config.yaml", "metrics.jsonl", "timing.jsonl", "ranks.jsonl",
    "contributions.json",
)  # fmt: skip
PREDICTIONS = ("idx", "label", "prediction", "score")
FOLDER = re.compile(r"[A-Za-z0-9_.=+-]+")  # characters of a run's folder
TASK = re.compile(r"[A-Za-z0-9_-]+")
RUN_ON_DISK = 8192  # bytes that an unpacked run takes at least


def opened(root: str | Path) -> Path:
    """The folder that holds a store's runs: the store itself, or the unpacked copy of a compact store.

    Raises:
        UserError: a file of a compact store is damaged or has content that does not belong there.
    """
    files = sorted(Path(root).glob(f"*{SUFFIX}"))
    if not files:
        return Path(root)
    return _unpacked(tuple((file, file.lstat().st_mtime_ns, file.lstat().st_size) for file in files))


@functools.cache
def _unpacked(files: tuple[tuple[Path, int, int], ...]) -> Path:
    """Modification times and sizes are arguments so that changed files are unpacked again."""
    digest = hashlib.sha256(b"schema %d" % SCHEMA)
    for file, *_ in files:
        digest.update(file.name.encode() + b"\n" + hashlib.sha256(_content(file)).digest())
    folder = cache_dir(None) / "compact" / digest.hexdigest()[:20]
    if not folder.is_dir():
        with new_folder(folder) as part:
            for file, *_ in files:
                _unpack(file, part / file.name.removesuffix(SUFFIX))
    return folder


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a compact store ({first_line(error)})") from error


def _unpack(file: Path, task: Path) -> None:
    """Writes a folder for every row; refuses names that could lead out of it."""
    from pyarrow import parquet

    if not TASK.fullmatch(task.name):
        raise UserError(f"{file}: invalid task name {task.name!r}; not unpacked")
    for row in current_rows(file):
        if not FOLDER.fullmatch(row["folder"]) or RunName.parse(row["folder"]) is None:
            raise UserError(f"{file}: invalid run name {row['folder']!r}; not unpacked")
        folder = task / row["folder"]
        if folder.exists():
            raise UserError(f"{file} contains the run {row['folder']} twice; not unpacked")
        folder.mkdir(parents=True)
        for name in TEXTS:
            if row[name] is not None:
                (folder / name).write_text(row[name], encoding="utf-8")
        if row["result.json"] is not None:
            parquet.write_table(row["predictions"], folder / "predictions.parquet")


def current_rows(file: Path) -> list[dict[str, Any]]:
    """As `read_rows`; refuses a file that `python -m experiments migrate` must bring to this version first."""
    rows = read_rows(file)
    for row in rows:
        if (schema := older_schema(row["result.json"] or "null")) is not None:
            raise UserError(f"{file} {other_schema(schema, file.parent)}")
    return rows


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The runs of one file: folder, task, texts by name (None if a run lacks one) and the table of predictions.

    Raises:
        UserError: the file is damaged, or was written by another version.
    """
    import pyarrow as pa

    try:
        table = read_table(file, ["folder", *TEXTS, *PREDICTIONS])
        if table.num_rows > (most := allowed(file.stat().st_size) // RUN_ON_DISK):
            raise ValueError(f"it has {table.num_rows} runs; a file of its size may have {most}")
        lists = [table[name].combine_chunks() for name in PREDICTIONS]
        rows = table.select(["folder", *TEXTS]).to_pylist()
        for number, row in enumerate(rows):
            if not isinstance(row["folder"], str) or row["result.json"] is None and row["status.json"] is None:
                raise ValueError("a run has no name, or neither result nor status")
            if wrong := [name for name in TEXTS if not isinstance(row[name], str | None)]:
                raise TypeError(f"{wrong[0]} is not text")
            row["task"] = file.name.removesuffix(SUFFIX)
            row["predictions"] = pa.table(
                {name: column[number].values for name, column in zip(PREDICTIONS, lists, strict=True)}
            )
    except (*DAMAGE, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as a compact store of this version ({first_line(error)}); compact the runs again"
        ) from error
    return rows
