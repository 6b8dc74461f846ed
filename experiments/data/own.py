"""The user's own data: tables or folders of images, described by the task's settings alone.

    task=own task.name=reviews task.files.train=train.csv task.files.test=test.csv task.text=[review] task.label=stars

Three fixed splits are best. Without a validation split one is drawn from train by a hash of the row numbers; without a
test split validation is reported, as for GLUE. Images are bytes or paths in a table, or files in class folders. A split
may be several tables (`experiments.data.shards`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import OPTIONS, DataConfig, TaskConfig
from experiments.data.checks import check_rows
from experiments.data.content import data_root, make_split, reference_list
from experiments.data.image_files import class_folders, inside, read_images
from experiments.data.labels import number_classes, number_options, refuse_untrained, whole
from experiments.data.protocols import with_validation
from experiments.data.shards import located, numbered, remark_on_one, tables_of
from experiments.data.tables import Columns, joined, read_table, table_suffix
from experiments.runtime.digests import sha256_of
from experiments.runtime.distributed import print_once

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
MOST_ROWS = 10  # row numbers that a message lists
RESERVED = {"summarization": ("idx", "label", "references"), "image": ()}  # names that input columns cannot have
SPELT_LIST = re.compile(r"\[(['\"]).*\1\]", re.DOTALL)


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """The splits that task.files names, and their source.

    Raises:
        UserError: missing or unreadable files, bad rows, or class names that do not fit.
    """
    named = {name: path for name in SPLITS if (path := task.files.get(name)) is not None}
    if "train" not in named or len(named) < 2:
        raise UserError(
            f"task {task.name} needs task.files.train=PATH and task.files.test=PATH or task.files.validation=PATH"
        )
    if reserved := set(RESERVED.get(task.kind, ("idx", "label"))) & set(task.text):
        raise UserError(f"task.text: an input column cannot be named {min(reserved)}; rename it in the files")
    data_root(data)  # refuses a missing folder
    raw = {name: _read(task, data.root, path) for name, path in named.items()}
    _number_rows(raw, named)
    for name, columns in raw.items():
        raw[name] = _labelled(task, columns, named[name])
    classes = task.kind in ("classification", "image") and task.options_column is None
    if classes:
        number_classes(task, raw, named)
    for name, columns in raw.items():
        if task.options_column is not None:
            number_options(columns)
        check_rows(task, named[name], columns)
        _refuse_blank(task, named[name], columns)
    if classes:
        refuse_untrained(task, raw, named)
    splits = {name: make_split(task, raw.pop(name)) for name in named}
    if "validation" not in splits:
        splits = with_validation(task, splits)
    return splits, "own files"


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> what it is read from: tables and the images that they name, or a folder's images; by relative name."""
    read: dict[str, dict[str, Path]] = {}
    for name, path in task.files.items():
        if path is None:
            continue
        if task.kind == "image" and (classes := _class_folders(located(root, path), path)):
            read[name] = {image: located(root, path) / image for images in classes.values() for image in images}
            continue
        for place, table in numbered([table for table in tables_of(root, path) if table.is_file()]).items():
            images = _named_images(table, task.text[0], task.sep, sha256_of(table)) if task.kind == "image" else []
            read.setdefault(name, {})[place] = table
            read[name] |= {f"{place}{image}": table.parent / image for image in images}
    return read


@cache  # called for every run of a sweep
def _named_images(table: Path, column: str, sep: str | None, _digest: str) -> list[str]:
    """The images that a column of a table names by their paths, and which exist."""
    if table_suffix(table) == ".parquet":
        from pyarrow import parquet, types

        kind = parquet.read_schema(table).field(column).type
        if types.is_struct(kind):  # bytes, or the path of a file
            column = f"{column}.path"
        elif not types.is_string(kind) and not types.is_large_string(kind):
            return []
        cells = parquet.read_table(table, columns=[column]).column(0).to_pylist()
        cells = [cell["path"] if isinstance(cell, dict) else cell for cell in cells]
    else:
        cells = read_table(table, "", [column], sep=sep)[column]
    return sorted({cell for cell in cells if isinstance(cell, str) and (table.parent / cell).is_file()})


def _class_folders(folder: Path, label: str) -> dict[str, list[str]]:
    """Class name -> its images; empty where the path is a table, or a folder of tables."""
    if not folder.is_dir():
        return {}
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    of_tables = any(map(table_suffix, entries)) and not any(entry.is_dir() for entry in entries)
    return {} if of_tables else class_folders(folder, label)


def _read(task: TaskConfig, root: str | None, path: str) -> Columns:
    """Inputs and label of a split, and idx if its files have one."""
    place = located(root, path)
    if task.kind == "image" and (classes := _class_folders(place, path)):
        pairs = [(file, name) for name, files in classes.items() for file in files]
        return {"image": read_images(place, [file for file, _ in pairs], path), "label": [name for _, name in pairs]}
    tables = tables_of(root, path)
    if len(tables) == 1:
        remark_on_one(path)
        return _read_table(task, tables[0], path)
    return joined([_read_table(task, table, f"{path} ({table.name})") for table in tables])


def _read_table(task: TaskConfig, file: Path, label: str) -> Columns:
    more = [name for name in ("idx", "references") if name not in task.text]
    options = [] if task.options_column is None else [task.options_column]
    table = read_table(file, label, [*task.text, task.label, *options], more, task.sep)
    columns = {name: table[name] for name in task.text} | {"label": table[task.label]}
    if options:
        columns[OPTIONS] = _lists(table[options[0]], label, "options")
    if task.kind == "image":
        columns = {"image": _images(file, label, table[task.text[0]]), "label": table[task.label]}
    elif task.kind == "regression":
        columns["label"] = [_number(value) for value in columns["label"]]
    elif task.kind == "summarization":
        if list(task.text) == [task.label]:
            columns = _conversations(table[task.label], task.label, label)
        columns["references"] = (
            [reference_list(cell) for cell in _lists(table["references"], label, "references")]
            if "references" in table
            else [[text] for text in columns["label"]]
        )
    if "idx" in table and "idx" not in task.text:
        columns["idx"] = table["idx"]
    return columns


def _conversations(cells: Sequence[Any], name: str, label: str) -> Columns:
    """What a user said as input and what an assistant answered as label, from lists of two turns.

    Raises:
        UserError: a conversation has other turns, which would be lost.
    """
    for row, turns in enumerate(cells, start=1):
        roles = (
            [turn.get("role") if isinstance(turn, dict) else None for turn in turns] if isinstance(turns, list) else []
        )
        if roles != ["user", "assistant"]:
            raise UserError(
                f"{label}: row {row} has in {name} the turns {', '.join(map(str, roles)) or 'of no list'}; expected a "
                'list of {"role": "user", "content": ...} and {"role": "assistant", "content": ...}, a system text in '
                "task.system"
            )
    return {name: [turns[0].get("content") for turns in cells], "label": [turns[1].get("content") for turns in cells]}


def _lists(cells: Sequence[Any], label: str, what: str) -> list[Any]:
    """Lists of texts; other values unchanged.

    Raises:
        UserError: a text is a list that was written into a CSV.
    """
    for row, cell in enumerate(cells, start=1):
        if isinstance(cell, str) and SPELT_LIST.fullmatch(cell.strip()):
            raise UserError(f"{label}: row {row} has the text of a list as {what}; several need JSON or parquet")
    return list(cells)


def _images(file: Path, label: str, cells: Sequence[Any]) -> list[Any]:
    """Image bytes from cells of bytes, of {"bytes": ...} as the datasets library stores them, or of relative paths."""
    cells = [cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell for cell in cells]
    if not any(isinstance(cell, str) for cell in cells):
        return cells
    for row, cell in enumerate(cells, start=1):
        if not isinstance(cell, str) or not cell.strip():
            raise UserError(f"{label}: row {row} has no image; expected a path relative to {file.name}")
        inside(cell, f"{label}: row {row}")
    return read_images(file.parent, cells, label)


def _number(value: Any) -> Any:
    """The number that a text from a CSV spells; other values are left to the checks."""
    try:
        return float(value) if isinstance(value, str) and "_" not in value else value  # Python's own 1_0 is 10
    except ValueError:
        return value


def _number_rows(raw: dict[str, Columns], named: dict[str, str]) -> None:
    """Numbers the rows: by a column idx of distinct whole numbers, or else consecutively over the splits."""
    start = 0
    for name, columns in raw.items():
        count = len(columns["label"])
        own = [whole(value, real=True) for value in columns.pop("idx", ())]
        fits = all(type(number) is int and abs(number) < 2**63 for number in own) and len(set(own)) == len(own)
        if not fits:
            print_once(
                f"elalora: {named[name]}: idx has other values than distinct whole numbers; rows are numbered in order",
                error=True,
            )
        columns["idx"] = own if own and fits else list(range(start, start + count))
        start += count


def _labelled(task: TaskConfig, columns: Columns, label: str) -> Columns:
    """The rows that have a label; refuses others, or drops them if task.drop_unlabelled."""
    missing = [row for row, value in enumerate(columns["label"]) if _is_missing(value)]
    if not missing:
        return columns
    if not task.drop_unlabelled:
        rows = ", ".join(str(row + 1) for row in missing[:MOST_ROWS]) + (", ..." if len(missing) > MOST_ROWS else "")
        raise UserError(
            f"{label}: {'row' if len(missing) == 1 else f'{len(missing):,} rows:'} {rows} "
            f"{'has' if len(missing) == 1 else 'have'} no label; fill in the column, or type task.drop_unlabelled=true"
        )
    print_once(
        f"elalora: {label}: {len(missing):,} of {len(columns['label']):,} rows have no label and are dropped",
        error=True,
    )
    dropped = set(missing)
    return {name: [v for row, v in enumerate(values) if row not in dropped] for name, values in columns.items()}


def _is_missing(value: Any) -> bool:
    return value is None or isinstance(value, str) and not value.strip() or isinstance(value, float) and isnan(value)


def _refuse_blank(task: TaskConfig, label: str, columns: Columns) -> None:
    """Refuses items without any text, which benchmarks may have but own data should not."""
    if task.kind == "image":
        return
    for row, texts in enumerate(zip(*(columns[name] for name in task.text), strict=True), start=1):
        if not any(text.strip() for text in texts):
            raise UserError(f"{label}: row {row} has no text in {', '.join(task.text)}")
