"""Which files a split is read from: one table, or several that a pattern or a folder names.

    task.files.train=data/train.csv
    'task.files.train=data/train-*.parquet'
    task.files.train=data/train

Their rows are read in the order of the files' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

from elalora.errors import UserError
from experiments.data.tables import FORMATS, listed, table_suffix
from experiments.runtime.distributed import print_once

NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(\..*)")  # the hub's names of shards, numbered from 0


def located(root: str | None, path: str) -> Path:
    """A path of task.files, which is relative to data.root or to the current folder."""
    return Path(root or "").expanduser() / Path(path).expanduser()


def tables_of(root: str | None, path: str) -> list[Path]:
    """The tables that a path, a pattern (*, ?, [...], **) or a folder names, sorted; a path also if nothing is there.

    Raises:
        UserError: nothing matches, numbered shards are missing, or the tables do not belong together.
    """
    place = located(root, path)
    if place.is_dir():
        tables = _tables(place.iterdir())
        if not tables:
            raise UserError(f"{path} is a folder without a table; allowed: {', '.join(FORMATS)}")
        names = sorted({re.sub(r"\d+", "N", file.name.split(".")[0]) for file in tables})
        if len(names) > 1:
            raise UserError(
                f"{path} has tables of several names ({listed(names)}); type a pattern that matches those of the "
                f"split, such as '{path}/{names[0].split('N')[0]}*'"
            )
    elif place.exists() or not any(c in path for c in "*?["):
        return [place]
    else:
        folder = Path(root or "").expanduser()
        matches = glob(str(Path(path).expanduser()), root_dir=folder, recursive=True)
        tables = _tables(folder / match for match in matches)
        if not tables:
            raise UserError(
                f"{path} matches no table; it is relative to data.root, or to the current folder if that is null"
            )
    if len(formats := {file.suffix.lower() for file in tables}) > 1:  # perhaps the same rows twice
        raise UserError(
            f"{path} has tables of several formats ({listed(sorted(formats))}); type a pattern for one of them"
        )
    _refuse_gaps(tables, path)
    return tables


def numbered(tables: Sequence[Path]) -> dict[str, Path]:
    """Tables by their place in a split; one alone has none, so that it is known by its content only."""
    return {f"{number}/" if len(tables) > 1 else "": table for number, table in enumerate(tables)}


def remark_on_one(path: str) -> None:
    """Warns where the one file that is read is a shard among others."""
    name = Path(path).name
    if (shard := NUMBERED.fullmatch(name)) and int(shard[3]) > 1:
        every = f"{path.removesuffix(name)}{shard[1]}*"
        print_once(f"elalora: {path} is one of {int(shard[3])} shards; {every} reads all", error=True)


def official_tables(folder: Path, split: str) -> list[Path]:
    """SPLIT.parquet in a folder, or else its shards under the hub's names; none if there are neither.

    Raises:
        UserError: some shards are missing.
    """
    whole = folder / f"{split}.parquet"
    tables = [whole] if whole.is_file() else _tables(folder.glob(f"{split}-*-of-*.parquet"))
    _refuse_gaps(tables, f"{folder.name}/{split}")
    return tables


def _tables(files: Iterable[Path]) -> list[Path]:
    """The tables among files, sorted, without hidden ones and those that Spark marks with an underscore."""
    return sorted(f for f in files if f.name[0] not in "._" and table_suffix(f) is not None and f.is_file())


def _refuse_gaps(tables: Iterable[Path], label: str) -> None:
    """Refuses numbered shards of which some are missing."""
    found: dict[tuple[str, int], set[int]] = {}
    for file in tables:
        if shard := NUMBERED.fullmatch(file.name):
            found.setdefault((str(file.parent / shard[1]), int(shard[3])), set()).add(int(shard[2]))
    for (_, count), numbers in found.items():
        if missing := set(range(min(count, 10**6))) - numbers:
            raise UserError(
                f"{label}: {len(missing)} of {count} shards are missing, the first is number {min(missing)}; "
                "put them there, or name one file"
            )
