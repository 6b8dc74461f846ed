"""A store of finished runs as a few small files that can be committed or sent: one parquet file a task, a row a run.

What is unusual: nothing reads this form but the function that unpacks it. Where a compact store is named, its runs are
unpacked once into the cache, under the checksum of the files, and read there as any others. It holds all that tables
are made of, failed runs too; adapters and checkpoints stay behind, and so do the places of the machine.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".runs.parquet"
TEXTS = (
    "result.json", "status.json", "manifest.json", "config.yaml", "metrics.jsonl", "timing.jsonl", "ranks.jsonl",
    "contributions.json",
)  # fmt: skip
PREDICTIONS = ("idx", "label", "prediction", "score")
FOLDER = re.compile(r"[A-Za-z0-9_.=+-]+-s\d+-[0-9a-f]{10}")
TASK = re.compile(r"[A-Za-z0-9_-]+")
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
PLACES: dict[str, dict[str, Any]] = {
    "data": {"root": None, "cache": None},
    "store": {"root": "runs", "also": []},
}  # as they are by default


# -- reading -------------------------------------------------------------------------------------------------


def opened(root: str | Path) -> Path:
    """The folder in which a store's runs lie: of a compact store one in the cache, of any other the store itself.

    Raises:
        UserError: a file of a compact store is damaged or holds what no compact store holds.
    """
    files = sorted(Path(root).glob(f"*{SUFFIX}"))
    if not files:
        return Path(root)
    return _unpacked(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@functools.cache
def _unpacked(stamped: tuple[tuple[Path, int, int], ...]) -> Path:
    from experiments.runtime.cache import cache_dir

    digest = hashlib.sha256()
    for file, *_ in stamped:
        digest.update(file.name.encode() + b"\n" + hashlib.sha256(file.read_bytes()).digest())
    folder = cache_dir(None) / "compact" / digest.hexdigest()[:20]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder.parent) as part:
            for file, *_ in stamped:
                _unpack(file, Path(part) / file.name.removesuffix(SUFFIX))
            try:
                os.rename(part, folder)  # whole or not at all
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
            Path(part).mkdir(exist_ok=True)  # for the context manager, which removes it
    return folder


def _unpack(file: Path, task: Path) -> None:
    """Writes a folder for every row; names that could lead elsewhere are refused."""
    from pyarrow import parquet

    if not TASK.fullmatch(task.name):
        raise UserError(f"{file}: {task.name!r} is no name of a task")
    for row in _rows(file):
        if not FOLDER.fullmatch(row["folder"]):
            raise UserError(f"{file} has a run named {row['folder']!r}, which is no name of a run: refused")
        folder = task / row["folder"]
        if folder.exists():
            raise UserError(f"{file} holds the run {row['folder']} twice: refused")
        folder.mkdir(parents=True)
        for name in TEXTS:
            if row[name] is not None:
                (folder / name).write_text(row[name], encoding="utf-8")
        if row["result.json"] is not None:
            parquet.write_table(row["predictions"], folder / "predictions.parquet")


def _rows(file: Path) -> list[dict[str, Any]]:
    """The runs of one file: folder, texts by name (None where a run has none), and the table of predictions."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        lists = [table[name].combine_chunks() for name in PREDICTIONS]
        rows = table.select(["folder", *TEXTS]).to_pylist()
        for place, row in enumerate(rows):
            if not isinstance(row["folder"], str) or row["result.json"] is None and row["status.json"] is None:
                raise ValueError("a run without a name, or without result and status")
            if wrong := [name for name in TEXTS if not isinstance(row[name], str | None)]:
                raise TypeError(f"{wrong[0]} is no text")
            row["predictions"] = pa.table(
                {name: items[place].values for name, items in zip(PREDICTIONS, lists, strict=True)}
            )
    except (*DAMAGE, pa.ArrowException) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} is no compact store of this version ({line}); compact the runs again") from error
    return rows


# -- writing -------------------------------------------------------------------------------------------------


def compact(stores: Sequence[str | Path], out: str | Path) -> list[str]:
    """Adds the finished and the failed runs of stores to a compact store; the same runs always give the same bytes.

    Args:
        stores: run stores; compact ones too.
        out: folder of the compact store, made when missing. Results that it holds already stay, and take over
            contributions that were measured since, also on a repetition with the same scores and ranks; a failed run
            gives way to its result.

    Returns:
        A line for each file, and one for each run that was left out.

    Raises:
        UserError: no such run, or a folder that cannot be read or written.
    """
    import pyarrow as pa

    out = Path(out)
    known = {(row["task"], row["folder"]): row for file in sorted(out.glob(f"*{SUFFIX}")) for row in _with_task(file)}
    before, left_out = len(known), []
    for folder in _ended(stores):
        try:
            row = _row(folder)
        except (*DAMAGE, pa.ArrowException) as error:
            left_out.append(f"{folder}: left out, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        key = (row["task"], row["folder"])
        there = known.get(key)
        if there is None or there["result.json"] is None:
            known[key] = row
        elif row["result.json"] is not None:
            if not _same(there["result.json"], row["result.json"]):
                left_out.append(f"{folder}: left out, the same run with another result is in {out} already")
            elif row["contributions.json"]:
                there["contributions.json"] = row["contributions.json"]
    if not known:
        raise UserError(f"no finished run in {', '.join(map(str, stores))}; `python run.py` makes one")
    tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in known.values():
        tasks[row["task"]].append(row)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = [_written(out / f"{task}{SUFFIX}", rows) for task, rows in sorted(tasks.items())]
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); type --out FOLDER") from error
    return [*left_out, *lines, f"{len(known)} runs, {len(known) - before} of them new"]


def _same(one: str, other: str) -> bool:
    """Whether two results say the same of a run, apart from when, with which commit and how fast it was made."""
    first, second = json.loads(one), json.loads(other)
    return all(first[key] == second[key] for key in ("id", "readings", "ranks", "counts"))


def _with_task(file: Path) -> list[dict[str, Any]]:
    return [{**row, "task": file.name.removesuffix(SUFFIX)} for row in _rows(file)]


def _ended(stores: Iterable[str | Path]) -> list[Path]:
    """Folders of runs that have a result or failed; what still runs or was only stopped is neither."""
    from experiments.store.folder import RunFolder

    found = []
    for store in stores:
        if not Path(store).is_dir():
            raise UserError(f"{store} is no folder of runs; `python run.py` makes one")
        root = opened(store)
        done = {path.parent for path in root.glob("*/*/result.json")}
        started = {path.parent for path in root.glob("*/*/status.json")}
        failed = {folder for folder in started if RunFolder(folder).status().get("state") == "failed"}
        found += sorted(done | failed)
    return found


def _row(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    from experiments.store.folder import RunFolder

    texts = {name: _text(folder / name) for name in TEXTS}
    if texts["config.yaml"] is not None:
        texts["config.yaml"] = _without_places(texts["config.yaml"])
    if texts["result.json"] is not None:
        json.loads(texts["result.json"])
        texts["status.json"] = None
        predictions = parquet.read_table(folder / "predictions.parquet", columns=list(PREDICTIONS))
    else:
        status = RunFolder(folder).status()
        told = {name: status[name] for name in ("state", "failure", "attempts", "step", "total") if name in status}
        error = re.sub(r"(?:~|/|[A-Za-z]:\\)\S*[/\\](\S+)", r"\1", str(status.get("error") or ""))
        texts["status.json"] = json.dumps(told | {"error": error}, sort_keys=True)
        predictions = pa.table({name: pa.array([], pa.int64()) for name in PREDICTIONS})
    return {"folder": folder.name, "task": folder.parent.name, **texts, "predictions": predictions}


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _without_places(text: str) -> str:
    """config.yaml without the folders of the machine it was written on."""
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config.yaml cannot be read ({type(error).__name__})") from error
    for part, values in PLACES.items():
        if isinstance(config.get(part), dict):
            config[part] |= {name: value for name, value in values.items() if name in config[part]}
    words = config.get("overrides") or []
    config["overrides"] = [word for word in words if not re.match(r"\+*(data\.(root|cache)|store\.(root|also))=", word)]
    return yaml.safe_dump(_shortened(config), sort_keys=False, allow_unicode=True)


def _shortened(value: Any) -> Any:
    """A value in which every absolute path, also one after an equals sign, is its last part."""
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    if not isinstance(value, str):
        return value
    key, equals, quoted = value.rpartition("=")
    path = quoted.strip("'\"")
    if not re.match(r"/|~|[A-Za-z]:[\\/]", path):
        return value
    return key + equals + PurePosixPath(path.replace("\\", "/")).name


def _written(file: Path, rows: list[dict[str, Any]]) -> str:
    """One file, written whole; pages are large because runs resemble each other more than their parts do."""
    from pyarrow import parquet

    table = _table(sorted(rows, key=lambda row: row["folder"]))
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        parquet.write_table(
            table, part, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False,
            data_page_size=1 << 28, row_group_size=1 << 20,
        )  # fmt: skip
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return f"{file}: {len(rows)} runs, {file.stat().st_size / 1e6:.1f} MB"


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in ("folder", *TEXTS)}
    for name in PREDICTIONS:
        kinds = [row["predictions"].schema.field(name).type for row in rows if row["result.json"] is not None]
        kind = kinds[0] if kinds else pa.int64()
        columns[name] = pa.array([row["predictions"][name].to_pylist() for row in rows], pa.list_(kind))
    return pa.table(columns)


# -- the command -----------------------------------------------------------------------------------------------


def add_to(commands: Any) -> None:
    """Adds `compact` to the command line."""
    given = commands.add_parser(
        "compact",
        help="finished runs as a few small files to commit or send",
        description="Adds the finished runs of STORE to a compact store: results, ranks, predictions and manifests of "
        "a task in one file, without adapters and without folders of this machine.",
        epilog="example: python -m experiments compact runs --out analysis/measured",
    )
    given.add_argument("stores", nargs="+", metavar="STORE", help="run stores")
    given.add_argument("--out", required=True, metavar="FOLDER", help="the compact store")
    given.set_defaults(do=_do)


def _do(asked: argparse.Namespace) -> int:
    print("\n".join(compact(asked.stores, asked.out)))
    return 0
