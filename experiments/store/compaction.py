"""Writes compact stores (`python -m experiments compact`); `experiments.store.compact` describes and reads them."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.runtime.files import replacing, sum_of
from experiments.runtime.text import clean
from experiments.store.compact import PREDICTIONS, SUFFIX, TEXTS, current_rows, opened
from experiments.store.finished import LINES
from experiments.store.folder import RunFolder, dump
from experiments.store.foreign import DAMAGE, parse_yaml, read_table, read_text

if TYPE_CHECKING:
    import pyarrow

DEFAULT_FOLDERS: dict[str, dict[str, Any]] = {
    "data": {"root": None, "cache": None},
    "store": {"root": "runs", "also": []},
}  # replace the folders of this machine in config.yaml
SAME = ("id", "readings", "ranks", "counts")  # repetitions of a run differ in time, commit and speed only
FOLDER_WORD = re.compile(r"\+*(data\.(root|cache)|store\.(root|also))=")


def compact(stores: Sequence[str | Path], out: str | Path) -> list[str]:
    """Adds the finished and failed runs of stores to a compact store; the same runs always give the same bytes.

    A result that `out` already holds stays, and takes over contributions that were measured since, also from a
    repetition with the same scores and ranks. A failed run is replaced by its result.

    Args:
        stores: run stores, compact ones included.
        out: folder of the compact store, created if missing.

    Returns:
        A line for each run that was left out and for each file, and a summary.

    Raises:
        UserError: no finished run, or a folder that cannot be read or written.
    """
    import pyarrow as pa

    out = Path(out)
    rows = {(row["task"], row["folder"]): row for file in sorted(out.glob(f"*{SUFFIX}")) for row in current_rows(file)}
    before, left_out = len(rows), []
    for folder in _ended(stores):
        try:
            row = _row(folder)
            present = rows.setdefault((row["task"], row["folder"]), row)
            if present["result.json"] is None:
                rows[row["task"], row["folder"]] = row
            elif row["result.json"] is not None:
                first, second = json.loads(present["result.json"]), json.loads(row["result.json"])
                if any(first[key] != second[key] for key in SAME):
                    raise ValueError(f"{out} has another result of this run")
                if row["contributions.json"]:
                    present["contributions.json"] = row["contributions.json"]
        except (*DAMAGE, pa.ArrowException) as error:
            left_out.append(clean(f"{folder}: left out, {type(error).__name__}: {error}"))
    if not rows:
        raise UserError(f"no finished run in {', '.join(map(str, stores))}; `python run.py` makes one")
    tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.values():
        tasks[row["task"]].append(row)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = [write_rows(out / f"{task}{SUFFIX}", members) for task, members in sorted(tasks.items())]
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); type --out FOLDER") from error
    return [*left_out, *lines, f"{len(rows)} runs, {len(rows) - before} of them new"]


def _ended(stores: Iterable[str | Path]) -> list[Path]:
    """Folders of runs that have a result or failed; running and preempted ones are neither."""
    folders = []
    for store in stores:
        if not Path(store).is_dir():
            raise UserError(f"{store} is not a folder of runs; `python run.py` makes one")
        root = opened(store)
        done = {path.parent for path in root.glob("*/*/result.json")}
        started = {path.parent for path in root.glob("*/*/status.json")}
        folders += sorted(done | {run for run in started if RunFolder(run).status().get("state") == "failed"})
    return folders


def _row(folder: Path) -> dict[str, Any]:
    import pyarrow as pa

    files = {name: folder / name for name in TEXTS}
    texts = {name: read_text(file) if os.path.lexists(file) else None for name, file in files.items()}
    if texts["config.yaml"] is not None:
        texts["config.yaml"] = _without_folders(texts["config.yaml"])
    if texts["result.json"] is not None:
        texts["result.json"] = _with_kept_files(texts)
        texts["status.json"] = None
        predictions = read_table(folder / "predictions.parquet", list(PREDICTIONS))
    else:
        status = RunFolder(folder).status()
        public = {name: status[name] for name in ("state", "failure", "attempts", "step", "total") if name in status}
        error = re.sub(r"(?:~|/|[A-Za-z]:\\)\S*[/\\](\S+)", r"\1", str(status.get("error") or ""))
        texts["status.json"] = json.dumps(public | {"error": error}, sort_keys=True)
        predictions = pa.table({name: pa.array([], pa.int64()) for name in PREDICTIONS})
    return {"folder": folder.name, "task": folder.parent.name, **texts, "predictions": predictions}


def _with_kept_files(texts: dict[str, str | None]) -> str:
    """result.json with the checksums of the files that a compact store keeps byte for byte.

    A result of an older version had none; migrated ones get those of the files as they are.
    """
    kept = {name: texts[name] for name in ("manifest.json", *LINES)}
    result = json.loads(texts["result.json"] or "")
    files = result.get("files")
    if not files and "migrated" not in result:
        return texts["result.json"] or ""
    files = files or {name: asdict(sum_of(text.encode())) for name, text in kept.items() if text is not None}
    return dump(result | {"files": {name: files[name] for name in kept if name in files}})


def _without_folders(text: str) -> str:
    """config.yaml without the folders of the machine it was written on."""
    import yaml

    config = parse_yaml(text)
    for part, values in DEFAULT_FOLDERS.items():
        if isinstance(config.get(part), dict):
            config[part] |= {name: value for name, value in values.items() if name in config[part]}
    config["overrides"] = [word for word in config.get("overrides") or [] if not FOLDER_WORD.match(word)]
    return yaml.safe_dump(_shortened(config), sort_keys=False, allow_unicode=True)


def _shortened(value: Any) -> Any:
    """A value with every absolute path, also one behind an equals sign, cut to its last part."""
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


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    """Writes one file; its pages are large because runs resemble each other more than their parts do."""
    from pyarrow import parquet

    table = _table(sorted(rows, key=lambda row: row["folder"]))
    with replacing(file) as part:
        parquet.write_table(
            table, part, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False,
            data_page_size=1 << 28, row_group_size=1 << 20,
        )  # fmt: skip
    return f"{file}: {len(rows)} runs, {file.stat().st_size / 1e6:.1f} MB"


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in ("folder", *TEXTS)}
    for name in PREDICTIONS:
        types = [row["predictions"].schema.field(name).type for row in rows if row["result.json"] is not None]
        element = types[0] if types else pa.int64()
        columns[name] = pa.array([row["predictions"][name].to_pylist() for row in rows], pa.list_(element))
    return pa.table(columns)


def add_to(commands: Any) -> None:
    """Adds `compact` to the command line."""
    parser = commands.add_parser(
        "compact",
        help="pack finished runs into a few small files to commit or send",
        description="Adds the finished and failed runs of STORE to a compact store: results, ranks, predictions and "
        "manifests, one file per task, without adapters and without folders of this machine.",
        epilog="example: python -m experiments compact runs --out analysis/measured",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="run stores")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the compact store")
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    print("\n".join(compact(args.stores, args.out)))
    return 0
